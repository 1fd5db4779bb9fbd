"""What a runtime stands on: a data folder's stores, opened under its lock, and the machine's clocks."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from attrs import field, frozen

from ..actors.errors import StorageFull, StoreUnavailable
from ..actors.ports import Catalog, Inflight, Journal, Objects
from .settings import Settings
from .stores.inflight import MappedInflight, MemoryInflight

if TYPE_CHECKING:
    from .mirror_place import MirrorPlace


class SystemClock:
    """The machine's clocks. See ports.Clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    # Read several times a command: a method around it costs as much again.
    monotonic = staticmethod(time.monotonic)


@frozen(kw_only=True)
class Stores:
    """What a runtime keeps its data in. `objects` holds what belongs to active and recent sessions; without a place that
    outlives the process, a command that takes the process along is not found."""

    journal: Journal
    catalog: Catalog
    objects: Objects
    archive: Objects
    mirror: "MirrorPlace | None" = None
    inflight: Inflight = field(factory=MemoryInflight)


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """The stores of `settings.data_dir`, owned by this process until the context is left.

    Raises:
        FolderInUse: another process owns it. Nothing was changed.
        UnusableFolder: it cannot be written, or is of a newer format. Nothing was changed.
        StorageFull: there is no room to open it in, and no reserve that could be given up for it.
        UnusableMirror: a mirror is named, and this runs on trio.
    """
    # Imported here: drivers cost a third of the import time, and `sojourn.runtime` is imported for its names too.
    from .mirror_place import MirrorPlace
    from .rebuild import forget_handed_over, open_catalog
    from .stores.archive import open_archive
    from .stores.journal_sqlite import SqliteJournal
    from .stores.lock import FolderLock
    from .stores.objects_folder import FolderObjects
    from .stores.reserve import OPENING_BYTES, Reserve, free_bytes

    folder = settings.data_dir
    async with AsyncExitStack() as stack:
        stack.callback(FolderLock.acquire(folder).release)
        reserve = Reserve(folder / "reserve")
        reserve.give_up_to_open()
        try:
            journal = await SqliteJournal.open(folder / "journal.db", reserve=reserve)
            stack.push_async_callback(journal.close)
            objects = FolderObjects(folder)
            stack.push_async_callback(objects.close)
            await objects.sweep("sessions")
            archive = await stack.enter_async_context(open_archive(settings.archive, folder))
            catalog = await open_catalog(folder, journal=journal, recent=objects, archive=archive)
            stack.push_async_callback(catalog.close)
            if journal.flaws:
                await forget_handed_over(journal, catalog)
            inflight = MappedInflight.open(folder / "inflight")
            stack.callback(inflight.close)
        except (StoreUnavailable, OSError) as error:
            if free_bytes(folder) >= OPENING_BYTES:
                if isinstance(error, OSError):
                    raise StoreUnavailable(f"{folder} cannot be opened ({error}); check the disk") from error
                raise
            raise StorageFull(
                f"no room to open {folder} ({error}); free some space and start again. Reading needs none: `sojourn ls`, "
                "`show`, `tail` and `export` work without a server"
            ) from error
        mirror = MirrorPlace.of(settings)
        if mirror is not None:
            stack.push_async_callback(mirror.close)
        yield Stores(
            journal=journal,
            catalog=catalog,
            objects=objects,
            archive=archive,
            mirror=mirror,
            inflight=inflight,
        )
