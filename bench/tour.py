"""Scenarios one after the other: with a progress bar, what each said, and whatever was measured when something breaks."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import tables
from .harness import Options, Run, Unavailable

Stop = tuple[str, Options]
Said = Callable[[str], None]


def _stop(name: str, **changed: Any) -> Stop:
    return name, Options(**{"rounds": 3} | changed)


# Every scenario in small, and what the pictures need: durable asks over concurrency, memory over sessions.
STOPS: tuple[Stop, ...] = (
    _stop("tell", rounds=5),
    _stop("round-robin", rounds=5),
    _stop("spawn", rounds=5),
    _stop("ask", rounds=5),
    _stop("durable-ask", rounds=5, operations=40_000),
    _stop("durable-ask", sessions=1, operations=1_000),
    _stop("durable-ask", sessions=16, operations=10_000),
    _stop("durable-ask", sessions=2_048, operations=60_000),
    _stop("durable-open", duration_s=2.0),
    _stop("mirror", operations=30_000),
    _stop("mirrored-ask", operations=20_000),
    _stop("mirrored-open", duration_s=2.0),
    _stop("live-sessions", operations=20_000),
    _stop("mixed", operations=30_000, duration_s=2.0),
    _stop("mixed-short", operations=30_000, duration_s=2.0),
    _stop("mixed", rounds=1, sessions=10_000, operations=30_000, duration_s=2.0),
    _stop("open-sessions", rounds=2, duration_s=6.0),
    _stop("crowd", rounds=1, sessions=10_000, duration_s=2.0),
    _stop("crowd-passivated", rounds=1, sessions=10_000, duration_s=2.0),
    _stop("crowd-cold", rounds=1, sessions=10_000, duration_s=2.0),
    _stop("activation", sessions=2_000),
    _stop("recovery", rounds=3),
    _stop("http-single", operations=10_000),
    _stop("http-batch", operations=40_000),
    _stop("sse", rounds=2, operations=100),
    _stop("memory", rounds=1, sessions=1_000),
    _stop("memory", rounds=1, sessions=4_000),
    _stop("memory", rounds=1),
)


def carry_out(
    stops: Sequence[Stop],
    loop: str,
    *,
    said: Said,
    keep: Callable[[list[dict[str, Any]]], None] = lambda _: None,
) -> tuple[int, list[dict[str, Any]]]:
    """Run them. Returns the exit code (1 where a scenario broke off, 130 after Ctrl-C) and every result there is, those of
    scenarios that broke off after a finished round too.

    Args:
        said: is told of each round, and of what was skipped or broke off.
        keep: is given all results so far after each scenario: what ends this process later costs only what follows.
    """
    results: list[dict[str, Any]] = []
    code = 0
    with _progress(sum(options.rounds for _, options in stops), said) as (say, advance):
        for name, options in stops:
            run = Run(name, options, loop)

            def told(text: str, name: str = name) -> None:
                advance(name)
                say(text)

            try:
                run.carry_out(told)
            except Unavailable as why:
                say(f"{name}: skipped: {why}")
            except KeyboardInterrupt:
                run.broken_off = "interrupted"
                code = 130
            result = run.result()
            if result is not None:
                results.append(result)
                keep(results)
                print(tables.line(result), flush=True)
            if run.broken_off is not None:
                kept = f"; {run.rounds_done} of {options.rounds} rounds are kept"
                say(f"{name}: broken off: {run.broken_off}{kept}")
                if code == 130:
                    break
                code = 1
    return code, results


@contextlib.contextmanager
def _progress(rounds: int, said: Said) -> Iterator[tuple[Said, Said]]:
    """Where standard error is a terminal, a bar with what is said above it. Yields how to say something, and how to count a
    round of a scenario."""
    if not sys.stderr.isatty():
        yield said, lambda name: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:18}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("warming up", total=rounds)
        yield (
            lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
            lambda name: bar.update(task, advance=1, description=name),
        )
