"""The simulator's stores, while no fault happens, by the contracts they stand for; and what a death leaves of their writes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from sojourn.actors.ports import Catalog, Journal, Mirror, Objects, Record
from sojourn.actors.session.model import Limits

from ..contract.test_catalog import CatalogContract
from ..contract.test_journal import JournalContract
from ..contract.test_mirror import MirrorContract
from ..contract.test_objects import ObjectsContract
from .disk import Disk, Mount, SimCatalog, SimJournal, SimMirror, SimObjects
from .oracle import Oracle
from .profile import draw
from .trace import Trace

pytestmark = pytest.mark.anyio


class Unjudging(Oracle):
    """The contracts store what no runtime would."""

    def must(self, holds: bool, invariant: str, text: str) -> None:
        """Nothing is held against anything."""

    def _appended(self, record: Record) -> None:
        """Nor read."""

    def stored(self, store: str, name: str, data: bytes) -> None:
        """Nor read."""

    def copies_left(self, disk: Disk, session_ids: object) -> None:
        """Nor counted."""

    def deleted(self, disk: Disk, name: str) -> None:
        """Nor counted."""

    def mirrors(self, update: object) -> None:
        """Nor read."""

    def listed(self, row: object, disk: Disk) -> None:
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
