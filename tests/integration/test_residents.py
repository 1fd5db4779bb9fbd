"""Who stays in memory where there is little room, over stores in memory."""

import math
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sojourn.actors.ports import CatalogQuery
from sojourn.actors.session.actor import Done
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.opening import Stores, SystemClock
from sojourn.runtime.residents import MEASURE_EVERY_S, SLICE_SESSIONS
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryObjects

from ..support.faulty import FaultyJournal
from ..support.jumping import virtual

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return virtual(request.param)


class VirtualClock(SystemClock):
    """The event loop's own time, which is virtual here."""

    monotonic = staticmethod(anyio.current_time)


def over(journal: FaultyJournal, **change: Any) -> AbstractAsyncContextManager[Runtime]:
    stores = Stores(
        journal=journal, catalog=MemoryCatalog(), objects=MemoryObjects(), archive=MemoryObjects()
    )
    settings = Settings(data_dir=Path("nowhere"), **change)
    return Runtime.over(settings, stores, VirtualClock())


async def new_session(runtime: Runtime) -> str:
    record, _ = await runtime.create(read_create({"plan": "p"}))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, read_command({"type": "session.start"}))
    return session_id


def result(n: int) -> Any:
    return read_command(
        {"type": "result.record", "case_id": f"case {n}", "outcome": "passed", "duration_s": 1.0}
    )


def in_memory(runtime: Runtime) -> list[str]:
    return sorted(id_ for id_ in runtime._kernel.cells if id_.startswith("sess_"))


async def test_beyond_the_bound_the_one_that_is_idle_longest_leaves_at_once_and_comes_back() -> None:
    async with over(FaultyJournal(), sessions_in_memory_max=3) as runtime:
        ids = []
        for _ in range(3):
            ids.append(await new_session(runtime))
            await anyio.sleep(1)
        await runtime.ask(ids[0], result(1))  # now the second is the oldest
        await anyio.sleep(1)
        ids.append(await new_session(runtime))
        await anyio.sleep(1)
        assert in_memory(runtime) == sorted([ids[0], ids[2], ids[3]])
        told = runtime.statistics().memory
        assert (told.sessions, told.sessions_max, told.pressed_out, told.passivated) == (3, 3, 1, 0)
        assert runtime.statistics().snapshots_written == 0
        assert await runtime.ask(ids[1], result(1)) == Done(3)


async def test_one_that_is_not_idle_stays_whatever_the_bound() -> None:
    journal = FaultyJournal()
    async with over(journal, sessions_in_memory_max=1) as runtime, anyio.create_task_group() as tasks:
        busy = await new_session(runtime)
        journal.hold = anyio.Event()
        tasks.start_soon(runtime.ask, busy, result(1))
        await anyio.sleep(1)
        for _ in range(2):
            tasks.start_soon(runtime.create, read_create({"plan": "p"}))
        await anyio.sleep(5)
        assert len(in_memory(runtime)) == 3
        journal.hold.set()
        journal.hold = None
        await anyio.sleep(2 * MEASURE_EVERY_S)
        assert len(in_memory(runtime)) == 1


async def test_states_are_bounded_in_bytes_too_as_they_grow() -> None:
    async with over(FaultyJournal(), states_in_memory_bytes_max=30_000) as runtime:
        ids = []
        for _ in range(3):
            ids.append(await new_session(runtime))
            for n in range(50):
                await runtime.ask(ids[-1], result(n))
            await anyio.sleep(1)
        await anyio.sleep(2 * MEASURE_EVERY_S)
        told = runtime.statistics().memory
        assert 0 < told.states_bytes <= told.states_bytes_max
        assert told.pressed_out >= 1
        assert in_memory(runtime) == sorted(ids[told.pressed_out :])  # the oldest left


async def test_without_pressure_a_session_leaves_after_its_time() -> None:
    async with over(FaultyJournal(), passivate_after_s=300.0) as runtime:
        await new_session(runtime)
        await anyio.sleep(295)
        assert len(in_memory(runtime)) == 1
        await anyio.sleep(20)
        assert in_memory(runtime) == []
        told = runtime.statistics().memory
        assert (told.sessions, told.states_bytes, told.passivated, told.pressed_out) == (0, 0, 1, 0)


async def test_more_than_a_slice_of_sessions_leaves_oldest_first() -> None:
    count = SLICE_SESSIONS + 200
    async with over(FaultyJournal(), sessions_in_memory_max=count, passivate_after_s=math.inf) as runtime:
        for n in range(count + 1):
            if n == count:
                active_at = {cell.actor_id: cell.active_at for cell in runtime._kernel.cells.values()}
            await runtime.create(read_create({"plan": "p"}))
            await anyio.sleep(1)
        assert runtime.statistics().memory.pressed_out == 1 + count // 16
        stayed = {active_at.pop(id_, math.inf) for id_ in runtime._kernel.cells}
        assert len(active_at) == 1 + count // 16
        assert max(active_at.values()) <= min(stayed)


async def test_a_session_that_leaves_before_its_row_is_written_is_listed_without_being_read_back() -> None:
    journal = FaultyJournal()
    async with over(journal, passivate_after_s=1.0) as runtime:
        session_id = await new_session(runtime)
        await runtime.page(CatalogQuery())
        await runtime.ask(session_id, result(1))
        while in_memory(runtime):
            await anyio.sleep(0.5)
        assert runtime.statistics().catalog_behind == 1
        journal.unreadable = True
        (record,) = await runtime.page(CatalogQuery())
        assert (record["session_id"], record["seq"]) == (session_id, 3)
        journal.unreadable = False


async def test_a_session_that_changed_since_it_left_is_listed_as_it_is_now() -> None:
    async with over(FaultyJournal(), passivate_after_s=1.0) as runtime:
        session_id = await new_session(runtime)
        while in_memory(runtime):
            await anyio.sleep(0.5)
        await runtime.ask(session_id, result(1))
        assert runtime._kernel.passivate(session_id)  # nobody has noted how it was
        (record,) = await runtime.page(CatalogQuery())
        assert record["seq"] == 3
