"""The catalog built anew, from manifests and the journal alone.

It is a projection: what it said of tiers stands in the manifests, and everything else in the sessions themselves.
"""

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import anyio
import structlog

from ..actors.errors import Damaged, ObjectMissing, SojournError, StoreUnavailable, UnusableFolder
from ..actors.ports import Catalog, CatalogRow, Journal, Objects
from ..actors.session.model import Limits
from ..actors.session.record import public_record
from .event_log import EventLog
from .facts import facts_of, with_facts
from .layout import manifest_name, snapshot_path
from .manifest import decode_manifest
from .projector import catalog_row
from .recovery import Recovery
from .settings import Settings
from .shelves import ACTIVE, ARCHIVE, RECENT, Shelves
from .stores.archive import open_archive
from .stores.catalog_sqlite import SqliteCatalog
from .stores.folders import sync_folder
from .stores.journal_sqlite import SqliteJournal
from .stores.lock import FolderLock
from .stores.objects_folder import FolderObjects
from .stores.sqlite_files import PARTS, part_path, quarantine
from .tiering import by_session
from .verified import get_or_none

log = structlog.get_logger("sojourn.catalog")

AT_ONCE = 16  # manifests that are read together: an archive over a network takes its time for each
ROWS_A_WRITE = 500
_ID = re.compile(r"sess_[0-9a-f]{32}")  # what a damaged row names may be anything


async def open_catalog(folder: Path, *, journal: Journal, recent: Objects, archive: Objects) -> SqliteCatalog:
    """The catalog of a data folder, whose lock the caller holds. Where it is damaged or missing, the rows of sessions that
    were handed over are written anew first; those of active ones follow as they are asked for.

    Raises:
        UnusableFolder: it is of a newer version, or cannot be made or opened there.
        StoreUnavailable: it has to be built anew, and the archive does not answer.
    """
    path = folder / "catalog.db"
    # Another folder's archive, and no session of its own yet: nothing is missing.
    has_sessions = journal.epoch > 0 or (folder / "sessions").is_dir()
    if path.exists() or not has_sessions:
        try:
            return await open_checked(path, Rederiver(journal, recent, archive))
        except Damaged as error:
            log.error(
                "catalog.damaged",
                error=str(error),
                moved_to=str(quarantine(path)),
                remedy="it is built anew from the manifests and the journal; nothing is lost",
            )
    else:
        log.warning("catalog.missing", path=str(path), remedy="it is built anew; nothing is lost")
    await _build(path, journal, recent, archive, with_active=False)
    return await open_checked(path, Rederiver(journal, recent, archive))


async def forget_handed_over(journal: Journal, catalog: Catalog) -> None:
    """A damaged journal may have lost what it was told of sessions that were handed over: it is told again."""
    far = datetime.max.replace(tzinfo=UTC)
    heads, seqs = journal.heads(), await catalog.heads()
    ids = [
        session_id
        for tier in (RECENT, ARCHIVE)
        for session_id in await catalog.in_tier(tier, updated_before=far, limit=1 << 62)
        if 0 < heads.get(session_id, 0) <= seqs[session_id]
    ]
    if ids:
        await journal.forget(ids)


async def rebuild_catalog(settings: Settings) -> int:
    """Builds the catalog of a folder that nobody owns anew, whole; the one that stood there goes to `quarantine/`.

    Returns:
        How many sessions it lists.

    Raises:
        FolderInUse: a process owns it. Nothing was changed.
        UnusableFolder, UnusableArchive, StoreError: the one that stood there is unchanged.
    """
    folder = settings.data_dir
    if not folder.is_dir():
        raise UnusableFolder(f"there is no data folder {folder}; name the folder with --data")
    lock = FolderLock.acquire(folder)
    try:
        journal = await SqliteJournal.open(folder / "journal.db")
        try:
            async with open_archive(settings.archive, folder) as archive:
                path = folder / "catalog.db"
                return await _build(path, journal, FolderObjects(folder), archive, with_active=True)
        finally:
            await journal.close()
    finally:
        lock.release()


async def open_checked(path: Path, rederive: "Rederiver", *, read_only: bool = False) -> SqliteCatalog:
    """A catalog of which every row carries its checksum. Raises Damaged where one does not, and as `SqliteCatalog.open`."""
    async with AsyncExitStack() as opened:
        catalog = await SqliteCatalog.open(path, read_only=read_only)
        opened.push_async_callback(catalog.close)
        if damaged := await catalog.damaged_rows():
            raise Damaged(
                f"{len(damaged):,} rows of the catalog {path} do not carry their checksum (of {', '.join(damaged[:5])})"
            )
        catalog.rederive = rederive
        opened.pop_all()
    return catalog


