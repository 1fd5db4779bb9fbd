"""Reads everything that is stored and checks it against its checksums: what is flawed is named, and nothing is changed."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from attrs import frozen

from ..actors.errors import Damaged, Missing, ObjectMissing, SojournError
from ..actors.ports import Catalog, Journal, Objects
from ..actors.session.codec import decode_events, decode_snapshot
from .facts import decode_facts
from .layout import facts_name, manifest_name, session_folder, snapshot_seq
from .manifest import Manifest, decode_manifest, sha256_of
from .recovery import SNAPSHOT_BYTES_MAX
from .segments import decode_segment, parse_name, unpack
from .shelves import ARCHIVE, RECENT
from .stores.archive import archive_to_read
from .stores.catalog_sqlite import SqliteCatalog
from .stores.journal_sqlite import SqliteJournal
from .stores.lock import check_format
from .stores.objects_folder import FolderObjects

READ_BYTES = 1024 * 1024
_FROM_A_COPY = "put it back from a copy"
_REBUILT = "the next owner builds it anew, nothing is lost; or run `sojourn rebuild-catalog` now"


@frozen(kw_only=True)
class Flaw:
    """What is wrong with one stored thing, and what to do. `session_id` is None where it belongs to no session in
    particular."""

    name: str
    session_id: str | None
    detail: str
    remedy: str = _FROM_A_COPY


async def verify_folder(data_dir: Path, archive: str | None = None) -> AsyncIterator[Flaw | None]:
    """Everything in a data folder and its archive, whether an owner is at work or not: a flaw, or None for each thing that
    is whole.

    Args:
        archive: as in the settings.

    Raises:
        UnusableArchive: the setting cannot be read.
    """
    try:
        check_format(data_dir)
        yield None
    except SojournError as error:
        yield Flaw(name="format", session_id=None, detail=str(error), remedy="see what it says")
    async with AsyncExitStack() as stack:
        journal: SqliteJournal | None = None
        catalog: SqliteCatalog | None = None
        if (data_dir / "journal.db").exists():
            try:
                journal = await SqliteJournal.open(data_dir / "journal.db", read_only=True)
                stack.push_async_callback(journal.close)
            except SojournError as error:
                yield Flaw(name="journal.db", session_id=None, detail=str(error), remedy="see what it says")
        if journal is not None:
            for detail in journal.flaws:
                yield Flaw(name="journal.db", session_id=None, detail=detail)
            async for found in verify_journal(journal):
                yield found
        if (data_dir / "catalog.db").exists():
            try:
                catalog = await SqliteCatalog.open(data_dir / "catalog.db", read_only=True)
                stack.push_async_callback(catalog.close)
                for session_id in await catalog.damaged_rows():
                    detail = "its row does not carry its checksum"
                    yield Flaw(name="catalog.db", session_id=session_id, detail=detail, remedy=_REBUILT)
            except SojournError as error:
                yield Flaw(name="catalog.db", session_id=None, detail=str(error), remedy=_REBUILT)
        archived = await stack.enter_async_context(archive_to_read(archive, data_dir))
        for tier, objects in ((RECENT, FolderObjects(data_dir)), (ARCHIVE, archived)):
            manifests: set[str] = set()
            try:
                async for found in verify_objects(objects, manifests=manifests):
                    yield found
            except SojournError as error:
                yield Flaw(
                    name=tier,
                    session_id=None,
                    detail=str(error),
                    remedy="run it again once the store answers",
                )
                continue
            if journal is not None and catalog is not None:
                try:
                    for found in await _verify_rows(catalog, journal, tier, manifests):
                        yield found
                except SojournError as error:
                    yield Flaw(name="catalog.db", session_id=None, detail=str(error), remedy=_REBUILT)


async def verify_journal(journal: Journal) -> AsyncIterator[Flaw | None]:
    """Every event of every session that stands there."""
    for session_id in list(journal.heads()):
        after = journal.released(session_id)
        try:
            while records := await journal.read(session_id, after, bytes_max=READ_BYTES):
                for record in records:
                    seqs = [event.seq for event in decode_events(record.payload)]
                    if seqs != list(range(record.first_seq, record.last_seq + 1)):
                        raise Damaged(
                            f"its record of events {record.first_seq} to {record.last_seq} holds others"
                        )
                after = records[-1].last_seq
        except Damaged as error:
            remedy = "where no segment holds them, put the journal back from a copy, or go on without them: "
            yield Flaw(
                name="journal.db",
                session_id=session_id,
                detail=str(error),
                remedy=f"{remedy}`sojourn accept-loss {session_id}`"
                if isinstance(error, Missing)
                else _FROM_A_COPY,
            )
        else:
            yield None


async def verify_objects(
    objects: Objects, prefix: str = "sessions", *, manifests: set[str] | None = None
) -> AsyncIterator[Flaw | None]:
    """Every object below `prefix`: a flaw, or None for one that is whole, in the order of their names. One object is held
    in memory at a time.

    Args:
        manifests: takes the ids of the sessions that have a manifest, whole or not.

    Raises:
        StoreError: the store does not answer.
    """
    names = [name async for name in objects.list(prefix)]
    for folder, members in groupby(names, key=lambda name: name.rpartition("/")[0]):
        session_id = folder.rpartition("/")[2]
        entries: dict[str, tuple[str, int]] = {}
        manifest: Manifest | None = None
        for name in members:
            if manifests is not None and name == manifest_name(session_id):
                manifests.add(session_id)
            try:
                data = await objects.get(name)
                entries[name] = (sha256_of(data), len(data))
                checked = _check(name, session_id, data)
                manifest = checked or manifest
            except Damaged as error:
                yield Flaw(
                    name=name, session_id=session_id, detail=str(error), remedy=_remedy(name, session_id)
                )
            except ObjectMissing:
                continue  # its owner was quicker; where its manifest lists it, that is said below
            else:
                yield None
        if manifest is not None:
            for entry in manifest.objects:
                if entries.get(entry.name) == (entry.sha256, entry.bytes):
                    continue
                detail = (
                    "it is not what its manifest says"
                    if entry.name in entries
                    else "its manifest names it; it is not there"
                )
                yield Flaw(
                    name=entry.name,
                    session_id=session_id,
                    detail=detail,
                    remedy=_remedy(entry.name, session_id),
                )


async def _verify_rows(catalog: Catalog, journal: Journal, tier: str, manifests: set[str]) -> list[Flaw]:
    """That a session is listed as of this tier where its manifest is, and nowhere else."""
    far = datetime.max.replace(tzinfo=UTC)
    listed = set(await catalog.in_tier(tier, updated_before=far, limit=1 << 62))
    flaws = [
        Flaw(
            name=manifest_name(session_id),
            session_id=session_id,
            detail=f"the catalog lists the session as {tier}, and its manifest is not there",
        )
        for session_id in sorted(listed - manifests - journal.heads().keys())
    ]
    for session_id in sorted(manifests - listed - journal.heads().keys()):
        row = await catalog.get(session_id)
        if row is None or (tier == ARCHIVE and row.tier != ARCHIVE):
            detail = f"it does not list the session as {tier}, and its manifest is there"
            flaws.append(Flaw(name="catalog.db", session_id=session_id, detail=detail, remedy=_REBUILT))
    return flaws


def _remedy(name: str, session_id: str) -> str:
    if name == facts_name(session_id):
        return "the session shows what was recorded: put it back from a copy, or set title and tags again"
    if snapshot_seq(name) is not None:
        return "the session is read from its events instead: put it back from a copy"
    return _FROM_A_COPY


def _check(name: str, session_id: str, data: bytes) -> Manifest | None:
    """The manifest, where the object is one. Raises Damaged."""
    if not name.startswith(f"{session_folder(session_id)}/"):
        raise Damaged(f"{name} lies in a folder that is not its session's")
    segment, seq = parse_name(name), snapshot_seq(name)
    if segment is not None:
        decode_segment(data, session_id=session_id, first_seq=segment.first_seq, last_seq=segment.last_seq)
    elif seq is not None:
        snapshot = decode_snapshot(unpack(data, SNAPSHOT_BYTES_MAX) if name.endswith(".zst") else data)
        if (snapshot.session_id, snapshot.seq) != (session_id, seq):
            raise Damaged(f"it holds seq {snapshot.seq} of {snapshot.session_id}")
    elif name.endswith("/manifest.json"):
        return decode_manifest(data, session_id)
    elif name.endswith("/facts.json"):
        decode_facts(data)
    else:
        raise Damaged("its name is none of ours")
    return None
