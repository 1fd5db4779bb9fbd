"""What recording costs: wall time of a recorded run over that of the bare one, in alternation, median of PAIRS (5)."""

import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from ._suites import NETWORKX_NEW, clean_environment, record

TARGET = 1.10


def prove(rng: random.Random) -> dict[str, Any]:
    pairs = int(os.environ.get("PAIRS") or 5)
    ratios, bare_s, recorded_s = [], [], []
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as name:
        folder = Path(name)
        _bare(folder / "warm-up")
        for number in range(pairs):
            order = ["bare", "recorded"]
            rng.shuffle(order)
            took = {}
            for kind in order:
                began = time.perf_counter()
                if kind == "bare":
                    _bare(folder / f"bare-{number}")
                else:
                    record(folder, f"networkx-{number}", NETWORKX_NEW.command())
                took[kind] = time.perf_counter() - began
            bare_s.append(took["bare"])
            recorded_s.append(took["recorded"])
            ratios.append(took["recorded"] / took["bare"])
            print(
                f"  pair {number + 1}/{pairs}: bare {took['bare']:.2f} s, recorded {took['recorded']:.2f} s",
                flush=True,
            )
    ratio = round(statistics.median(ratios), 3)
    figures = {
        "pairs": pairs,
        "ratio_median": ratio,
        "ratios": [round(ratio, 3) for ratio in ratios],
        "bare_s_median": round(statistics.median(bare_s), 2),
        "recorded_s_median": round(statistics.median(recorded_s), 2),
    }
    return {"holds": ratio <= TARGET, "figures": figures}


def _bare(empty: Path) -> None:
    empty.mkdir()
    subprocess.run(
        NETWORKX_NEW.command(), cwd=empty, env=clean_environment(), stdout=subprocess.DEVNULL, check=False
    )
