"""One session of SESSIONS (1,000) crash-loops for MINUTES (60) of virtual time, at the edge of what its budget allows, and then
without end: the others keep their latency, it ends quarantined, and released it goes on with nothing lost.

A whole runtime over stores in memory, twice on the same seed: calm, and with the loop. A commit takes a virtual millisecond,
so a latency says what an ask waited for, and nothing of the machine."""

import os
import random
import statistics
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import trio
from attrs import define, field
from trio.testing import MockClock

from sojourn.actors.errors import IntensityExceeded, SojournError
from sojourn.actors.ports import Record
from sojourn.actors.session.commands import AppendLog, Command
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.opening import Stores
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryJournal, MemoryObjects

SESSIONS = 1_000
MINUTES = 60
COMMIT_S = 0.001
ASK_EVERY_S = 60.0
# Five crashes in a minute are allowed: four, and a pause, for ever.
CRASHES_A_ROUND = 4
ROUND_S = 61.0
# A commit of the looping session may stand before another's.
SLOWER_MAX_S = COMMIT_S


class Journal(MemoryJournal):
    """Its appends take a while, and reading one session crashes so many times: what no store should raise.

    Attributes:
        victim: the session that cannot be read.
        crashes_left: so many reads of it crash.
    """

    victim: str | None = None
    crashes_left = 0.0
    # The runtime asks before each commit, and to add up 60,000 rows each time is what this proof would measure.
    size_bytes = 0

    async def append(self, records: Any) -> None:
        await anyio.sleep(COMMIT_S)
        await super().append(records)

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        if session_id == self.victim and self.crashes_left:
            self.crashes_left -= 1
            raise ZeroDivisionError("a mistake of ours")
        return await super().read(session_id, after_seq, bytes_max=bytes_max)


class VirtualClock:
    """trio's own time."""

    def now(self) -> datetime:
        return datetime(2026, 11, 22, tzinfo=UTC) + timedelta(seconds=trio.current_time())

    def monotonic(self) -> float:
        return trio.current_time()


@define
class Seen:
    """What the clients saw of one run."""

    latencies_s: list[float] = field(factory=list)
    failures: int = 0
    acknowledged: dict[str, int] = field(factory=dict)
    figures: dict[str, Any] = field(factory=dict)


def prove(rng: random.Random) -> dict[str, Any]:
    sessions = int(os.environ.get("SESSIONS") or SESSIONS)
    minutes = float(os.environ.get("MINUTES") or MINUTES)
    seed = rng.random()
    calm, looped = (
        trio.run(_run, sessions, minutes * 60.0, seed, loops, clock=MockClock(autojump_threshold=0))
        for loops in (False, True)
    )
    slower_s = {name: looped_s - calm_s for (name, calm_s), looped_s in
                zip(_latencies(calm).items(), _latencies(looped).values(), strict=True)}  # fmt: skip
    holds = (
        max(slower_s.values()) <= SLOWER_MAX_S
        and not calm.failures
        and not looped.failures
        and looped.figures["quarantined"]
        and looped.figures["answered_after_release"]
        and not looped.figures["lost"]
        and not calm.figures["lost"]
    )
    figures = {
        "sessions": sessions,
        "virtual_minutes": minutes,
        "asks": len(looped.latencies_s),
        "calm_s": _latencies(calm),
        "beside_the_loop_s": _latencies(looped),
        "failures_of_others": looped.failures,
        **looped.figures,
    }
    return {"holds": bool(holds), "figures": figures}


def _latencies(seen: Seen) -> dict[str, float]:
    ordered = sorted(seen.latencies_s)
    return {
        "p50": round(statistics.median(ordered), 4),
        "p99": round(ordered[int(len(ordered) * 0.99)], 4),
        "max": round(ordered[-1], 4),
    }


async def _run(sessions: int, duration_s: float, seed: float, loops: bool) -> Seen:
    rng, seen, journal = random.Random(seed), Seen(), Journal()
    stores = Stores(
        journal=journal, catalog=MemoryCatalog(), objects=MemoryObjects(), archive=MemoryObjects()
    )
    settings = Settings(data_dir=Path("nowhere"), mirror="none", snapshot_interval_s=1e9, abandon_after_s=1e9)
    async with Runtime.over(settings, stores, VirtualClock()) as runtime:
        ids = []
        for _ in range(sessions):
            record, _ = await runtime.create(read_create({"plan": "p"}))
            await runtime.ask(record["session_id"], read_command({"type": "session.start"}))
            ids.append(record["session_id"])
        victim = ids.pop(0)
        seen.acknowledged = dict.fromkeys([victim, *ids], 0)
        until = trio.current_time() + duration_s
        async with trio.open_nursery() as nursery:
            for session_id in ids:
                nursery.start_soon(_report, runtime, session_id, until, rng.uniform(0, ASK_EVERY_S), seen)
            if loops:
                await _crash_loop(runtime, journal, victim, until, seen)
        if loops:
            await _release(runtime, journal, victim, seen)
        heads = journal.heads()
        # Two events began each session.
        seen.figures["lost"] = sum(heads[id_] != 2 + acked for id_, acked in seen.acknowledged.items())
    return seen


async def _report(runtime: Runtime, session_id: str, until: float, first_s: float, seen: Seen) -> None:
    """A session beside the loop."""
    await trio.sleep(first_s)
    while trio.current_time() < until:
        began = trio.current_time()
        try:
            await _log(runtime, session_id, seen)
        except SojournError:
            seen.failures += 1
        seen.latencies_s.append(trio.current_time() - began)
        await trio.sleep(ASK_EVERY_S - (trio.current_time() - began))


async def _crash_loop(runtime: Runtime, journal: Journal, victim: str, until: float, seen: Seen) -> None:
    """Round by round: the session has left memory, its next start crashes four times and then succeeds; at last none does."""
    journal.victim = victim
    rounds = 0
    while trio.current_time() < until - ROUND_S:
        began = trio.current_time()
        runtime._kernel.passivate(victim)
        journal.crashes_left = CRASHES_A_ROUND
        await _log(runtime, victim, seen)
        rounds += 1
        await trio.sleep(ROUND_S - (trio.current_time() - began))
    seen.figures |= {"rounds": rounds, "crashes": runtime.statistics().kernel.crashes}
    runtime._kernel.passivate(victim)
    journal.crashes_left = float("inf")
    try:
        await _log(runtime, victim, seen)
    except IntensityExceeded:
        seen.figures["quarantined"] = runtime.statistics().kernel.actors_quarantined == 1
    else:
        seen.figures["quarantined"] = False


async def _release(runtime: Runtime, journal: Journal, victim: str, seen: Seen) -> None:
    journal.crashes_left = 0
    runtime._kernel.release(victim)
    before = seen.acknowledged[victim]
    await _log(runtime, victim, seen)
    seen.figures["answered_after_release"] = seen.acknowledged[victim] == before + 1


async def _log(runtime: Runtime, session_id: str, seen: Seen) -> None:
    """One line, in the order of its source: what was not taken would be missed by the next."""
    n = seen.acknowledged[session_id] + 1
    await runtime.ask(
        session_id, Command("log.append", AppendLog(stream="stdout", text="x"), None, "", "rep", n)
    )
    seen.acknowledged[session_id] = n
