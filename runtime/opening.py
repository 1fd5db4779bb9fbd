"""What a runtime stands on: a data folder's stores, opened under its lock, and the machine's clocks."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

from attrs import frozen

from ..actors.ports import Catalog, Journal, Objects
from .settings import Settings


class SystemClock:
    """The machine's clocks. See ports.Clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    # Read several times a command: a method around it costs as much again.
    monotonic = staticmethod(time.monotonic)


@frozen(kw_only=True)
class Stores:
    """What a runtime keeps its data in. `objects` holds what belongs to active and recent sessions."""

    journal: Journal
    catalog: Catalog
    objects: Objects
    archive: Objects


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """The stores of `settings.data_dir`, owned by this process until the context is left.

    Raises:
        FolderInUse: another process owns it. Nothing was changed.
        UnusableFolder: it cannot be written, or is of a newer format. Nothing was changed.
        StorageFull: there is no room to open it in, and no reserve that could be given up for it.
    """
    # Imported here: drivers cost a third of the import time, and `sojourn.runtime` is imported for its names too.
    from .rebuild import open_catalog
    from .stores.archive import open_archive
    from .stores.journal_sqlite import SqliteJournal
    from .stores.lock import FolderLock
    from .stores.objects_folder import FolderObjects
    from .stores.reserve import Reserve

    folder = settings.data_dir
    async with AsyncExitStack() as stack:
        stack.callback(FolderLock.acquire(folder).release)
        reserve = Reserve(folder / "reserve")
        reserve.give_up_to_open()
        journal = await SqliteJournal.open(folder / "journal.db", reserve=reserve)
        stack.push_async_callback(journal.close)
        objects = FolderObjects(folder)
        await objects.sweep()
        archive = await stack.enter_async_context(open_archive(settings.archive, folder))
        catalog = await open_catalog(folder, journal=journal, recent=objects, archive=archive)
        stack.push_async_callback(catalog.close)
        yield Stores(journal=journal, catalog=catalog, objects=objects, archive=archive)
