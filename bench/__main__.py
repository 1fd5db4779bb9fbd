"""`python -m bench list | run | compare | report | profile | peers | tour | readme`, from the root of a checkout."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from attrs import evolve
from cyclopts import Parameter
from cyclopts.validators import Number

from sojourn.actors.errors import SojournError
from sojourn.actors.session.model import Ack
from sojourn.runtime.telemetry import configure_logging
from sojourn.runtime.tuning import tune_process

from . import harness, tables
from .results import RESULTS, read_results, write_results
from .tour import STOPS, carry_out

app = cyclopts.App(
    name="bench", help="Measures Sojourn on this machine; each scenario beside its own ceiling."
)
Whole = Annotated[int | None, Parameter(validator=Number(gte=1))]
Real = Annotated[float | None, Parameter(validator=Number(gt=0))]


@app.command(name="list")
def list_() -> None:
    """The scenarios, and what each measures."""
    for name in harness.names():
        print(f"{name:18} {' '.join((harness.load(name).__doc__ or '').split())}")


@app.command
def run(
    *scenarios: str,
    sessions: Whole = None,
    clients: Whole = None,
    operations: Whole = None,
    rounds: Whole = None,
    rate: Real = None,
    duration: Real = None,
    ack: Ack = Ack.DURABLE,
    redis: str | None = None,
    warm_up: bool = True,
    loop: Literal["auto", "asyncio", "uvloop"] = "auto",
    soak: bool = False,
    json: Path | None = None,
) -> int:
    """Run scenarios (all of them where none is named) and print medians and ratios.

    Args:
        sessions: how many sessions or actors take part.
        clients: how many asks are under way at once.
        operations: how many operations a round.
        rounds: how often ceiling and scenario are measured in turn; 5, and a soak once.
        rate: operations offered a second, in open-loop scenarios.
        duration: how many seconds an open-loop scenario or the soak goes on.
        ack: the level that durable asks ask for.
        redis: the URL of a server for the mirror; a private one where none is named.
        warm_up: one round first that is not counted.
        loop: the event loop of scenarios in process; auto is uvloop where it is installed.
        soak: run the soak too, or alone where no scenario is named; an hour unless --duration says otherwise.
        json: write everything to this file, what was measured before an interruption too.

    Returns:
        0; 1 where a scenario broke off; 2 for a mistake on the command line; 130 after Ctrl-C.
    """
    options = harness.Options(
        sessions=sessions,
        clients=clients,
        operations=operations,
        rate_per_s=rate,
        duration_s=duration,
        ack=ack,
        redis=redis,
        warm_up=warm_up,
    )
    try:
        stops = [
            (name, evolve(options, rounds=rounds or harness.rounds_of(name)))
            for name in chosen(scenarios, soak=soak)
        ]
        loop_name = harness.loop_name(loop)
    except (ValueError, SojournError) as mistake:
        return _fail(str(mistake))
    _quiet()

    def keep(results: list[dict[str, Any]]) -> None:
        if json is not None:
            write_results(json, results)

    code, results = carry_out(stops, loop_name, said=_say, keep=keep)
    if json is not None and results:
        _say(f"bench: written to {json}")
    return code


def chosen(scenarios: tuple[str, ...], *, soak: bool) -> list[str]:
    """Which scenarios are meant, each that needs a word of its own only with that word. Raises ValueError."""
    kept_out = {name for name in harness.names() if getattr(harness.load(name), "NEEDS", None) == "soak"}
    if scenarios:
        for name in scenarios:
            harness.load(name)
        if (refused := sorted(kept_out & set(scenarios))) and not soak:
            raise ValueError(f"{refused[0]} takes an hour: say --soak too, and --duration for less")
        return list(scenarios)
    return sorted(kept_out) if soak else [name for name in harness.names() if name not in kept_out]


@app.command
def tour(*, results: Path = RESULTS, loop: Literal["auto", "asyncio", "uvloop"] = "auto") -> int:
    """Every scenario in small, in about five minutes; writes results, report.html and summary.md to a folder.

    Args:
        results: the folder, made when it is not there.
        loop: as in `run`.

    Returns:
        As `run`.
    """
    try:
        loop_name = harness.loop_name(loop)
    except SojournError as mistake:
        return _fail(str(mistake))
    _quiet()
    code, found = carry_out(
        STOPS, loop_name, said=_say, keep=lambda some: write_results(results / "tour.json", some)
    )
    if found:
        report(results=results)
        (results / "summary.md").write_text(tables.targets_table(found))
        _say(f"bench: written to {results}: tour.json, report.html, summary.md")
    return code


@app.command
def compare(old: Path, new: Path) -> int:
    """Two result files, scenario by scenario: how far apart their rounds lie, and whether that is shown.

    Args:
        old: a file that `run --json` or `tour` wrote.
        new: another one.

    Returns:
        0; 2 where a file cannot be read.
    """
    try:
        before, after = read_results(old), read_results(new)
    except ValueError as mistake:
        return _fail(str(mistake))
    print(tables.comparison(before, after))
    return 0


@app.command
def report(*, results: Path = RESULTS) -> int:
    """All result files of a folder as one HTML page with pictures, `report.html` in it.

    Args:
        results: the folder.

    Returns:
        0; 2 where there is nothing to report.
    """
    from .report import page

    try:
        found = [one for path in sorted(results.glob("*.json")) for one in read_results(path)]
    except ValueError as mistake:
        return _fail(str(mistake))
    if not found:
        return _fail(f"there are no results in {results}; make some: python -m bench tour")
    (results / "report.html").write_text(page(found))
    _say(f"bench: written to {results / 'report.html'}")
    return 0


@app.command
def profile(
    scenario: str,
    *,
    sessions: Whole = None,
    clients: Whole = None,
    operations: Whole = None,
    loop: Literal["auto", "asyncio", "uvloop"] = "auto",
    json: Path | None = None,
) -> int:
    """Where a scenario's CPU goes, by stage and by function: its threads sampled a thousand times a second. Of a scenario
    over HTTP, the server's.

    Args:
        scenario: which.
        sessions: as in `run`.
        clients: as in `run`.
        operations: as in `run`.
        loop: as in `run`.
        json: write it to this file; `report` shows those in its folder.

    Returns:
        As `run`.
    """
    from .sampling import profiled

    options = harness.Options(sessions=sessions, clients=clients, operations=operations)
    try:
        harness.load(scenario)
        loop_name = harness.loop_name(loop)
    except (ValueError, SojournError) as mistake:
        return _fail(str(mistake))
    _quiet()
    try:
        found = profiled(scenario, options, loop_name)
    except SojournError as error:
        _say(f"bench: {scenario}: {error}")
        return 1
    print(tables.profile_table(found))
    if json is not None:
        write_results(json, [found])
    return 0


@app.command
def peers(*names: str, rounds: Annotated[int, Parameter(validator=Number(gte=1))] = 3) -> int:
    """The same jobs done by other actor libraries, each in an environment of its own that uv makes, in turn with ours.

    Args:
        names: which (pykka, xoscar, thespian, ray); all of them where none is named.
        rounds: how often each is measured, in turn with ours.

    Returns:
        0, also where one could not be installed, which is said; 2 for a name that is not known.
    """
    from .peers import measure_peers

    _quiet()
    try:
        found = measure_peers(names, rounds, said=_say)
    except ValueError as mistake:
        return _fail(str(mistake))
    print(tables.peers_table(found))
    write_results(RESULTS / "peers.json", found)
    return 0


@app.command
def readme(*, results: Path = RESULTS) -> int:
    """Write the figures of the README and of docs/performance.md anew, from the results of `tour` and, where they measured
    the same in full, from those of `run --json` beside them.

    Args:
        results: the folder.

    Returns:
        0; 2 where there are no results, or the papers have no place for them.
    """
    from .papers import renew

    try:
        toured = results / "tour.json"
        others = sorted(set(results.glob("*.json")) - {toured})
        found = [one for path in (toured, *others) for one in read_results(path)]
        for path in renew([one for one in found if "ratio_to_ceiling" in one]):
            _say(f"bench: {path} has the figures of {results}")
    except ValueError as mistake:
        return _fail(str(mistake))
    return 0


def _quiet() -> None:
    configure_logging(level="error")
    tune_process()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(text: str) -> int:
    _say(f"bench: {text}")
    return 2


if __name__ == "__main__":
    sys.exit(app())
