"""The live hub: who is sent to by an outlet, who is woken, and that each sees every event once and in order."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from attrs import define, field

from sojourn.actors.ports import Journal, Record
from sojourn.runtime.live import PUSHES_A_SLICE, LiveHub, News, Subscription
from sojourn.runtime.recovery import History
from tests.support.wait import await_until

pytestmark = pytest.mark.anyio

ID = "sess_1"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@define
class Store:
    """Journal and history: what was durable so far."""

    records: list[Record] = field(factory=list)

    def heads(self) -> dict[str, int]:
        return {ID: self.records[-1].last_seq} if self.records else {}

    async def read(self, session_id: str, after: int, *, bytes_max: int) -> list[Record]:
        await anyio.lowlevel.checkpoint()
        return [record for record in self.records if record.last_seq > after]


@define
class Reader:
    """A live reader: what came by its outlet, and what its task took, as (how, first seq, last seq)."""

    takes: bool = True
    came: list[tuple[str, int, int]] = field(factory=list)
    place: Subscription | None = None

    def push(self, news: Sequence[News]) -> bool:
        if self.takes:
            self.came.append(("pushed", news[0].record.first_seq, news[-1].last_seq))
        return self.takes

    async def read(self, hub: LiveHub, after: int = 0) -> None:
        with hub.subscribe(ID, after, self) as self.place:
            while news := await self.place.take():
                self.came.append(("took", self.place.above + 1, news[-1].last_seq))


@define
class Stage:
    store: Store
    hub: LiveHub
    tasks: TaskGroup

    def happens(self, first_seq: int, events: int = 1) -> None:
        """A commit becomes durable and is published."""
        self.store.records.append(Record(ID, first_seq, events, 1, b'{"type":"x"}\n' * events))
        self.hub.publish(self.store.records[-1:])

    async def reader(self, after: int = 0) -> Reader:
        reader = Reader()
        self.tasks.start_soon(reader.read, self.hub, after)
        await anyio.wait_all_tasks_blocked()
        return reader


@asynccontextmanager
async def staged(*, runs: bool = True) -> AsyncIterator[Stage]:
    store = Store()
    hub = LiveHub(cast(Journal, store), cast(History, store))
    async with anyio.create_task_group() as tasks:
        if runs:
            tasks.start_soon(hub.run, lambda: None)
        yield Stage(store, hub, tasks)
        hub.close()
        tasks.cancel_scope.cancel()


async def test_a_reader_that_is_level_is_sent_to_and_stays_asleep() -> None:
    async with staged() as stage:
        reader = await stage.reader()
        for seq in (1, 2, 3):
            stage.happens(seq)
            await anyio.wait_all_tasks_blocked()
        assert reader.came == [("pushed", 1, 1), ("pushed", 2, 2), ("pushed", 3, 3)]


async def test_what_came_together_is_sent_together() -> None:
    async with staged() as stage:
        reader = await stage.reader()
        stage.happens(1)
        stage.happens(2, events=3)
        await anyio.wait_all_tasks_blocked()
        assert reader.came == [("pushed", 1, 4)]


async def test_a_reader_whose_outlet_takes_nothing_comes_itself_and_is_sent_to_again_once_it_is_level() -> (
    None
):
    async with staged() as stage:
        reader = await stage.reader()
        reader.takes = False
        stage.happens(1)
        await anyio.wait_all_tasks_blocked()
        reader.takes = True
        stage.happens(2)
        await anyio.wait_all_tasks_blocked()
        assert reader.came == [("took", 1, 1), ("pushed", 2, 2)]


async def test_a_reader_that_stands_within_a_commit_cuts_it_itself() -> None:
    async with staged() as stage:
        reader = await stage.reader(after=2)
        stage.happens(1, events=4)
        await anyio.wait_all_tasks_blocked()
        assert reader.came == [("took", 3, 4)]


async def test_a_reader_that_reads_the_history_is_not_sent_to_meanwhile() -> None:
    async with staged() as stage:
        stage.happens(1, events=2)  # nobody watched: the tail does not hold it
        reader = Reader()
        stage.tasks.start_soon(reader.read, stage.hub)
        await await_until(lambda: reader.place is not None)
        stage.happens(3)
        await anyio.wait_all_tasks_blocked()
        assert [first for _, first, _ in reader.came] == [1, *[last + 1 for _, _, last in reader.came[:-1]]]
        assert reader.came[-1][2] == 3


async def test_more_readers_than_a_slice_are_all_sent_to() -> None:
    async with staged() as stage:
        readers = [await stage.reader() for _ in range(PUSHES_A_SLICE + 2)]
        stage.happens(1)
        await anyio.wait_all_tasks_blocked()
        assert [reader.came for reader in readers] == [[("pushed", 1, 1)]] * len(readers)


async def test_a_hub_that_starts_again_sends_what_its_last_run_did_not() -> None:
    async with staged(runs=False) as stage:
        reader = await stage.reader()
        stage.happens(1)
        stage.hub._fresh.clear()  # as a run that was cancelled among its readers has left it
        stage.tasks.start_soon(stage.hub.run, lambda: None)
        await anyio.wait_all_tasks_blocked()
        assert reader.came == [("pushed", 1, 1)]


async def test_a_hub_that_closes_ends_its_readers() -> None:
    async with staged() as stage:
        reader = await stage.reader()
        stage.hub.close()
        await anyio.wait_all_tasks_blocked()
        assert stage.hub.statistics().subscribers == 0
        assert reader.came == []
