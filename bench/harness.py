"""Runs a scenario and its ceiling in alternation, in one process, and reports medians and their ratio.

The machine is shared and noisy, so rates are ratios first: each round measures ceiling and scenario one after the other,
and `ratio_to_ceiling` is the median of the rounds' ratios.
"""

import gc
import importlib
import os
import pkgutil
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any, Self

from attrs import asdict, field, frozen

from . import scenarios


@frozen(kw_only=True)
class Options:
    """What a run may vary. `sessions`, `clients` and `operations` of None: the scenario's own default."""

    sessions: int | None = None
    clients: int | None = None
    operations: int | None = None
    rounds: int = 5


@frozen(kw_only=True)
class Measured:
    """One measurement: `operations` done in `elapsed_s`, the CPU time of this process meanwhile, latencies in
    microseconds (None: not an answered operation), and whatever else the scenario found."""

    operations: int
    elapsed_s: float
    cpu_s: float
    latencies_us: list[float] = field(factory=list, repr=False)
    more: dict[str, Any] = field(factory=dict)

    @property
    def per_s(self) -> float:
        return self.operations / self.elapsed_s


class Stopwatch:
    """Wall and CPU time between entering and leaving."""

    def __enter__(self) -> Self:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed_s = time.perf_counter() - self._wall
        self.cpu_s = time.process_time() - self._cpu


def names() -> list[str]:
    """Every scenario there is."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(scenarios.__path__))


def load(name: str) -> ModuleType:
    """Raises ValueError, which names those there are."""
    if name not in names():
        raise ValueError(f"there is no scenario {name!r}; one of: {', '.join(names())}")
    return importlib.import_module(f".scenarios.{name.replace('-', '_')}", __package__)


def run(
    name: str,
    options: Options,
    *,
    execute: Callable[[Callable[[Options], Awaitable[Measured]], Options], Measured],
    said: Callable[[str], None],
) -> dict[str, Any]:
    """Run one scenario; returns its result as JSON values.

    Args:
        execute: runs one async measurement to its end.
        said: is told of each round.
    """
    scenario = load(name)
    ceilings, measured, ratios = [], [], []
    execute(scenario.measure, options)  # warm-up: imports, caches, the disk's first allocations
    for number in range(options.rounds):
        gc.collect()
        ceiling = execute(scenario.ceiling, options)
        gc.collect()
        real = execute(scenario.measure, options)
        ceilings.append(ceiling)
        measured.append(real)
        ratios.append(real.per_s / ceiling.per_s)
        said(
            f"{name} round {number + 1}/{options.rounds}: {real.per_s:,.0f} {scenario.UNIT}/s, "
            f"ceiling {ceiling.per_s:,.0f}, ratio {ratios[-1]:.2f}"
        )
    return {
        "scenario": name,
        "what": " ".join((scenario.__doc__ or "").split()),
        "unit": scenario.UNIT,
        "options": asdict(options),
        "per_s": _summary([one.per_s for one in measured]),
        "ceiling_per_s": _summary([one.per_s for one in ceilings]),
        "ratio_to_ceiling": _summary(ratios),
        "cpu_us_per_operation": _summary([one.cpu_s / one.operations * 1e6 for one in measured]),
        "latency_us": _percentiles([latency for one in measured for latency in one.latencies_us]),
        "ceiling_latency_us": _percentiles([latency for one in ceilings for latency in one.latencies_us]),
        "more": measured[-1].more,
        "environment": environment(),
    }


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def _percentiles(latencies: list[float]) -> dict[str, float] | None:
    if not latencies:
        return None
    ordered = sorted(latencies)
    last = len(ordered) - 1
    points = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: round(ordered[round(share * last)], 1) for name, share in points.items()}


def environment() -> dict[str, Any]:
    """What a figure needs beside it: machine, versions, commit."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "python": sys.version.split()[0],
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "sojourn": version("sojourn"),
        "commit": git.stdout.strip() or None,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
