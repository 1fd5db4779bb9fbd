"""Keys of the mirror deleted or altered by somebody else: each is seen, told and made right again, in sessions that report and
in those that rest, and whatever holds a place that is ours is left as it is and said.

Reporting sessions are to be right again within 5 s of 64 events, resting ones within 5 s of a minute: so often it is looked
whether the mirror is what it is taken for.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from structlog.testing import capture_logs

from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.mirror_keys import EVENTS, NAMESPACE, session_key
from sojourn.runtime.telemetry import configure_logging
from sojourn.runtime.tuning import tune_process

from ..support.fleet import Fleet, Reporter, fleet_of
from ..support.redis import Server, serving
from ..support.wait import await_until

SPARE = 20  # sessions that report, and that nothing is done to
SAID = 60  # events of each before
SEEN_WITHIN = 64  # events of the session, or a minute
LEVEL_S_MAX = 5.0
RESTING_LEVEL_S_MAX = 65.0


@frozen
class Alteration:
    """What somebody does to the keys of a session.

    Attributes:
        foreign: something that is not ours takes a place of ours.
        overwritten: the next update makes it right, as it would without it.
    """

    name: str
    commands: Callable[[str, int], list[tuple[Any, ...]]]
    foreign: bool = False
    overwritten: bool = False


ALTERATIONS = (
    Alteration("hash deleted", lambda key, seq: [("DEL", key)]),
    Alteration("stream deleted", lambda key, seq: [("DEL", f"{key}:events")]),
    Alteration("both deleted", lambda key, seq: [("DEL", key, f"{key}:events")]),
    Alteration("entry deleted", lambda key, seq: [("XDEL", f"{key}:events", f"{seq - 20}-0")]),
    Alteration("last entry deleted", lambda key, seq: [("XDEL", f"{key}:events", f"{seq}-0")]),
    Alteration("entries trimmed", lambda key, seq: [("XTRIM", f"{key}:events", "MAXLEN", 5)]),
    Alteration("entry added", lambda key, seq: [("XADD", f"{key}:events", f"{seq + 10_000}-0", "e", "x")]),
    Alteration("seq lowered", lambda key, seq: [("HSET", key, "@seq", seq - 30)]),
    Alteration("seq raised", lambda key, seq: [("HSET", key, "@seq", seq + 100_000)]),
    Alteration("seq no number", lambda key, seq: [("HSET", key, "@seq", "x")]),
    Alteration("seq deleted", lambda key, seq: [("HDEL", key, "@seq")]),
    Alteration("epoch lowered", lambda key, seq: [("HSET", key, "@epoch", 0)], overwritten=True),
    Alteration("epoch raised", lambda key, seq: [("HSET", key, "@epoch", 1_000)]),
    Alteration("epoch no number", lambda key, seq: [("HSET", key, "@epoch", "x")], overwritten=True),
    Alteration("hash replaced", lambda key, seq: [("DEL", key), ("SET", key, "not ours")], foreign=True),
    Alteration(
        "stream replaced",
        lambda key, seq: [("DEL", f"{key}:events"), ("SET", f"{key}:events", "not ours")],
        foreign=True,
    ),
)


def prove(rng: random.Random) -> dict[str, Any]:
    """RUNS times (1); SERVER is valkey (default) or redis."""
    runs, name = int(os.environ.get("RUNS") or 1), os.environ.get("SERVER") or "valkey"
    configure_logging(level="error")
    tune_process()
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as folder, serving(name) as server:
        found = asyncio.run(alter(Path(folder), server, ALTERATIONS, ALTERATIONS, runs, rng))
    found["figures"]["server"] = name
    return found


async def alter(
    folder: Path,
    server: Server,
    of_reporting: Sequence[Alteration],
    of_resting: Sequence[Alteration],
    runs: int,
    rng: random.Random,
    spare: int = SPARE,
) -> dict[str, Any]:
    """Each alteration of a session of its own, `runs` times; beside them `spare` sessions report."""
    took: dict[str, list[float]] = {}
    wrong: list[str] = []
    settings = Settings(data_dir=folder / "data", mirror=server.unix)
    with capture_logs() as logs:
        async with Runtime.open(settings) as runtime, fleet_of(runtime, server) as fleet:
            reporting = await fleet.add(len(of_reporting) + spare, rng)
            resting = await fleet.add(len(of_resting), rng)
            for reporter in reporting + resting:
                for _ in range(SAID):
                    await reporter.tell()
            await fleet.reached()
            struck = [*zip(of_reporting, reporting, strict=False)]
            left = [*zip(of_resting, resting, strict=True)]
            async with fleet.reporting(reporting):
                for _ in range(runs):
                    for one in struck:
                        wrong += await _round(fleet, server, [one], "reporting", LEVEL_S_MAX, took)
                    wrong += await _round(fleet, server, left, "resting", RESTING_LEVEL_S_MAX, took)
                await fleet.rest()
            wrong += await fleet.lost()
            statistics = runtime.statistics().mirror
    assert statistics is not None
    told = {entry["session"] for entry in logs if entry["event"] == "mirror.foreign_key"}
    untold = [
        f"{alteration.name}: not logged"
        for alteration, reporter in struck + left
        if alteration.foreign and reporter.session_id not in told
    ]
    rewritten = runs * sum(
        not alteration.foreign and not alteration.overwritten for alteration, _ in struck + left
    )
    if statistics.rewritten < rewritten:
        untold.append(f"{statistics.rewritten} of {rewritten} sent whole, by the statistics")
    figures = {
        "alterations": runs * len(struck + left),
        "seconds_to_level": {name: [round(one, 2) for one in some] for name, some in took.items()},
        "rewritten": statistics.rewritten,
        "altered": statistics.altered,
        "wrong": wrong[:20],
        "untold": untold,
    }
    return {"holds": not wrong and not untold, "figures": figures}


async def _round(
    fleet: Fleet,
    server: Server,
    struck: Sequence[tuple[Alteration, Reporter]],
    which: str,
    within_s: float,
    took: dict[str, list[float]],
) -> list[str]:
    """What is still wrong with these sessions so long after they were altered, all at once, while others report."""
    wrong = []
    began_s = time.monotonic()
    for alteration, reporter in struck:
        await _alter(server, alteration, reporter)
    if which == "reporting":
        told = len(struck[0][1].told)
        await await_until(lambda: len(struck[0][1].told) > told + SEEN_WITHIN)
    for alteration, reporter in struck:
        until_s = (time.monotonic() if which == "reporting" else began_s) + within_s
        found = await _right_again(fleet, server, alteration, reporter, until_s)
        wrong += [f"{alteration.name}, {which}: {one}" for one in found]
        took.setdefault(f"{alteration.name}, {which}", []).append(time.monotonic() - began_s)
        print(f"  {alteration.name}, {which}: {time.monotonic() - began_s:.2f} s {found}", file=sys.stderr)
    return wrong


async def _alter(server: Server, alteration: Alteration, reporter: Reporter) -> None:
    key = session_key(NAMESPACE, reporter.session_id)
    for command in alteration.commands(key, reporter.told[-1]):
        answer = await asyncio.to_thread(server.run, *command)
        assert not isinstance(answer, Exception), (alteration.name, answer)


async def _right_again(
    fleet: Fleet, server: Server, alteration: Alteration, reporter: Reporter, until_s: float
) -> list[str]:
    """What is wrong with the session at that time at the latest; what is foreign is looked for and taken away first."""
    await fleet.rest()
    try:
        if alteration.foreign:
            key = session_key(NAMESPACE, reporter.session_id)
            place = key if alteration.name.startswith("hash") else f"{key}{EVENTS}"
            if await asyncio.to_thread(server.run, "GET", place) != b"not ours":
                return ["what stood there was touched"]
            await asyncio.to_thread(server.run, "DEL", place)
            until_s = time.monotonic() + RESTING_LEVEL_S_MAX
        return await fleet.level_of([reporter.session_id], until_s)
    finally:
        fleet.go()
