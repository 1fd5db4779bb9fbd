"""A power cut below a data folder: the least of what the proof `power_cuts` does at length."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.stores import ROOT


def test_a_folder_that_was_just_made_is_whole_after_a_power_cut(tmp_path: Path) -> None:
    """I1. Its format, the journal with what was acknowledged, and an object that was put; nothing is said to be damaged.

    Skipped, in CI too, where mounting is not allowed: that is a right of the machine's, and no tool to install."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.cut", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if not done.stdout:
        pytest.skip(done.stderr.strip())
    left = json.loads(done.stdout.splitlines()[-1])
    assert left == {"forgot": True, "flaws": [], "heads": [1], "object": "the object"}
