"""`python -m bench list`, `python -m bench run SCENARIO... [--json FILE]`."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import cyclopts

from sojourn.runtime.tuning import tune_process

from . import harness

app = cyclopts.App(
    name="bench", help="Measures Sojourn on this machine; each scenario beside its own ceiling."
)


@app.command(name="list")
def list_() -> None:
    """The scenarios, and what each measures."""
    for name in harness.names():
        print(f"{name:14} {' '.join((harness.load(name).__doc__ or '').split())}")


@app.command
def run(
    *scenarios: str,
    sessions: int | None = None,
    clients: int | None = None,
    operations: int | None = None,
    rounds: int = 5,
    json: Path | None = None,
) -> int:
    """Run scenarios (all of them where none is named) and print medians and ratios.

    Args:
        sessions: how many sessions or actors take part.
        clients: how many asks are under way at once.
        operations: how many operations a round.
        rounds: how often ceiling and scenario are measured in turn.
        json: write everything to this file.
    """
    tune_process()
    options = harness.Options(sessions=sessions, clients=clients, operations=operations, rounds=rounds)
    results = []
    try:
        for name in scenarios or harness.names():
            results.append(harness.run(name, options, execute=_execute, said=_say))
    except ValueError as mistake:
        _say(f"bench: {mistake}")
        return 2
    except KeyboardInterrupt:
        _say("bench: interrupted; what was measured so far follows")
    for result in results:
        print(_line(result))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(_dump(results) + "\n")
    return 0


def _execute(
    measure: Callable[[harness.Options], Awaitable[harness.Measured]], options: harness.Options
) -> harness.Measured:
    async def once() -> harness.Measured:
        return await measure(options)

    return asyncio.run(once())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _dump(results: list[dict[str, Any]]) -> str:
    return json.dumps(results, indent=2, sort_keys=True)


def _line(result: dict[str, Any]) -> str:
    line = (
        f"{result['scenario']:14} {result['per_s']['median']:>12,.0f} {result['unit']}/s   "
        f"ceiling {result['ceiling_per_s']['median']:>12,.0f}   ratio {result['ratio_to_ceiling']['median']:.2f} "
        f"({result['ratio_to_ceiling']['min']:.2f}-{result['ratio_to_ceiling']['max']:.2f})"
    )
    if latency := result["latency_us"]:
        line += f"   p50 {latency['p50']:,.0f} us  p99 {latency['p99']:,.0f} us"
    for name, value in result["more"].items():
        line += f"   {name} {value:,.0f}" if isinstance(value, int | float) else f"   {name} {value}"
    return line


if __name__ == "__main__":
    sys.exit(app())
