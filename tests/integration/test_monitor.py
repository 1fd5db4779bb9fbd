"""A host that watches: for a session that falls or leaves, for a part that is set aside, for a turn that stalls."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define

from sojourn.actors.errors import IntensityExceeded, MonitorsFull, NotOpen, Stopped
from sojourn.actors.kernel.actor import Actor, ActorContext, ActorSpec
from sojourn.actors.kernel.watch import Down, DownReason, Watches
from sojourn.actors.ports import Record
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.opening import Stores, SystemClock
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryObjects

from ..support.faulty import FaultyJournal
from ..support.wait import await_until, wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@define(eq=False)
class BrokenJournal(FaultyJournal):
    """Reading the events of one session raises what no store should: a mistake of ours, which crashes its actor."""

    broken: str | None = None

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        if session_id == self.broken:
            raise ZeroDivisionError("a mistake of ours")
        return await super().read(session_id, after_seq, bytes_max=bytes_max)


def over(journal: FaultyJournal, **change: Any) -> AbstractAsyncContextManager[Runtime]:
    stores = Stores(
        journal=journal, catalog=MemoryCatalog(), objects=MemoryObjects(), archive=MemoryObjects()
    )
    settings = Settings(data_dir=Path("nowhere"), **change)
    return Runtime.over(settings, stores, SystemClock())


async def new_session(runtime: Runtime) -> str:
    record, _ = await runtime.create(read_create({"plan": "p"}))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, read_command({"type": "session.start"}))
    return session_id


async def end(runtime: Runtime, session_id: str) -> None:
    await runtime.ask(session_id, read_command({"type": "session.complete", "outcome": "passed"}))
    await runtime.ask(session_id, read_command({"type": "session.seal"}))


async def test_a_session_that_is_handed_over_was_removed_for_who_waits_and_who_comes_later() -> None:
    downs: list[Down] = []

    async def wait() -> None:
        downs.append(await runtime.monitor(session_id))

    async with over(FaultyJournal()) as runtime:
        session_id = await new_session(runtime)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await await_until(lambda: runtime.statistics().kernel.monitors == 1)
            await end(runtime, session_id)
        later = await runtime.monitor(session_id)
        assert [down.reason for down in downs] == [DownReason.REMOVED]
        assert (later.reason, later.epoch, later.seq) == (DownReason.REMOVED, runtime.epoch, 4)


async def test_a_session_that_crashes_too_often_is_told_as_it_falls() -> None:
    journal = BrokenJournal()
    async with over(journal, passivate_after_s=0.02) as runtime:
        session_id = await new_session(runtime)
        async with anyio.create_task_group() as tasks:
            downs: list[Down] = []

            async def watch() -> None:
                while not downs or downs[-1].reason is not DownReason.QUARANTINED:
                    downs.append(await runtime.monitor(session_id))

            tasks.start_soon(watch)
            await await_until(lambda: session_id not in runtime._kernel.cells)
            journal.broken = session_id
            with pytest.raises(IntensityExceeded):
                await runtime.ask(session_id, read_command({"type": "session.pause"}))
        reasons = [down.reason for down in downs]
        assert reasons[-1] is DownReason.QUARANTINED
        assert set(reasons[:-1]) == {DownReason.CRASHED}
        assert {(down.epoch, down.seq) for down in downs} == {(runtime.epoch, 2)}


async def test_what_is_not_there_is_unknown_at_once() -> None:
    async with over(FaultyJournal()) as runtime:
        down = await runtime.monitor("sess_" + "0" * 32)
        assert down == Down(actor_id="sess_" + "0" * 32, reason=DownReason.UNKNOWN)


async def test_a_wait_that_is_given_up_leaves_nothing() -> None:
    async with over(FaultyJournal()) as runtime:
        session_id = await new_session(runtime)
        with anyio.move_on_after(0.01):
            await runtime.monitor(session_id)
        assert runtime.statistics().kernel.monitors == 0


async def test_who_waits_when_the_runtime_closes_is_told_so() -> None:
    caught: list[type[Exception]] = []

    async def wait() -> None:
        try:
            await runtime.monitor(session_id)
        except Stopped as error:
            caught.append(type(error))

    async with anyio.create_task_group() as tasks, over(FaultyJournal()) as runtime:
        session_id = await new_session(runtime)
        tasks.start_soon(wait)
        await await_until(lambda: runtime.statistics().kernel.monitors == 1)
    assert caught == [Stopped]
    with pytest.raises(NotOpen):
        await runtime.monitor(session_id)


async def test_a_host_is_told_when_there_are_too_many_waits() -> None:
    async with over(FaultyJournal()) as runtime:
        session_id = await new_session(runtime)
        runtime._kernel.watches = Watches(watches_max=0)
        with pytest.raises(MonitorsFull):
            await runtime.monitor(session_id)


async def test_a_part_of_the_runtime_that_runs_needs_no_release() -> None:
    async with over(FaultyJournal()) as runtime:
        assert runtime.release_child("catalog") is False
        with pytest.raises(ValueError, match="there are commit, kernel"):
            runtime.release_child("mirrors")


class Hanging:
    """Its one turn lasts until it is noticed."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def receive(self, message: str) -> None:
        wait_until(lambda: self.runtime.statistics().stalls.total)

    def close_slot(self) -> None: ...


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # SQLite's driver is asyncio's
async def test_a_runtime_of_its_own_folder_names_a_turn_that_stalls(tmp_path: Path) -> None:
    async def start(_context: ActorContext) -> Actor:
        return Hanging(runtime)

    async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime:
        runtime._kernel.spawn("hanging", ActorSpec(start=start))
        await runtime._kernel.ask("hanging", "x", runtime._park())
        (stall, *_) = runtime.statistics().stalls.recent
    assert (stall.actor_id, stall.message) == ("hanging", "str")
    assert any("Hanging.receive" in line for line in stall.stack)
