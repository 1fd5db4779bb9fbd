"""What was recorded is what pytest's own `--junitxml` of the same run says, as a multiset of (case, outcome), with and
without xdist; and `compare` counts what a diff of the two JUnit files counts."""

import json
import random
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import anyio

from sojourn.runtime.reader import Reader

from ..support.reports import junit_cases, recorded_cases
from ._suites import NETWORKX_NEW, NETWORKX_OLD, SOJOURN, SYMPY, Suite, clean_environment, record

SUITES = (NETWORKX_NEW, NETWORKX_OLD, SYMPY)
OK = ("passed", "xfailed", "xpassed")


def prove(rng: random.Random) -> dict[str, Any]:
    runs, ids, junits = [], {}, {}
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as name:
        folder = Path(name)
        for suite in SUITES:
            for xdist in (False, True):
                label = f"{suite.package}-{suite.version}{'-xdist' if xdist else ''}"
                found, session_id, junit = _run(folder, label, suite, xdist)
                runs.append(found)
                ids[label], junits[label] = session_id, junit
        compared = [_compare(folder, ids, junits, suffix) for suffix in ("", "-xdist")]
    holds = all(run["missing"] == run["extra"] == 0 for run in runs) and all(one["equal"] for one in compared)
    return {"holds": holds, "figures": {"runs": runs, "comparisons": compared}}


def _run(folder: Path, label: str, suite: Suite, xdist: bool) -> tuple[dict[str, Any], str, Counter[Any]]:
    xml = folder / f"{label}.xml"
    told = record(folder, label, suite.command(f"--junitxml={xml}", xdist=xdist))
    junit = junit_cases(xml)
    results = anyio.run(_recorded, folder / "data", told["session_id"])
    recorded = recorded_cases(results, junit)
    found = {
        "run": label,
        "junit": junit.total(),
        "recorded": len(results),
        "outcomes": dict(Counter(outcome for _, _, outcome in junit.elements())),
        "missing": (junit - recorded).total(),
        "extra": (recorded - junit).total(),
        "undelivered": told["undelivered"],
        "outcome": told["outcome"],
    }
    print(f"  {found}", flush=True)
    for case in [*(junit - recorded), *(recorded - junit)][:10]:
        print(f"    differs: {case}")
    return found, told["session_id"], junit


async def _recorded(data: Path, session_id: str) -> list[dict[str, Any]]:
    """Every result event, so that a doubled one shows."""
    async with Reader.open(data) as reader:
        lines = [line async for line in reader.events(session_id)]
    return [json.loads(line.line)["data"] for line in lines if line.type == "result.recorded"]


def _compare(
    folder: Path, ids: dict[str, str], junits: dict[str, Counter[Any]], suffix: str
) -> dict[str, Any]:
    before, after = f"networkx-3.6.1{suffix}", f"networkx-2.7.1{suffix}"
    done = subprocess.run(
        [SOJOURN, "compare", ids[before], ids[after], "--json", "--data", str(folder / "data")],
        env=clean_environment(), stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    counted = {name: count for name, count in json.loads(done.stdout)["counts"].items() if count}
    expected = _diff(junits[before], junits[after])
    found = {
        "of": f"{before} and {after}",
        "compare": counted,
        "junit_diff": expected,
        "equal": counted == expected,
    }
    found["exit_code"] = done.returncode
    print(f"  {found}", flush=True)
    return found


def _diff(before: Counter[Any], after: Counter[Any]) -> dict[str, int]:
    """The classes of `compare`, counted by hand from two JUnit files. A name that stands in one file more than once is told
    apart by its place, as case ids are by `#2`."""
    sides = []
    for junit in (before, after):
        outcomes: dict[tuple[str, str, int], str] = {}
        for classname, name, outcome in sorted(junit.elements()):
            place = 0
            while (classname, name, place) in outcomes:
                place += 1
            outcomes[classname, name, place] = outcome
        sides.append(outcomes)
    counts: Counter[str] = Counter()
    for key in sides[0].keys() | sides[1].keys():
        was, is_ = sides[0].get(key), sides[1].get(key)
        if was is None:
            counts["new"] += 1
        elif is_ is None:
            counts["removed"] += 1
        elif "skipped" in (was, is_) and is_ not in ("failed", "error"):
            counts["not-run"] += 1
        elif is_ in OK:
            counts["same-pass" if was in OK else "fixed"] += 1
        elif was in ("failed", "error"):
            counts["same-fail"] += 1
        else:
            counts["regressed" if is_ == "failed" else "malfunctioned"] += 1
    return dict(counts)
