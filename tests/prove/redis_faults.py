"""A mirror whose server is killed, stopped, flushed, filled, cut off, and put behind a bad network, under 200 sessions that
report as fast as they are answered: nothing acknowledged is lost at its level, nobody waits for the mirror who did not ask
to, and after each fault the mirror says again what the history says.

The sessions run in this process, so the gaps between acknowledgements are those that a host would see; what a fault costs is
to be read beside the same without one (`none`). Acknowledgements `mirrored` are compared with the server itself, past every
fault, at the moment of the answer.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen

from sojourn.actors.session.model import Ack
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.telemetry import configure_logging
from sojourn.runtime.tuning import tune_process

from ..support import redis_faults as faults
from ..support.fleet import MIB, Fleet, fleet_of
from ..support.processor import lost_s
from ..support.proxy import proxied
from ..support.redis import Server, serving
from ..support.redis_faults import for_s

LEVEL_S_MAX = 5.0
GAP_MS_MAX = 100.0
GROWTH_MIB_MAX = 256.0


@define
class Suffered:
    """One fault, and what came of it.

    `reached_s` is from the server's return until the mirror had everything acknowledged by then, while more came, and
    `equal_s` from the moment when all sessions rested until it said in every byte what the history says. `gap_ms` is the longest
    time without a durable acknowledgement, from the fault's begin until the mirror had caught up. Those called `own` are the
    same without the time in which this thread was ready and got no processor, or the host of the virtual machine took one
    away; it is the clock's that are judged. `reached_cpu_s` is what this process, the load included, computed meanwhile.
    """

    name: str
    gap_ms: float
    own_gap_ms: float
    reached_s: float
    reached_own_s: float
    reached_cpu_s: float
    equal_s: float
    growth_mib: float
    acknowledged: int
    counts: dict[str, int]
    refusal_s: float
    differences: list[str] = field(factory=list)


@frozen
class Scale:
    """How much: reporters, and how long things last."""

    durable: int
    mirrored: int
    idle: int
    load_s: float = 0.5

    @property
    def sessions(self) -> int:
        return self.durable + self.mirrored + self.idle


def prove(rng: random.Random) -> dict[str, Any]:
    """KILLS kills (50), one stop of PAUSE_S (30 s), the other faults RUNS times (5), under SESSIONS (200) of which a tenth asks
    for `mirrored`, and a tenth more that say little; SERVER is valkey (default) or redis."""
    sessions = int(os.environ.get("SESSIONS") or 200)
    scale = Scale(sessions - sessions // 10, sessions // 10, sessions // 10)
    kills, runs = int(os.environ.get("KILLS") or 50), int(os.environ.get("RUNS") or 5)
    pause_s = float(os.environ.get("PAUSE_S") or 30)
    name = os.environ.get("SERVER") or "valkey"
    configure_logging(level="error")
    tune_process()
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as folder:
        return asyncio.run(_prove(Path(folder), name, scale, kills, runs, pause_s, rng))


async def _prove(
    folder: Path, name: str, scale: Scale, kills: int, runs: int, pause_s: float, rng: random.Random
) -> dict[str, Any]:
    suffered: list[Suffered] = []
    wrong: list[str] = []
    # `fdatasync` of the append-only file once a second is what servers are run with.
    with serving(name, settings={"appendfsync": "everysec"}) as server:
        there = server_faults(server, kills, runs, pause_s, rng)
        wrong += await suffer(folder / "server", server.unix, server, there, suffered, rng, scale)
        async with proxied(server.socket_path) as proxy:
            server.run("FLUSHALL")
            between = [
                fault
                for _ in range(runs)
                for fault in (
                    faults.none(for_s(2.0)),
                    faults.delayed(proxy, 0.1, for_s(2.0)),
                    faults.cut(proxy, 5, rng),
                    faults.swallowed(proxy, 1, rng),
                    faults.hung(proxy, for_s(4.0)),
                    faults.refused(proxy, for_s(2.0)),
                )
            ]
            wrong += await suffer(folder / "network", proxy.url, server, between, suffered, rng, scale)
    return judged(name, scale, suffered, wrong)


def server_faults(
    server: Server, kills: int, runs: int, pause_s: float, rng: random.Random
) -> list[faults.Fault]:
    """In an order of their own; the long stop is the last, with as long a time without any fault before it."""
    found = [
        faults.killed(server, faults.KEEPING[number % 3], for_s(rng.choice((0.0, 0.2, 1.0, 3.0))))
        for number in range(kills)
    ]
    for _ in range(runs):
        found += [
            faults.none(for_s(2.0)),
            faults.slept(server, 2.0),
            faults.flushed(server),
            faults.disconnected(server, 5),
            faults.full(server, for_s(2.0)),
        ]
    rng.shuffle(found)
    return [*found, faults.none(for_s(pause_s)), faults.stopped(server, for_s(pause_s))]


async def suffer(
    folder: Path,
    url: str,
    server: Server,
    befall: Iterable[faults.Fault],
    suffered: list[Suffered],
    rng: random.Random,
    scale: Scale,
) -> list[str]:
    """A runtime and its fleet, through these faults one by one. Answers what was wrong apart from what each fault tells."""
    settings = Settings(data_dir=folder / "data", mirror=url)
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(Runtime.open(settings))
        fleet = await stack.enter_async_context(fleet_of(runtime, server))
        reporters = await fleet.add(scale.durable, rng)
        reporters += await fleet.add(scale.mirrored, rng, ack=Ack.MIRRORED)
        fleet.idle = await fleet.add(scale.idle, rng)
        async with fleet.reporting(reporters):
            for number, fault in enumerate(befall, 1):
                suffered.append(await _suffer(fleet, fault, scale.load_s))
                print(f"  {number}: {suffered[-1]}", file=sys.stderr)
            await fleet.rest()
        wrong = await fleet.lost()
        statistics = runtime.statistics().mirror
        if statistics is None or statistics.state != "level":
            wrong.append(f"the runtime says of the mirror: {statistics}")
    return (
        wrong
        + await _reopened(folder / "data", fleet)
        + [f"not there: {one}" for one in fleet.unseen]
        + [f"impossible: {one}" for one in fleet.impossible]
    )


async def _suffer(fleet: Fleet, fault: faults.Fault, load_s: float) -> Suffered:
    before = fleet.acknowledged
    await fleet.stir()
    await asyncio.sleep(load_s)
    await fault.strike(fleet)
    returned_s, returned = time.monotonic(), fleet.processor.mark()
    cpu_s = time.process_time()
    await fleet.reached()
    reached_s, reached_cpu_s = time.monotonic() - returned_s, time.process_time() - cpu_s
    reached_own_s = reached_s - lost_s(returned, fleet.processor.mark())
    gap_s, own_gap_s = fleet.longest_gap_s, fleet.longest_own_gap_s
    growth = fleet.rss_most - fleet.rss_at_first
    counts, refusal_s = dict(fleet.counts), fleet.slowest_refusal_s
    await fleet.rest()
    rested_s = time.monotonic()
    await fleet.reached()
    equal_s = time.monotonic() - rested_s
    # Byte by byte, which takes longer than it took the mirror.
    differences = await fleet.level(0.0)
    if differences:
        differences = await fleet.level()
        equal_s = time.monotonic() - rested_s
    found = Suffered(
        fault.name,
        round(gap_s * 1e3, 1),
        round(own_gap_s * 1e3, 1),
        round(reached_s, 2),
        round(reached_own_s, 2),
        round(reached_cpu_s, 2),
        round(equal_s, 2),
        round(growth / MIB, 1),
        fleet.acknowledged - before,
        counts,
        round(refusal_s, 2),
        differences[:5],
    )
    fleet.go()
    return found


async def _reopened(data_dir: Path, fleet: Fleet) -> list[str]:
    """What the folder alone says afterwards, if it is not the same."""
    wrong = []
    async with Runtime.open(Settings(data_dir=data_dir, mirror="none")) as runtime:
        for session_id, shadow in fleet.shadows.items():
            again = type(shadow)(session_id)
            await again.catch_up(runtime)
            if again.digest.digest() != shadow.digest.digest():
                wrong.append(f"{session_id}: opened again, its history is another")
    return wrong


def judged(server: str, scale: Scale, suffered: list[Suffered], wrong: list[str]) -> dict[str, Any]:
    kinds: dict[str, list[Suffered]] = {}
    for one in suffered:
        kinds.setdefault(one.name, []).append(one)
    struck = [one for one in suffered if one.name != "none"]
    figures: dict[str, Any] = {
        "server": server,
        "sessions": scale.sessions,
        "faults": len(struck),
        "acknowledged": sum(one.acknowledged for one in suffered),
        "gap_ms_p99": percentile([one.gap_ms for one in struck], 0.99),
        "gap_ms_max": max(one.gap_ms for one in struck),
        "own_gap_ms_p99": percentile([one.own_gap_ms for one in struck], 0.99),
        "own_gap_ms_max": max(one.own_gap_ms for one in struck),
        "gap_ms_max_without_faults": max((one.gap_ms for one in kinds.get("none", [])), default=None),
        "level_s_max": max(max(one.reached_s, one.equal_s) for one in struck),
        "own_level_s_max": max(max(one.reached_own_s, one.equal_s) for one in struck),
        "level_cpu_s_max": max(one.reached_cpu_s for one in struck),
        "growth_mib_max": max(one.growth_mib for one in struck),
        "not_level": sum(bool(one.differences) for one in suffered),
        "wrong": len(wrong),
        "wrong_first": wrong[:10],
        "mirrored": _counted(suffered),
        "by_fault": {name: _told(some) for name, some in sorted(kinds.items())},
    }
    holds = (
        not wrong
        and not figures["not_level"]
        and figures["level_s_max"] <= LEVEL_S_MAX
        and figures["gap_ms_p99"] <= GAP_MS_MAX
        and figures["growth_mib_max"] <= GROWTH_MIB_MAX
    )
    return {"holds": holds, "figures": figures}


def _counted(some: list[Suffered]) -> dict[str, int]:
    names = sorted({name for one in some for name in one.counts})
    return {name: sum(one.counts.get(name, 0) for one in some) for name in names}


def _told(some: list[Suffered]) -> dict[str, Any]:
    told = {
        name: max(asdict(one)[name] for one in some)
        for name in (
            "reached_s",
            "reached_own_s",
            "reached_cpu_s",
            "equal_s",
            "growth_mib",
        )
    }
    gaps = sorted(one.gap_ms for one in some)
    return {
        "times": len(some),
        "gap_ms_median": gaps[len(gaps) // 2],
        "gap_ms_max": gaps[-1],
        "own_gap_ms_max": max(one.own_gap_ms for one in some),
        "slowest_refusal_s": max(one.refusal_s for one in some),
        "mirrored": _counted(some),
        **told,
    }


def percentile(values: list[float], part: float) -> float:
    """The smallest of them that so large a part of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * part // 1).__trunc__() - 1))]