async def _build(
    path: Path, journal: Journal, recent: Objects, archive: Objects, *, with_active: bool
) -> int:
    """Beside its place first: one that is there is whole."""
    new = path.with_name("catalog.db.new")
    for part in PARTS:
        part_path(new, part).unlink(missing_ok=True)
    catalog = await SqliteCatalog.open(new)
    try:
        count = await write_rows(
            catalog, journal=journal, recent=recent, archive=archive, with_active=with_active
        )
    finally:
        await catalog.close()
    if any(part_path(path, part).exists() for part in PARTS):
        quarantine(path)
    part_path(new, "-mark").unlink(missing_ok=True)  # it is of the name the file had
    os.replace(new, path)
    sync_folder(path.parent)
    log.info("catalog.rebuilt", sessions=count)
    return count


async def write_rows(
    catalog: Catalog, *, journal: Journal, recent: Objects, archive: Objects, with_active: bool
) -> int:
    """The rows of all sessions that were handed over, into a catalog that has none; `with_active`: of the others too.
    Returns how many. A session that cannot be read is said, and left out.

    Raises:
        StoreUnavailable: a store does not answer.
    """
    listed = set[str]()
    pending: list[CatalogRow] = []

    async def take(row: CatalogRow) -> None:
        listed.add(row.session_id)
        pending.append(row)
        if len(pending) >= ROWS_A_WRITE:
            await catalog.put(pending)
            pending.clear()

    # Complete in two places: the later tier wins.
    for tier, objects in ((ARCHIVE, archive), (RECENT, recent)):
        async for row in _rows_of(objects, tier, listed):
            await take(row)
    if with_active:
        async for row in _active_rows(journal, recent, archive, listed):
            await take(row)
    await catalog.put(pending)
    return len(listed)


async def _rows_of(objects: Objects, tier: str, listed: set[str]) -> AsyncIterator[CatalogRow]:
    ids: list[str] = []
    async for session_id, names in by_session(objects):
        if manifest_name(session_id) in names and session_id not in listed:
            ids.append(session_id)
            if len(ids) == AT_ONCE:
                for row in await _some_rows(objects, tier, ids):
                    yield row
                ids = []
    for row in await _some_rows(objects, tier, ids):
        yield row


async def _some_rows(objects: Objects, tier: str, ids: Sequence[str]) -> list[CatalogRow]:
    rows = dict[str, CatalogRow]()
    failures: list[SojournError] = []

    async def read(session_id: str) -> None:
        try:
            manifest = decode_manifest(await objects.get(manifest_name(session_id)), session_id)
            if manifest.tier != tier:
                raise Damaged(
                    f"the manifest of {session_id} is of the tier {manifest.tier}, and lies in {tier}"
                )
            rows[session_id] = catalog_row(with_facts(manifest.record, await facts_of(objects, session_id)))
        except (Damaged, ObjectMissing) as error:
            log.error(
                "manifest.damaged",
                session=session_id,
                error=str(error),
                remedy=f"put {manifest_name(session_id)} back from a copy, and run `sojourn rebuild-catalog`",
            )
        except SojournError as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        for session_id in ids:
            tasks.start_soon(read, session_id)
    if failures:
        raise StoreUnavailable(
            f"the catalog has to be built anew, and a store does not answer ({failures[0]}); start again once it does"
        ) from failures[0]
    return [rows[session_id] for session_id in ids if session_id in rows]


class Rederiver:
    """What a session's row should be, by what the catalog is a projection of."""

    def __init__(self, journal: Journal, recent: Objects, archive: Objects) -> None:
        self._objects = ((ARCHIVE, archive), (RECENT, recent))
        shelves = Shelves(journal=journal, catalog=None, recent=recent, archive=archive)
        self._recovery = Recovery(
            journal=journal,
            event_log=EventLog(journal, shelves),
            shelves=shelves,
            limits=Limits(),
            known_heads={},
        )

    async def __call__(self, session_id: str) -> CatalogRow | None:
        """None where it is not known, or cannot be read.

        Raises:
            StoreUnavailable: a store does not answer.
        """
        if not _ID.fullmatch(session_id):
            return None
        for tier, objects in self._objects:
            if await get_or_none(objects, manifest_name(session_id)) is not None:
                for row in await _some_rows(objects, tier, [session_id]):
                    return row
        return await self.active(session_id)

    async def active(self, session_id: str) -> CatalogRow | None:
        """The same for a session of which it is known that it was not handed over."""
        try:
            recovered = await self._recovery.recover(session_id)
        except Damaged as error:
            log.error(
                "catalog.row_left_out",
                session=session_id,
                error=str(error),
                tier=ACTIVE,
                remedy="`sojourn doctor` says what is damaged",
            )
            return None
        if recovered.state.header is None:
            return None
        path = snapshot_path(session_id, recovered.snapshot_seq)
        return catalog_row(public_record(recovered.state, epoch=recovered.epoch, snapshot_path=path))


async def _active_rows(
    journal: Journal, recent: Objects, archive: Objects, listed: set[str]
) -> AsyncIterator[CatalogRow]:
    rederive = Rederiver(journal, recent, archive)
    for session_id in sorted(journal.heads().keys() - listed):
        if (row := await rederive.active(session_id)) is not None:
            yield row
