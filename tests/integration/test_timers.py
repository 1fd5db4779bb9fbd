"""Sessions that are woken by their timers: passivated ones, after a restart, many at once, while a store fails. All on
virtual time: the runtime over stores in memory."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from sojourn.actors.errors import DeadlineExceeded, NoSuchTimer, StorageFull, StoreUnavailable
from sojourn.actors.ports import CatalogQuery, CatalogRow
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.opening import Stores
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryJournal
from sojourn.runtime.timers import AT_ONCE, HORIZON_S, LOOK_EVERY_S, SETTLE_S, Timekeeper

from ..contract.test_catalog import row
from ..support.faulty import FaultyJournal
from ..support.tiers import clone, memory_stores
from ..support.virtual import NOON, VirtualClock

pytestmark = pytest.mark.trio
TIERING_ALONE = 1  # actor in memory: the tiering supervisor


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def over(stores: Stores, clock: VirtualClock, **change: Any) -> AbstractAsyncContextManager[Runtime]:
    return Runtime.over(Settings(data_dir=Path("nowhere"), **change), stores, clock)


async def new_session(runtime: Runtime, *timers: dict[str, Any]) -> str:
    record, _ = await runtime.create(read_create({"plan": "p"}))
    session_id: str = record["session_id"]
    await say(runtime, session_id, {"type": "session.start"})
    for timer in timers:
        await say(runtime, session_id, {"type": "timer.set", **timer})
    return session_id


async def say(runtime: Runtime, session_id: str, command: dict[str, Any]) -> None:
    await runtime.ask(session_id, read_command(command))


async def fired(runtime: Runtime, session_id: str) -> list[tuple[str, float, int]]:
    """(key, seconds after noon at which it was due, missed) of every timer that fired, as the history has it."""
    found = []
    async with aclosing(runtime.events(session_id)) as lines:
        async for line in lines:
            if line.type == "timer.fired":
                data = json.loads(line.line)["data"]
                due_at = datetime.fromisoformat(data["due_at"])
                found.append((data["key"], (due_at - NOON).total_seconds(), data["missed"]))
    return found


async def test_a_passivated_session_is_woken_when_its_timer_is_due_and_leaves_memory_again(
    clock: VirtualClock,
    autojump_clock: MockClock,
) -> None:
    async with over(memory_stores(), clock, abandon_after_s=604_800) as runtime:
        session_id = await new_session(runtime, {"key": "nightly", "after_s": 8 * 3600, "every_s": 86_400})
        await trio.sleep(7 * 3600)
        assert runtime.statistics().kernel.actors == TIERING_ALONE
        assert runtime.statistics().timers.held == 0
        await trio.sleep(3601)
        assert await fired(runtime, session_id) == [("nightly", 8 * 3600.0, 0)]
        assert runtime.statistics().kernel.actors == TIERING_ALONE
        assert runtime.statistics().timers.late_s < 0.1
        await trio.sleep(86_400)
        assert [due for _, due, _ in await fired(runtime, session_id)] == [8 * 3600.0, 32 * 3600.0]


async def test_a_timer_of_a_session_in_memory_fires_within_a_tenth_of_a_second(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    async with over(memory_stores(), clock) as runtime:
        session_id = await new_session(runtime, {"key": "soon", "after_s": 1.5})
        await trio.sleep(1.4)
        assert await fired(runtime, session_id) == []
        await trio.sleep(0.2)
        assert await fired(runtime, session_id) == [("soon", 1.5, 0)]


async def test_a_timer_that_is_set_again_and_again_fires_when_the_last_one_says(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    async with over(memory_stores(), clock) as runtime:
        session_id = await new_session(runtime)
        for _ in range(10):
            await say(runtime, session_id, {"type": "timer.set", "key": "watchdog", "after_s": 30})
            await trio.sleep(20)
        assert await fired(runtime, session_id) == []
        await trio.sleep(11)
        assert await fired(runtime, session_id) == [("watchdog", 210.0, 0)]


async def test_what_fell_due_while_no_process_was_there_fires_once_at_the_next_start(
    clock: VirtualClock,
    autojump_clock: MockClock,
) -> None:
    stores = memory_stores()
    async with over(stores, clock) as runtime:
        session_id = await new_session(
            runtime, {"key": "hourly", "after_s": 3600, "every_s": 3600}, {"key": "once", "after_s": 5000}
        )
    await trio.sleep(10 * 3600)
    async with over(stores, clock) as runtime:
        await trio.sleep(SETTLE_S - 1)
        assert await fired(runtime, session_id) == []
    for _ in range(3):
        async with over(stores, clock) as runtime:
            await trio.sleep(SETTLE_S + 1)
            assert await fired(runtime, session_id) == [("hourly", 36_000.0, 9), ("once", 5000.0, 0)]


async def test_what_a_reporter_has_to_say_after_a_restart_comes_before_what_fell_due_meanwhile(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    stores = memory_stores()
    limit = {"key": "limit", "after_s": 600, "action": "fail"}
    async with over(stores, clock) as runtime:
        in_time, moved = await new_session(runtime, limit), await new_session(runtime, limit)
    await trio.sleep(3600)
    async with over(stores, clock) as runtime:
        await say(runtime, in_time, {"type": "log.append", "stream": "stdout", "text": "done in time"})
        await trio.sleep(20)
        await say(runtime, in_time, {"type": "session.complete", "outcome": "passed"})
        await say(runtime, moved, {"type": "timer.set", **limit})
        await trio.sleep(SETTLE_S)
        assert (await runtime.record(in_time))["status"] == "completed"
        assert (await runtime.record(moved))["status"] == "running"


async def test_after_a_kill_the_journal_alone_tells_of_the_timers(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    stores = memory_stores()
    async with over(stores, clock) as runtime:
        session_id = await new_session(runtime, {"key": "k", "after_s": 600})
        on_disk = clone(stores)  # the catalog has heard of nothing yet
    assert await on_disk.catalog.get(session_id) is None
    async with over(on_disk, clock) as runtime:
        await trio.sleep(601)
        assert await fired(runtime, session_id) == [("k", 600.0, 0)]
        on_disk = clone(on_disk)
    async with over(on_disk, clock) as runtime:
        await trio.sleep(3600)
        assert await fired(runtime, session_id) == [("k", 600.0, 0)]


async def test_a_session_over_its_time_limit_is_ended_and_handed_over(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    limit = {"key": "limit", "after_s": 3600, "clock": "active", "action": "fail", "reason": "over its hour"}
    async with over(memory_stores(), clock) as runtime:
        session_id = await new_session(runtime, limit)
        await trio.sleep(1800)
        await say(runtime, session_id, {"type": "session.pause"})
        assert (await runtime.record(session_id))["next_due_at"] is None
        await trio.sleep(7200)
        await say(runtime, session_id, {"type": "session.resume"})
        await trio.sleep(1799)
        record = await runtime.record(session_id)
        assert (record["status"], record["next_due_at"]) == (
            "running",
            NOON + timedelta(seconds=10_800),
        )
        await trio.sleep(2)
        record = await runtime.record(session_id)
        assert (record["status"], record["reason"], record["next_due_at"]) == (
            "failed",
            "over its hour",
            None,
        )
        assert runtime.statistics().tiering.waiting == 1  # until it is sealed


async def test_a_cancelled_timer_wakes_nobody(clock: VirtualClock, autojump_clock: MockClock) -> None:
    async with over(memory_stores(), clock) as runtime:
        session_id = await new_session(runtime, {"key": "k", "after_s": 3600})
        await trio.sleep(1000)
        await say(runtime, session_id, {"type": "timer.cancel", "key": "k"})
        await trio.sleep(3600)
        assert (await fired(runtime, session_id), runtime.statistics().timers.woken) == ([], 0)
        with pytest.raises(NoSuchTimer):
            await say(runtime, session_id, {"type": "timer.cancel", "key": "k"})


async def test_a_wall_clock_that_steps_forward_makes_due_what_it_jumped_over(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    async with over(memory_stores(), clock) as runtime:
        session_id = await new_session(runtime, {"key": "k", "after_s": 3600, "every_s": 600})
        await trio.sleep(60)
        clock.step_s = 7200
        await trio.sleep(LOOK_EVERY_S + 1)
        assert await fired(runtime, session_id) == [("k", 7200.0, 6)]


async def test_a_wall_clock_that_steps_back_fires_nothing_twice(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    async with over(memory_stores(), clock) as runtime:
        session_id = await new_session(runtime, {"key": "k", "after_s": 60, "every_s": 60})
        await trio.sleep(61)
        clock.step_s = -3600
        await trio.sleep(3590)
        assert await fired(runtime, session_id) == [("k", 60.0, 0)]
        await trio.sleep(90)
        assert await fired(runtime, session_id) == [("k", 60.0, 0), ("k", 120.0, 0)]


async def test_a_timer_that_fires_is_no_sign_of_life(clock: VirtualClock, autojump_clock: MockClock) -> None:
    async with over(memory_stores(), clock) as runtime:
        session_id = await new_session(runtime, {"key": "k", "after_s": 5, "every_s": 5})
        await trio.sleep(100)
        assert (await runtime.record(session_id))["lost"]
        assert len(await fired(runtime, session_id)) >= 19


async def test_while_the_journal_refuses_nobody_is_woken_and_then_the_missed_is_told(
    clock: VirtualClock,
    autojump_clock: MockClock,
) -> None:
    journal = FaultyJournal()
    async with over(evolve(memory_stores(), journal=journal), clock) as runtime:
        session_id = await new_session(runtime, {"key": "k", "after_s": 60, "every_s": 60})
        journal.fault = StorageFull("the disk is full")
        await trio.sleep(600)
        assert runtime.statistics().timers.failures == 1  # by which it was found out
        journal.fault = None
        await trio.sleep(5)
        found = await fired(runtime, session_id)
        assert [missed + 1 for _, _, missed in found] == [10]


async def test_a_list_shows_when_each_session_is_due(clock: VirtualClock, autojump_clock: MockClock) -> None:
    async with over(memory_stores(), clock) as runtime:
        session_id = await new_session(runtime, {"key": "k", "after_s": 60})
        (record,) = await runtime.page(CatalogQuery())
        assert (record["session_id"], record["next_due_at"]) == (
            session_id,
            NOON + timedelta(seconds=60),
        )


async def test_a_hundred_sessions_that_are_due_together_are_not_all_in_memory_together(
    clock: VirtualClock,
    autojump_clock: MockClock,
) -> None:
    stores = memory_stores()
    async with over(stores, clock) as runtime:
        ids = [await new_session(runtime, {"key": "k", "at": "2026-11-22T20:00:07Z"}) for _ in range(100)]
    in_memory = []

    class Watched(MemoryJournal):
        async def append(self, records: Any) -> None:
            in_memory.append(runtime.statistics().kernel.actors)
            await super().append(records)

    journal = stores.journal
    assert isinstance(journal, MemoryJournal)
    journal.__class__ = Watched
    async with over(stores, clock) as runtime:
        in_memory.clear()
        await trio.sleep(28_808)
        assert [await fired(runtime, session_id) for session_id in ids] == [[("k", 28_807.0, 0)]] * 100
        assert max(in_memory) <= AT_ONCE + TIERING_ALONE
        assert runtime.statistics().timers.woken == 100


# -- the timekeeper alone ----------------------------------------------------------------------------------------------


class Sleepers:
    """Sessions that are nothing but their moments, and a timekeeper that wakes them."""

    def __init__(self, clock: VirtualClock, catalog: MemoryCatalog, **options: Any) -> None:
        self.clock = clock
        self.catalog = catalog
        self.woken: list[tuple[str, float]] = []
        self.at_once = self.most_at_once = self.levelled = 0
        self.tick: Callable[[str], Any] = self.wake
        self.full = False
        self.timekeeper = Timekeeper(
            catalog=catalog,
            clock=clock,
            level=self.level,
            tick=lambda session_id: self.tick(session_id),
            hindered=lambda: self.full,
            **options,
        )

    async def level(self) -> None:
        self.levelled += 1

    async def wake(self, session_id: str) -> datetime | None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await trio.sleep(0.01)
        self.at_once -= 1
        self.woken.append((session_id, trio.current_time()))
        stands = await self.catalog.get(session_id)
        if stands is not None:
            await self.catalog.put([due(session_id, None, stands.seq + 1)])
        return None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Timekeeper]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.timekeeper.run, lambda: None)
            self.timekeeper.open()
            yield self.timekeeper
            tasks.cancel_scope.cancel()


def due(session_id: str, seconds: float | None, seq: int = 1) -> CatalogRow:
    at = NOON + timedelta(seconds=seconds) if seconds is not None else None
    return row(session_id, seq=seq, next_due_at=at)


async def test_all_that_are_due_are_woken_a_few_at_once_however_few_are_held(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    catalog = MemoryCatalog()
    await catalog.put([due(f"s{n:04}", -n) for n in range(2_500)])
    sleepers = Sleepers(clock, catalog, held_max=100, at_once=7)
    async with sleepers.open() as timekeeper:
        await trio.sleep(SETTLE_S + 10)
        assert sorted(id_ for id_, _ in sleepers.woken) == [f"s{n:04}" for n in range(2_500)]
        assert sleepers.most_at_once == 7
        assert timekeeper.statistics().held == 0


async def test_nobody_is_woken_before_the_runtime_is_open(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    catalog = MemoryCatalog()
    await catalog.put([due("a", -1)])
    sleepers = Sleepers(clock, catalog)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleepers.timekeeper.run, lambda: None)
        await trio.sleep(100)
        assert sleepers.woken == []
        sleepers.timekeeper.open()
        await trio.sleep(SETTLE_S + 1)
        assert [id_ for id_, _ in sleepers.woken] == ["a"]
        tasks.cancel_scope.cancel()


async def test_one_that_cannot_be_woken_rests_and_keeps_nobody_from_being_woken(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    catalog = MemoryCatalog()
    await catalog.put([due(f"bad{n}", -9) for n in range(5)])
    sleepers = Sleepers(clock, catalog, held_max=3)
    tried = []

    async def tick(session_id: str) -> datetime | None:
        if session_id.startswith("bad"):
            tried.append(session_id)
            raise StoreUnavailable("the disk does not answer")
        return await sleepers.wake(session_id)

    sleepers.tick = tick
    async with sleepers.open() as timekeeper:
        await trio.sleep(1)
        await catalog.put([due("good", 10)])
        await trio.sleep(SETTLE_S + 2 * LOOK_EVERY_S)
        assert [id_ for id_, _ in sleepers.woken] == ["good"]
        assert 5 <= len(tried) <= 20
        assert timekeeper.statistics().failures == len(tried)
        sleepers.tick = sleepers.wake
        await trio.sleep(3 * LOOK_EVERY_S)
        assert sorted(id_ for id_, _ in sleepers.woken) == ["bad0", "bad1", "bad2", "bad3", "bad4", "good"]


async def test_one_that_is_due_again_while_it_is_being_woken_is_woken_again(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    sleepers = Sleepers(clock, MemoryCatalog())
    async with sleepers.open() as timekeeper:
        timekeeper.note({"a": clock.now()})
        await trio.sleep(0.005)
        timekeeper.note({"a": clock.now()})
        timekeeper.note({"a": clock.now()})
        await trio.sleep(1)
        assert [id_ for id_, _ in sleepers.woken] == ["a", "a"]


async def test_the_earlier_of_two_moments_counts_and_a_far_one_is_left_to_the_catalog(
    clock: VirtualClock,
    autojump_clock: MockClock,
) -> None:
    sleepers = Sleepers(clock, MemoryCatalog())
    async with sleepers.open() as timekeeper:
        for seconds in (30, 50, 10, 20):
            timekeeper.note({"a": clock.now() + timedelta(seconds=seconds)})
        timekeeper.note({"b": clock.now() + timedelta(seconds=HORIZON_S + 1)})
        assert timekeeper.statistics().held == 1
        await trio.sleep(100)
        assert [(id_, round(at)) for id_, at in sleepers.woken] == [("a", 10)]


async def test_moments_that_come_ever_closer_take_no_more_room_than_one(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    sleepers = Sleepers(clock, MemoryCatalog())
    for n in range(50_000):
        sleepers.timekeeper.note({"a": NOON + timedelta(seconds=50 - n / 1000)})
    assert len(sleepers.timekeeper._heap) < 1_000
    async with sleepers.open():
        await trio.sleep(0.1)
        assert [id_ for id_, _ in sleepers.woken] == ["a"]


async def test_a_catalog_that_does_not_answer_is_looked_at_again(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    class Unsteady(MemoryCatalog):
        away = True

        async def due(self, **query: Any) -> list[tuple[datetime, str]]:
            if self.away:
                raise StoreUnavailable("the disk does not answer")
            return await super().due(**query)

    catalog = Unsteady()
    await catalog.put([due("a", -1)])
    sleepers = Sleepers(clock, catalog)
    async with sleepers.open():
        await trio.sleep(1)
        looks = sleepers.levelled
        assert (looks, sleepers.woken) == (1, [])
        catalog.away = False
        await trio.sleep(SETTLE_S)
        assert [id_ for id_, _ in sleepers.woken] == ["a"]


async def test_a_look_that_takes_long_is_waited_for_at_rest(autojump_clock: MockClock) -> None:
    class Counted(VirtualClock):
        asked = 0

        def monotonic(self) -> float:
            self.asked += 1
            assert self.asked < 1_000, "it turns without getting anywhere"
            return super().monotonic()

    class Slow(MemoryCatalog):
        async def due(self, **query: Any) -> list[tuple[datetime, str]]:
            await trio.sleep(4 * LOOK_EVERY_S)
            return await super().due(**query)

    catalog = Slow()
    await catalog.put([due("a", 20)])
    sleepers = Sleepers(Counted(), catalog)
    async with sleepers.open():
        await trio.sleep(10 * LOOK_EVERY_S)
        assert [id_ for id_, _ in sleepers.woken] == ["a"]


async def test_a_session_that_does_not_answer_in_time_keeps_nobody_from_being_woken(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    sleepers = Sleepers(clock, MemoryCatalog())

    async def tick(session_id: str) -> datetime | None:
        if session_id == "late":
            raise DeadlineExceeded
        return await sleepers.wake(session_id)

    sleepers.tick = tick
    async with sleepers.open() as timekeeper:
        timekeeper.note({"late": clock.now(), "a": clock.now()})
        await trio.sleep(1)
        assert [id_ for id_, _ in sleepers.woken] == ["a"]
        assert timekeeper.statistics().failures == 1


async def test_while_changes_are_refused_nobody_is_woken(
    clock: VirtualClock, autojump_clock: MockClock
) -> None:
    sleepers = Sleepers(clock, MemoryCatalog())
    sleepers.full = True
    async with sleepers.open() as timekeeper:
        timekeeper.note({"a": clock.now()})
        await trio.sleep(20)
        assert sleepers.woken == []
        sleepers.full = False
        await trio.sleep(1.1)
        assert [id_ for id_, _ in sleepers.woken] == ["a"]
