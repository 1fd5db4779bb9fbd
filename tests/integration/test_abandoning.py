"""Sessions that nobody was heard of, in a whole runtime: how they end, and what keeps them alive."""

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from sojourn.actors.errors import IllegalInStatus, SetAside
from sojourn.actors.ports import CatalogQuery
from sojourn.actors.session.actor import Done, GiveUp
from sojourn.actors.session.wire import read_command
from sojourn.runtime.layout import session_folder
from sojourn.runtime.opening import Stores
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryJournal

from ..support import owner
from ..support.faulty import FaultyJournal, TestClock
from ..support.tiers import memory_stores
from ..support.wait import await_until

pytestmark = pytest.mark.anyio
DAY_S = 86_400.0


@pytest.fixture
def stores() -> Stores:
    return memory_stores()


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


def over(stores: Stores, clock: TestClock, **change: Any) -> Any:
    settings = Settings(data_dir=Path("nowhere"), **{"seal_after_s": 0.0, "mirror": "none", **change})
    return Runtime.over(settings, stores, clock)


async def look(runtime: Runtime) -> None:
    await runtime.page(CatalogQuery())  # the catalog is level now
    await runtime._abandoner.look()


async def test_a_session_that_was_silent_for_a_day_ends_as_abandoned_and_is_handed_over(
    stores: Stores, clock: TestClock
) -> None:
    async with over(stores, clock) as runtime:
        silent = [await owner.create(runtime, title=title) for title in ("runs", "paused")]
        await owner.ask(runtime, silent[1], type="session.pause")
        clock.pass_time(DAY_S - 1)
        await look(runtime)
        assert (await runtime.record(silent[0]))["status"] == "running"
        clock.pass_time(2)
        await look(runtime)
        for session_id in silent:

            async def is_recent(session_id: str = session_id) -> bool:
                return bool((await runtime.record(session_id))["tier"] == "recent")

            await await_until(is_recent)
            record = await runtime.record(session_id)
            assert (record["status"], record["outcome"], record["lost"]) == ("abandoned", None, False)
            assert (record["reason"], record["ended_at"]) == ("no sign of life for 24 h", clock.now())
            assert record["storage"]["snapshot_path"].startswith(session_folder(session_id))
            types = [line.type async for line in runtime.events(session_id)]
            assert types[-2:] == ["session.abandoned", "session.sealed"]
        listed = await runtime.page(CatalogQuery(status=frozenset({"abandoned"})))
        assert {record["session_id"] for record in listed} == set(silent)


async def test_an_abandoned_session_takes_late_lines_until_it_is_sealed_and_nothing_else(
    stores: Stores, clock: TestClock
) -> None:
    async with over(stores, clock, seal_after_s=1e6) as runtime:
        session_id = await owner.create(runtime)
        clock.pass_time(DAY_S + 1)
        await look(runtime)
        await owner.ask(runtime, session_id, type="log.append", stream="stdout", text="late")
        for kind in ("session.resume", "session.cancel"):
            with pytest.raises(IllegalInStatus, match="while the session is abandoned"):
                await owner.ask(runtime, session_id, type=kind)
        seq = (await runtime.record(session_id))["seq"]
        clock.pass_time(2 * DAY_S)
        await look(runtime)
        assert (await runtime.record(session_id))["seq"] == seq


async def test_heartbeats_and_commands_keep_a_session(stores: Stores, clock: TestClock) -> None:
    async with over(stores, clock) as runtime:
        beating, reporting = [await owner.create(runtime) for _ in range(2)]
        for _ in range(3):
            clock.pass_time(DAY_S - 1)
            await look(runtime)
            await runtime.heartbeat(beating)
            await owner.ask(runtime, reporting, type="log.append", stream="stdout", text="x")
        for session_id in (beating, reporting):
            assert (await runtime.record(session_id))["status"] == "running"


async def test_after_a_restart_a_session_has_the_whole_time_again(stores: Stores, clock: TestClock) -> None:
    async with over(stores, clock) as runtime:
        session_id = await owner.create(runtime)
    clock.pass_time(7 * DAY_S)
    async with over(stores, clock) as runtime:
        await look(runtime)
        clock.pass_time(DAY_S - 1)
        await look(runtime)
        assert (await runtime.record(session_id))["status"] == "running"
        clock.pass_time(1)
        await look(runtime)
        assert (await runtime.record(session_id))["status"] == "abandoned"


