"""The simulator's stores, while no fault happens, by the contracts they stand for; and what a death leaves of their writes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from attrs import evolve

from sojourn.actors.ports import Catalog, CatalogRow, Journal, Mirror, Objects, Record
from sojourn.actors.session.model import Limits

from ..contract.test_catalog import CatalogContract, row
from ..contract.test_journal import JournalContract
from ..contract.test_mirror import MirrorContract
from ..contract.test_objects import ObjectsContract
from .disk import WRITTEN, Disk, Killed, Mount
from .oracle import Oracle
from .profile import draw
from .stores import SimCatalog, SimJournal, SimMirror, SimObjects
from .trace import Trace

pytestmark = pytest.mark.anyio


class Unjudging(Oracle):
    """The contracts store what no runtime would."""

    def must(self, holds: bool, invariant: str, text: str) -> None:
        """Nothing is held against anything."""

    def _appended(self, record: Record, mount: Mount) -> None:
        """Nor read."""

    def releases(self, disk: Disk, session_id: str, seq: int) -> None:
        """Nor compared."""

    def belongs_here(self, disk: Disk, name: str) -> None:
        """Nor looked at."""

    def writes(self, name: str) -> None:
        """Nor noted."""

    def stored(self, store: str, name: str, data: bytes) -> None:
        """Nor read."""

    def copies_left(self, disk: Disk, session_ids: object) -> None:
        """Nor counted."""

    def deleted(self, disk: Disk, name: str) -> None:
        """Nor counted."""

    def mirrors(self, update: object) -> None:
        """Nor read."""

    def listed(self, row: CatalogRow, disk: Disk) -> None:
        """Nor compared."""


@asynccontextmanager
async def mounted(disk: Disk | None = None) -> AsyncIterator[Mount]:
    disk = disk or Disk(draw(0), Unjudging(limits=Limits()), Trace())
    disk.calm = True
    async with anyio.create_task_group() as tasks:
        yield Mount(disk, tasks, pause=lambda _: None, set_clock=lambda _: None)
        tasks.cancel_scope.cancel()


class OnBoth:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


class TestSimJournal(OnBoth, JournalContract):
    @pytest.fixture
    async def journal(self, anyio_backend: str) -> AsyncIterator[Journal]:
        async with mounted() as mount:
            yield SimJournal(mount)


class TestSimCatalog(OnBoth, CatalogContract):
    @pytest.fixture
    async def catalog(self, anyio_backend: str) -> AsyncIterator[Catalog]:
        async with mounted() as mount:
            yield SimCatalog(mount)


class TestSimObjects(OnBoth, ObjectsContract):
    @pytest.fixture
    async def objects(self, anyio_backend: str) -> AsyncIterator[Objects]:
        async with mounted() as mount:
            yield SimObjects(mount, mount.disk.recent, "recent")


class TestSimMirror(OnBoth, MirrorContract):
    @pytest.fixture
    async def mirror(self, anyio_backend: str) -> AsyncIterator[Mirror]:
        async with mounted() as mount:
            yield SimMirror(mount)


def line(seq: int) -> Record:
    return Record("a", seq, 1, 1, b'{"seq":%d}\n' % seq)


@pytest.mark.parametrize(("death", "left"), [("kill", {1}), ("power", {0, 1})])
async def test_an_append_that_was_not_answered_stays_after_a_kill_and_may_be_lost_with_the_power(
    anyio_backend: str, death: str, left: set[int]
) -> None:
    found = set()
    for seed in range(40):
        disk = Disk(evolve(draw(0), seed=seed, rates={}, delay_s=0.01), Unjudging(limits=Limits()), Trace())
        async with anyio.create_task_group() as tasks:
            mount = Mount(disk, tasks, pause=lambda _: None, set_clock=lambda _: None)
            tasks.start_soon(_killed, SimJournal(mount))
            while not mount.operations or mount.operations[0].state != WRITTEN:
                await anyio.sleep(0.0005)
            mount.die(death)
            await disk.settle(mount)
        found.add(disk.journal.heads().get("a", 0))
        if found == left:
            break
    assert found == left


async def _killed(journal: SimJournal) -> None:
    with pytest.raises(Killed):
        await journal.append([line(1)])


async def test_rows_of_active_sessions_may_be_lost_with_the_power_and_others_not(anyio_backend: str) -> None:
    tiers = set()
    for seed in range(40):
        disk = Disk(evolve(draw(0), seed=seed), Unjudging(limits=Limits()), Trace())
        async with mounted(disk) as mount:
            catalog = SimCatalog(mount)
            await catalog.put([row("a"), row("b", tier="recent")])
            await catalog.put([row("a", seq=2)])
            mount.die("power")
            await mount.disk.settle(mount)
            rows = mount.disk.catalog._rows
            assert rows["b"].tier == "recent"
            tiers.add(rows["a"].seq)
    assert tiers == {1, 2}
