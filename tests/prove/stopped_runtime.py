"""A runtime that is stopped (SIGSTOP) for the whole of a recorded run costs the tests nothing: wall time of the recorded run over
that of the bare one, in alternation, median of PAIRS (5); the recorded outcomes are those of the bare run, as a multiset;
and when the runtime goes on, the next recording delivers everything."""

import json
import os
import random
import resource
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio

from sojourn.runtime.reader import Reader

from ..support.reports import junit_cases, recorded_cases
from ..support.serve import serve
from ..support.wait import wait_until
from ._suites import NETWORKX_NEW, SOJOURN, clean_environment, record

TARGET = 1.05


def prove(rng: random.Random) -> dict[str, Any]:
    pairs = int(os.environ.get("PAIRS") or 5)
    bare_s, recorded_s, bare_cpu_s, recorded_cpu_s, runs = [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as name:
        folder = Path(name)
        with serve(folder / "data", "--no-tcp", log=folder / "serve.log") as server:
            _bare(folder, "warm-up")
            for number in range(pairs):
                kinds = ["bare", "recorded"]
                rng.shuffle(kinds)
                took: dict[str, float] = {}
                cpu_s: dict[str, float] = {}
                junit: Counter[Any] = Counter()
                told: dict[str, Any] = {}
                for kind in kinds:
                    if kind == "recorded":
                        server.process.send_signal(signal.SIGSTOP)
                    began, cpu_before_s = time.perf_counter(), _cpu_s()
                    if kind == "bare":
                        junit = _bare(folder, f"bare-{number}")
                    else:
                        told = record(folder, f"networkx-{number}", _command(folder, f"networkx-{number}"))
                    took[kind], cpu_s[kind] = time.perf_counter() - began, _cpu_s() - cpu_before_s
                    server.process.send_signal(signal.SIGCONT)
                bare_s.append(took["bare"])
                recorded_s.append(took["recorded"])
                bare_cpu_s.append(cpu_s["bare"])
                recorded_cpu_s.append(cpu_s["recorded"])
                runs.append(_checked(folder, told, junit))
                print(
                    f"  pair {number + 1}/{pairs}: bare {took['bare']:.2f} s, recorded {took['recorded']:.2f} s, "
                    f"{runs[-1]}",
                    flush=True,
                )
    ratios = [recorded / bare for recorded, bare in zip(recorded_s, bare_s, strict=True)]
    ratio = round(statistics.median(ratios), 3)
    figures = {
        "pairs": pairs,
        "ratio_median": ratio,
        "ratios": [round(one, 3) for one in ratios],
        "bare_s_median": round(statistics.median(bare_s), 2),
        "recorded_s_median": round(statistics.median(recorded_s), 2),
        "bare_cpu_s_median": round(statistics.median(bare_cpu_s), 2),
        "recorded_cpu_s_median": round(statistics.median(recorded_cpu_s), 2),
        **{key: sum(run[key] for run in runs) for key in runs[0]},
    }
    whole = not any(figures[key] for key in ("missing", "extra", "left", "delivered_while_stopped"))
    return {"holds": ratio <= TARGET and whole, "figures": figures}


def _cpu_s() -> float:
    """Of all that has ended below us: it says more than the clock does on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _command(folder: Path, name: str) -> list[str]:
    """Bare and recorded runs do the same work, so both write the file."""
    return NETWORKX_NEW.command(f"--junitxml={folder / name}.xml")


def _bare(folder: Path, name: str) -> Counter[Any]:
    empty = folder / name
    empty.mkdir()
    subprocess.run(
        _command(folder, name), cwd=empty, env=clean_environment(), stdout=subprocess.DEVNULL, check=False
    )
    return junit_cases(folder / f"{name}.xml")


def _checked(folder: Path, told: dict[str, Any], junit: Counter[Any]) -> dict[str, int]:
    """What the recording holds once the runtime has gone on, beside what the bare run's JUnit file says."""
    data = folder / "data"
    subprocess.run(
        [SOJOURN, "record", "--data", str(data), "--", "true"],
        env=clean_environment(),
        capture_output=True,
        check=True,
    )
    wait_until(lambda: not list((data / "spool").glob("sess_*")), 60.0)
    results = anyio.run(_results, data, told["session_id"])
    recorded = recorded_cases(results, junit)
    return {
        "cases": junit.total(),
        "missing": (junit - recorded).total(),
        "extra": (recorded - junit).total(),
        "delivered_while_stopped": told["delivered"],
        "left": told["lost"] + told["refused"],
    }


async def _results(data: Path, session_id: str) -> list[dict[str, Any]]:
    async with Reader.open(data) as reader:
        lines = [line async for line in reader.events(session_id)]
    return [json.loads(line.line)["data"] for line in lines if line.type == "result.recorded"]
