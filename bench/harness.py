"""Runs a scenario and its ceiling in alternation, in one process, and reports medians and their ratio.

The machine is shared and noisy, so rates are ratios first: each round measures ceiling and scenario one after the other,
and `ratio_to_ceiling` is the median of the rounds' ratios. What was measured is kept when a round breaks off.
"""

import asyncio
import gc
import importlib
import importlib.util
import pkgutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from attrs import asdict, evolve, field, frozen

from sojourn.actors.errors import SojournError
from sojourn.actors.session.model import Ack

from . import scenarios
from .environment import environment as environment  # noqa: PLC0414 - the proofs take it from here
from .figures import over_rounds, percentile, percentiles, summary

LOOPS = ("auto", "asyncio", "uvloop")
ROUNDS = 5  # where neither the command nor the scenario says how many


class Unavailable(SojournError):
    """A scenario cannot be measured here: the message says what it needs."""

    code = "bench_unavailable"


class BrokenOff(SojournError):
    """A measurement could not be carried to its end: the message says why."""

    code = "bench_broken_off"


@frozen(kw_only=True)
class Options:
    """What a run may vary. None: the scenario's own default.

    Attributes:
        sessions: how many sessions or actors take part.
        clients: how many ask at once.
        operations: how many operations a round.
        rounds: how often ceiling and scenario are measured in turn.
        rate_per_s: of an open-loop scenario: how many operations are offered a second.
        duration_s: how long an open-loop scenario, or the soak, goes on.
        ack: the level that durable asks ask for.
        redis: the URL of a server for the mirror; None is a private one.
        warm_up: one round first that is not counted.
        folder: what the scenario's `prepare` made.
    """

    sessions: int | None = None
    clients: int | None = None
    operations: int | None = None
    rounds: int = ROUNDS
    rate_per_s: float | None = None
    duration_s: float | None = None
    ack: Ack = Ack.DURABLE
    redis: str | None = None
    warm_up: bool = True
    folder: Path | None = None

    def described(self) -> dict[str, Any]:
        """JSON values, of what makes a difference to the figures."""
        found = asdict(self) | {"ack": self.ack.value}
        del found["folder"], found["warm_up"]
        return found


@frozen(kw_only=True)
class Measured:
    """One measurement.

    Attributes:
        operations: how many were done in `elapsed_s`.
        cpu_s: CPU time of the process that did the work.
        latencies_us: one an answered operation, in microseconds; empty: nothing was answered.
        lag_us: how late the event loop was, looked at every 10 ms.
        processes_cpu_s: CPU time of each other process, by name.
        more: whatever else the scenario found.
        failed: why it did not hold although it was measured to its end; None where it did.
    """

    operations: int
    elapsed_s: float
    cpu_s: float
    latencies_us: Sequence[float] = field(factory=list, repr=False)
    lag_us: Sequence[float] = field(factory=list, repr=False)
    processes_cpu_s: dict[str, float] = field(factory=dict)
    more: dict[str, Any] = field(factory=dict)
    failed: str | None = None

    @property
    def per_s(self) -> float:
        return self.operations / self.elapsed_s

    def figure(self, name: str) -> float:
        """What a scenario is judged by: `per_s`, `p99_us`, `cpu_us` (an operation), `elapsed_s`, or one of `more`."""
        if name == "per_s":
            return self.per_s
        if name == "p99_us":
            return percentile(sorted(self.latencies_us), 0.99)
        if name == "cpu_us":
            return self.cpu_s / self.operations * 1e6
        return self.elapsed_s if name == "elapsed_s" else float(self.more[name])


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


def rounds_of(name: str) -> int:
    """How many there are where the command does not say."""
    found: int = getattr(load(name), "ROUNDS", ROUNDS)
    return found


def loop_name(asked: str = "auto") -> str:
    """Which event loop `asked` means: `auto` is uvloop where it is installed, as in `sojourn serve`.

    Raises:
        Unavailable: uvloop was asked for, and is not installed.
    """
    there = importlib.util.find_spec("uvloop") is not None
    if asked == "uvloop" and not there:
        raise Unavailable("uvloop is not installed; pip install 'sojourn[uvloop]', or --loop asyncio")
    return "uvloop" if there and asked != "asyncio" else "asyncio"


def execute(measure: Callable[[Options], Awaitable[Any]], options: Options, loop: str = "asyncio") -> Any:
    """Run one measurement on a new event loop."""

    async def once() -> Any:
        found = await measure(options)
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # Ctrl-C came within its last step, and would be lost
            raise asyncio.CancelledError
        return found

    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(once())
    except asyncio.CancelledError as error:  # by Ctrl-C, as the task began: nobody else cancels it
        raise KeyboardInterrupt from error
    except RuntimeError as error:
        # After Ctrl-C within one of its callbacks uvloop takes itself for running still, and cannot be closed.
        before: BaseException | None = error
        while before is not None and not isinstance(before, KeyboardInterrupt):
            before = before.__context__
        if before is not None:
            raise KeyboardInterrupt from error
        raise


