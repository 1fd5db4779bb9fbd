"""The simulator over its first 500 seeds, what they cover, and that a seed replays alike."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .profile import DIRECTED

ROOT = Path(__file__).parents[2]
SEEDS = 500
AT_ONCE = 25  # in one test, so that workers share them


def simulated(first: int, seeds: int) -> list[dict[str, Any]]:
    """What became of some seeds, in a process of their own, as the command that replays one would run them."""
    command = [
        sys.executable,
        "-m",
        "tests.simulation",
        "--first",
        str(first),
        "--seeds",
        str(seeds),
        "--json",
    ]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_every_invariant_holds_under_every_fault(
    first: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outcomes = simulated(first, AT_ONCE)
    failed = [
        f"{outcome['violation']}\n  {outcome['replay']}" for outcome in outcomes if outcome["violation"]
    ]
    assert not failed, "\n".join(failed)
    # Whoever is last looks at what all of them covered; the workers of pytest-xdist share this folder.
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    counts = Counter[str]()
    for outcome in outcomes:
        counts.update(outcome["covered"])
    (folder / f"simulation-{first}.tmp").write_text(json.dumps(counts))
    (folder / f"simulation-{first}.tmp").rename(folder / f"simulation-{first}.json")
    found = list(folder.glob("simulation-*.json"))
    if len(found) == SEEDS // AT_ONCE:
        covered = Counter[str]()
        for path in found:
            covered.update(json.loads(path.read_text()))
        missing = [f"{fault} during {phase}" for fault, phase in DIRECTED if not covered[f"{fault}/{phase}"]]
        assert missing == [], "no seed met these"


@pytest.mark.timeout(600)
def test_a_seed_replays_alike() -> None:
    first, second = simulated(0, 12), simulated(0, 12)
    assert [outcome["digest"] for outcome in first] == [outcome["digest"] for outcome in second]
    assert len({outcome["digest"] for outcome in first}) == 12