async def test_a_session_out_of_memory_is_not_read_for_a_look(stores: Stores, clock: TestClock) -> None:
    async with over(stores, clock) as runtime:
        session_id = await owner.create(runtime)
    async with over(stores, clock) as runtime:
        await runtime.heartbeat(session_id)
        clock.pass_time(DAY_S / 2)
        await runtime.heartbeat(session_id)
        clock.pass_time(DAY_S / 2)
        await look(runtime)
        assert session_id not in runtime._kernel.cells


async def test_what_was_queued_before_goes_first_and_keeps_the_session(
    stores: Stores, clock: TestClock
) -> None:
    async with over(stores, clock) as runtime:
        session_id = await owner.create(runtime)
        head = runtime._journal.heads()[session_id]
        answers: list[Any] = []

        async def report() -> None:
            answers.append(await runtime.ask(session_id, read_command({"type": "session.pause"})))

        async def give_up() -> None:
            answers.append(await runtime._give_up(session_id, GiveUp(head, "no sign of life", clock.now())))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(report)
            tasks.start_soon(give_up)
        assert Done(head + 1) in answers
        assert False in answers
        assert (await runtime.record(session_id))["status"] == "paused"


async def test_a_command_that_is_not_answered_yet_is_a_sign_of_life(stores: Stores, clock: TestClock) -> None:
    journal = FaultyJournal()
    async with over(evolve(stores, journal=journal), clock) as runtime:
        session_id = await owner.create(runtime)
        # So that a row that lags is none: its timer may be all that came since.
        await owner.ask(runtime, session_id, type="timer.set", key="far", after_s=30 * DAY_S)
        await runtime.page(CatalogQuery())
        head = journal.heads()[session_id]
        clock.pass_time(DAY_S + 1)
        journal.hold_after = told = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                partial(owner.ask, runtime, session_id, type="log.append", stream="stdout", text="x")
            )
            await await_until(lambda: journal.heads()[session_id] > head)
            tasks.start_soon(runtime._abandoner.look)
            await anyio.wait_all_tasks_blocked()
            told.set()
        assert (await runtime.record(session_id))["status"] == "running"


async def test_a_session_that_was_set_aside_stays_as_it_is(stores: Stores, clock: TestClock) -> None:
    async with over(stores, clock) as runtime:
        session_id = await owner.create(runtime)
        await owner.ask(runtime, session_id, type="log.append", stream="stdout", text="x")
    journal = MemoryJournal()  # another, without the last event
    await journal.append((await stores.journal.read(session_id))[:2])
    async with over(evolve(stores, journal=journal), clock) as runtime:
        with pytest.raises(SetAside):
            await owner.ask(runtime, session_id, type="session.pause")
        clock.pass_time(2 * DAY_S)
        await look(runtime)
        assert journal.heads()[session_id] == 2
        await runtime.accept_loss(session_id)
        await look(runtime)
        assert (await runtime.record(session_id))["status"] == "running"
        clock.pass_time(DAY_S + 1)
        await look(runtime)
        assert (await runtime.record(session_id))["status"] == "abandoned"


async def test_a_timer_that_fires_again_and_again_is_no_sign_of_life(
    stores: Stores, clock: TestClock
) -> None:
    async with over(stores, clock) as runtime:
        silent, reporting = [await owner.create(runtime) for _ in range(2)]
        for session_id in (silent, reporting):
            await owner.ask(runtime, session_id, type="timer.set", key="tick", after_s=3600, every_s=3600)
        for hour in range(1, 25):
            clock.pass_time(3600)
            for session_id in (silent, reporting):
                await runtime._tick(session_id)
            if hour == 12:
                await owner.ask(runtime, reporting, type="log.append", stream="stdout", text="x")
            await look(runtime)
        records = [await runtime.record(session_id) for session_id in (silent, reporting)]
        assert [record["status"] for record in records] == ["abandoned", "running"]
        assert records[0]["reason"] == "no sign of life for 24 h"
        fired = [line.type async for line in runtime.events(silent)].count("timer.fired")
        assert fired == 24