class Run:
    """One scenario's rounds. `result` may be asked for at any time, also when a round was broken off.

    Args:
        loop: `asyncio` or `uvloop`.
    """

    def __init__(self, name: str, options: Options, loop: str = "asyncio") -> None:
        self.name = name
        self.scenario = load(name)
        self.broken_off: str | None = None
        self._options = options
        self._loop = loop
        self._ceilings: list[Measured] = []
        self._measured: list[Measured] = []

    @property
    def compared(self) -> str:
        """By which figure the scenario is held against its ceiling."""
        return getattr(self.scenario, "COMPARED", "per_s")

    @property
    def lower_is_better(self) -> bool:
        return self.compared != "per_s"

    @property
    def rounds_done(self) -> int:
        return len(self._measured)

    def carry_out(self, said: Callable[[str], None]) -> None:
        """All rounds. `said` is told of each. An error of a store or of the scenario ends them, and `broken_off` says
        which; anything else, Ctrl-C too, leaves as it came, and what was measured stays.

        Raises:
            Unavailable: nothing was measured, and why it cannot be.
        """
        options = self._options
        try:
            with self._prepared(options) as options:
                if options.warm_up and getattr(self.scenario, "WARM_UP", True):
                    # Imports, caches, the disk's first allocations.
                    execute(
                        getattr(self.scenario, "both", None) or self.scenario.measure, options, self._loop
                    )
                for number in range(options.rounds):
                    self._round(options)
                    said(f"{self.name} round {number + 1}/{options.rounds}: {self._told()}")
                    if (failed := self._measured[-1].failed) is not None:
                        raise BrokenOff(failed)
        except Unavailable:
            raise
        except (SojournError, OSError) as error:
            self.broken_off = f"{type(error).__name__}: {error}"
        except BaseExceptionGroup as group:
            told, other = group.split((SojournError, OSError))
            if other is not None or told is None:
                raise
            self.broken_off = "; ".join(f"{type(error).__name__}: {error}" for error in told.exceptions)

    def _prepared(self, options: Options) -> AbstractContextManager[Options]:
        prepare = getattr(self.scenario, "prepare", None)
        return nullcontext(options) if prepare is None else _prepared(prepare, options, self._loop)

    def _round(self, options: Options) -> None:
        gc.collect()
        both = getattr(self.scenario, "both", None)
        if both is not None:
            real, ceiling = execute(both, options, self._loop)
        else:
            ceiling = execute(self.scenario.ceiling, options, self._loop)
            gc.collect()
            real = execute(self.scenario.measure, options, self._loop)
        for one in (real, ceiling):
            if one.operations <= 0 or one.elapsed_s <= 0 or one.figure(self.compared) <= 0:
                raise BrokenOff(
                    f"too little was done to measure ({one}); give more --sessions or --operations"
                )
        # Both at once, or an interruption between the two would leave half a round.
        self._ceilings, self._measured = [*self._ceilings, ceiling], [*self._measured, real]

    def _ratios(self) -> list[float]:
        name = self.compared
        return [
            real.figure(name) / ceiling.figure(name)
            for real, ceiling in zip(self._measured, self._ceilings, strict=True)
        ]

    def _told(self) -> str:
        name, real, ceiling = self.compared, self._measured[-1], self._ceilings[-1]
        unit = f" {self.scenario.UNIT}/s" if name == "per_s" else f" {name}"
        return (
            f"{real.figure(name):,.{0 if real.figure(name) >= 100 else 2}f}{unit}, "
            f"ceiling {ceiling.figure(name):,.{0 if ceiling.figure(name) >= 100 else 2}f}, "
            f"ratio {self._ratios()[-1]:.2f}"
        )

    def result(self) -> dict[str, Any] | None:
        """JSON values; None where not one round was finished."""
        if not self._measured:
            return None
        measured, ceilings, name = self._measured, self._ceilings, self.compared
        ratios = self._ratios()
        return {
            "scenario": self.name,
            "what": " ".join((self.scenario.__doc__ or "").split()),
            "unit": self.scenario.UNIT,
            "options": self._options.described(),
            "loop": self._loop,
            "compared": {"figure": name, "better": "lower" if self.lower_is_better else "higher"},
            "figure": summary([one.figure(name) for one in measured]),
            "ceiling_figure": summary([one.figure(name) for one in ceilings]),
            "ratio_to_ceiling": summary(ratios),
            "per_s": summary([one.per_s for one in measured]),
            "ceiling_per_s": summary([one.per_s for one in ceilings]),
            "cpu_us_per_operation": summary([one.figure("cpu_us") for one in measured]),
            "processes_cpu_us_per_operation": _processes(measured),
            "latency_us": over_rounds([percentiles(one.latencies_us) for one in measured]),
            "ceiling_latency_us": over_rounds([percentiles(one.latencies_us) for one in ceilings]),
            "lag_us": over_rounds([percentiles(one.lag_us) for one in measured]),
            "more": measured[-1].more,
            "rounds": [
                {
                    "figure": real.figure(name),
                    "ceiling_figure": ceiling.figure(name),
                    "ratio_to_ceiling": ratio,
                    "latency_us": percentiles(real.latencies_us),
                    "more": real.more,
                }
                for real, ceiling, ratio in zip(measured, ceilings, ratios, strict=True)
            ],
            "broken_off": self.broken_off,
            "environment": environment(),
        }


def _processes(measured: Sequence[Measured]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in measured:
        for name, cpu_s in one.processes_cpu_s.items():
            found.setdefault(name, []).append(cpu_s / one.operations * 1e6)
    return {name: summary(values)["median"] for name, values in found.items()}


@contextmanager
def _prepared(
    prepare: Callable[[Options, str], AbstractContextManager[Path]], options: Options, loop: str
) -> Iterator[Options]:
    with prepare(options, loop) as folder:
        yield evolve(options, folder=folder)
