"""The moves between the tiers: active to recent at hand-off, recent to archive once it is old.

Each is copy, read back and verify, write the manifest, switch the catalog, delete the source. A kill anywhere leaves one
complete copy, and the same move again does what is left and changes nothing else: every name and every byte of it follows
from the session alone. Which state a crash left is told by what is stored:

    the journal has the session, no manifest      active; what was copied is found again
    the journal has it, and there is a manifest   handed over but for the end: again
    a recent manifest, the catalog says recent    recent; segments and snapshots that it does not list are superseded
    a manifest in both places                     archived: the archive's was written last and verified
    a recent manifest, the catalog says archive   archived; what is left with the recent ones is deleted, manifest last
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import structlog
from anyio import to_thread
from attrs import evolve

from ..actors.errors import (
    Damaged,
    NoSuchSession,
    NotSealed,
    ObjectMissing,
    StoreUnavailable,
)
from ..actors.ports import Catalog, CatalogQuery, CatalogRow, Clock, Journal, Objects
from ..actors.session.codec import decode_snapshot, encode_snapshot
from ..actors.session.model import ENDED, SessionState
from ..actors.session.record import decode_record, public_record
from ..actors.tiering.actor import LOOK_EVERY_S, Waiting
from ..actors.tiering.core import Work
from .bridge import compute
from .event_log import EventLog
from .facts import Keep, changed, encode_facts, facts_of, with_facts
from .layout import facts_name, manifest_name, session_folder, snapshot_name, snapshot_seq
from .manifest import (
    SNAPSHOT,
    Manifest,
    ManifestObject,
    chain_of,
    decode_manifest,
    encode_manifest,
    entry_of,
    sha256_of,
)
from .merging import Merger
from .projector import catalog_row
from .recovery import SNAPSHOT_BYTES_MAX, History, Recovered, Recovery
from .resting import Rest
from .segments import (
    SEGMENT_BYTES_FULL,
    pack,
    parse_name,
    unpack,
)
from .shelves import ACTIVE, ARCHIVE, RECENT, Shelves
from .verified import Shipment, get_or_none, put_and_read_back, put_unless_there

log = structlog.get_logger("sojourn.tiering")

SESSIONS = "sessions"  # the folder of all sessions' objects
PAGE_ROWS = 200
LOOKED_A_SLICE = 100  # of all sessions' folders, after a start, when everybody comes back
_ENDED = frozenset(status.value for status in ENDED)


def archive_place(setting: str | None) -> str:
    """What stands before a name in `storage.archive_path`: the archive's folder, or `s3://bucket/prefix`."""
    return (setting or "archive").partition("?")[0].rstrip("/")


def look_every_s(recent_days: float) -> float:
    """How often the catalog is looked at: often enough that no session stays recent for a tenth longer than it should."""
    return min(LOOK_EVERY_S, max(1.0, recent_days * 86_400 / 10))


class Tiering:
    """Moves sessions. See actors.tiering.actor.Mover for what its methods promise.

    Args:
        seal: makes `session.sealed` the session's last event, where it is not; durable on return.
        moved: told of every session whose objects or row have changed, and of its tier.
        segment_bytes_full: of event lines; a segment that holds half as much stays as it is when segments are merged.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        catalog: Catalog,
        shelves: Shelves,
        event_log: EventLog,
        history: History,
        recovery: Recovery,
        clock: Clock,
        seal: Callable[[str], Awaitable[None]],
        moved: Callable[[str, str], None],
        archive_at: str,
        recent_days: float,
        seal_after_s: float,
        segment_bytes_full: int = SEGMENT_BYTES_FULL,
    ) -> None:
        self._journal = journal
        self._catalog = catalog
        self._shelves = shelves
        self._event_log = event_log
        self._recovery = recovery
        self._clock = clock
        self._seal = seal
        self._moved = moved
        self._archive_at = archive_at
        self._recent_days = recent_days
        self._seal_after_s = seal_after_s
        self._merger = Merger(recent=shelves.recent, history=history, bytes_full=segment_bytes_full)

    # -- active to recent ------------------------------------------------------------------------------------------

    async def hand_off(self, session_id: str) -> None:
        """On return the session is recent, or archived already, and nothing superseded is left.

        Raises:
            NoSuchSession: there is none.
            IllegalInStatus: it has not ended.
            SetAside: it has lost events; it stays active until a person accepts that.
            Damaged, StoreError: it stays where it is.
        """
        shelf = await self._shelves.find(session_id)
        if shelf.seq == 0:
            raise NoSuchSession(session_id)
        if shelf.tier == ACTIVE and not await self._is_sealed(session_id, shelf.seq):
            await self._seal(session_id)
        async with self._shelves.alone(session_id):
            shelf = await self._shelves.find(session_id)
            if shelf.tier == ARCHIVE:
                return
            names = [name async for name in self._shelves.recent.list(session_folder(session_id))]
            if shelf.tier == ACTIVE:
                manifest = await self._complete_recent(session_id, names)
                await self._switch_to_recent(manifest, has_facts=facts_name(session_id) in names)
                await self._journal.forget([session_id])
                log.info("session.handed_over", session=session_id, seq=manifest.seq)
            else:
                manifest = await self._manifest(self._shelves.recent, session_id)
            await self._delete_superseded(manifest, names)
            self._changed(session_id, RECENT)

    async def _is_sealed(self, session_id: str, head: int) -> bool:
        row = await self._catalog.get(session_id)
        return row is not None and row.seq == head and decode_record(row.record)["sealed_at"] is not None

    async def _complete_recent(self, session_id: str, names: Sequence[str]) -> Manifest:
        """The session as objects, each verified, and the manifest beside them. `names`: what is there of it."""
        recovered = await self._recovery.recover(session_id)
        state = recovered.whole()
        shipment = Shipment(self._shelves.recent)
        standing = [segment for name in names if (segment := parse_name(name)) is not None]
        merged = self._merger.merged(session_id, state.seq, standing, shipment)
        segments = [entry async for entry in merged]
        snapshot, epoch = await self._final_snapshot(recovered, shipment)
        manifest = _recent_manifest(state, epoch, snapshot, segments)
        await shipment.close(manifest_name(session_id), _checked(manifest))
        return manifest

    async def _final_snapshot(self, recovered: Recovered, shipment: Shipment) -> tuple[ManifestObject, int]:
        """The snapshot at the session's end, which goes with the shipment where it is not there; and its epoch."""
        state, objects = recovered.state, self._shelves.recent
        name = snapshot_name(state.session_id, state.seq)
        if recovered.snapshot_seq == state.seq:
            data = await objects.get(name)
            try:
                return entry_of(name, data), (await to_thread.run_sync(decode_snapshot, data)).epoch
            except Damaged as error:
                log.error(
                    "snapshot.damaged",
                    session=state.session_id,
                    name=name,
                    error=str(error),
                    remedy="none is needed: it was whole a moment ago, and is written anew",
                )
        data = await compute(state.size_bytes, encode_snapshot, state, recovered.epoch)
        await shipment.add(name, data)
        return entry_of(name, data), recovered.epoch

    async def _switch_to_recent(self, manifest: Manifest, *, has_facts: bool = True) -> None:
        row = await self._row(manifest, self._shelves.recent) if has_facts else catalog_row(manifest.record)
        if await self._catalog.switch(row, from_tier=ACTIVE):
            return
        # The projector lags, or the catalog is an older one: level first.
        record = manifest.record
        active = {**record, "storage": {**record["storage"], "active": True}, "tier": ACTIVE}
        await self._catalog.put([catalog_row(active)])
        if await self._catalog.switch(row, from_tier=ACTIVE):
            return
        await self._catalog.put([row])  # it was recent already, and something was added to it since
        if await self._catalog.get(manifest.session_id) != row:
            raise StoreUnavailable(
                f"the catalog has another row of {manifest.session_id} than the one that was handed over; stop, and run "
                "`sojourn rebuild-catalog`"
            )

    async def _delete_superseded(self, manifest: Manifest, names: Sequence[str]) -> None:
        """Of what was there, what the manifest does not list, nor is it or the facts."""
        kept = {entry.name for entry in manifest.objects}
        for name in names:
            if name not in kept and _is_history(name):
                await self._shelves.recent.delete(name)

    # -- recent to archive -----------------------------------------------------------------------------------------

    async def archive(self, session_id: str) -> None:
        """On return the session is in the archive, and nothing of it with the recent ones. Raises as `hand_off`."""
        if (await self._shelves.find(session_id)).tier == ACTIVE:
            await self.hand_off(session_id)
        async with self._shelves.alone(session_id):
            shelf = await self._shelves.find(session_id)
            if shelf.tier == RECENT:
                manifest = await self._complete_archive(session_id)
                row = await self._row(manifest, self._shelves.archive)
                if not await self._catalog.switch(row, from_tier=RECENT):
                    raise StoreUnavailable(
                        f"the catalog's row of {session_id} has changed while it was archived; it is tried again"
                    )
                log.info("session.archived", session=session_id, seq=manifest.seq)
            else:
                # I10. What is left is deleted only where the archive has all of it.
                manifest = await self._manifest(self._shelves.archive, session_id)
            await self._delete_recent(session_id)
            self._changed(session_id, ARCHIVE)

    async def _complete_archive(self, session_id: str) -> Manifest:
        """Every object in the archive, read back and verified, and the manifest there."""
        recent, archive = self._shelves.recent, self._shelves.archive
        try:
            manifest = await self._manifest(recent, session_id)
        except ObjectMissing:
            # An older catalog than its archive: everything is there already.
            return await self._manifest(archive, session_id)
        objects = [await self._copy(manifest, entry) for entry in manifest.objects]
        facts = await get_or_none(recent, facts_name(session_id))
        if facts is not None:
            await put_unless_there(archive, facts_name(session_id), facts)
        archived = _archive_manifest(manifest, objects, self._archive_at)
        await self._write_manifest(archive, archived)
        return archived

    async def _copy(self, manifest: Manifest, entry: ManifestObject) -> ManifestObject:
        data = await self._shelves.recent.get(entry.name)
        if sha256_of(data) != entry.sha256:
            raise Damaged(
                f"{entry.name} is not the object that the manifest of {manifest.session_id} lists; put it back from a copy"
            )
        if entry.kind != SNAPSHOT:
            await put_unless_there(self._shelves.archive, entry.name, data)
            return entry
        name = f"{entry.name}.zst"
        there = await get_or_none(self._shelves.archive, name)
        if there is None or await to_thread.run_sync(_unpacked, there) != data:
            there = await to_thread.run_sync(pack, data)
            await put_and_read_back(self._shelves.archive, name, there)
        await to_thread.run_sync(decode_snapshot, await to_thread.run_sync(unpack, there, SNAPSHOT_BYTES_MAX))
        return entry_of(name, there)

    async def _delete_recent(self, session_id: str) -> None:
        """The manifest last: while it stands, whoever sweeps finds what else is left."""
        objects = self._shelves.recent
        names = [name async for name in objects.list(session_folder(session_id))]
        manifest = manifest_name(session_id)
        for name in sorted(names, key=lambda name: name == manifest):
            await objects.delete(name)

    # -- facts -----------------------------------------------------------------------------------------------------

    async def set_facts(
        self, session_id: str, title: str | Keep | None, tags: Sequence[str] | Keep | None
    ) -> dict[str, Any]:
        """The session's record, as its facts are on return. One that is sealed and active is handed over first. Raises
        InvalidCommand, NotSealed, and as `hand_off`."""
        changed(None, title, tags)
        if (await self._shelves.find(session_id)).tier == ACTIVE:
            header = (await self._recovery.recover(session_id)).state.header
            if header is None:
                raise NoSuchSession(session_id)
            if header.sealed_at is None:
                raise NotSealed(session_id, header.status.value)
            await self.hand_off(session_id)
        async with self._shelves.alone(session_id):
            objects = (await self._shelves.find(session_id)).objects
            manifest = await self._manifest(objects, session_id)
            facts = changed(await facts_of(objects, session_id), title, tags)
            await put_and_read_back(objects, facts_name(session_id), encode_facts(facts))
            row = await self._row(manifest, objects)
            await self._catalog.put([row])
            return decode_record(row.record)

    # -- finding what waits ----------------------------------------------------------------------------------------

    async def look(self, known: frozenset[str], rooms: Mapping[Work, int], sweep: bool) -> list[Waiting]:
        """See Mover.look."""
        found = await self._left_over() if sweep else []
        found += [waiting async for waiting in self._ended(known, rooms[Work.HAND_OFF])]
        before = self._clock.now() - timedelta(days=self._recent_days)
        limit = rooms[Work.ARCHIVE] + len(known)
        old = await self._catalog.in_tier(RECENT, updated_before=before, limit=limit)
        unknown = [session_id for session_id in old if session_id not in known][: rooms[Work.ARCHIVE]]
        return found + [Waiting(session_id, Work.ARCHIVE, 0.0) for session_id in unknown]

    async def _ended(self, known: frozenset[str], limit: int) -> AsyncIterator[Waiting]:
        """Active sessions that have ended."""
        query = CatalogQuery(limit=PAGE_ROWS, status=_ENDED, tier=frozenset({ACTIVE}))
        now = self._clock.now()
        while limit > 0:
            rows = await self._catalog.page(query)
            for row in [row for row in rows if row.session_id not in known][:limit]:
                limit -= 1
                yield Waiting(row.session_id, Work.HAND_OFF, self._due_in_s(row, now))
            if len(rows) < PAGE_ROWS:
                return
            query = evolve(query, before=(rows[-1].created_at, rows[-1].session_id))

    def _due_in_s(self, row: CatalogRow, now: datetime) -> float:
        record = decode_record(row.record)
        if record["sealed_at"] is not None:
            return 0.0
        since_s: float = (now - (record["ended_at"] or row.updated_at)).total_seconds()
        return min(max(0.0, self._seal_after_s - since_s), self._seal_after_s)

    async def _left_over(self) -> list[Waiting]:
        """Sessions whose move broke off after its manifest was written; and a row for a manifest that has none."""
        far = datetime.max.replace(tzinfo=UTC)
        recent = set(await self._catalog.in_tier(RECENT, updated_before=far, limit=1 << 62))
        heads = self._journal.heads()
        found, missing = [], recent.copy()
        looked, rest = 0, Rest()
        async for session_id, names in by_session(self._shelves.recent):
            looked += 1
            if looked % LOOKED_A_SLICE == 0:
                await rest()
            missing.discard(session_id)
            complete = manifest_name(session_id) in names
            if complete and (session_id in heads or (session_id in recent and _has_superseded(names))):
                found.append(Waiting(session_id, Work.HAND_OFF, 0.0))
            elif session_id not in recent and session_id not in heads:
                row = await self._catalog.get(session_id)
                if row is not None and row.tier == ARCHIVE:
                    found.append(Waiting(session_id, Work.ARCHIVE, 0.0))
                elif complete:
                    await self._list_again(session_id)
                    found.append(Waiting(session_id, Work.HAND_OFF, 0.0))
        # An older catalog than the archive, which has them: nothing is here any more.
        return found + [Waiting(session_id, Work.ARCHIVE, 0.0) for session_id in sorted(missing)]

    async def _list_again(self, session_id: str) -> None:
        """The manifest is the fact: a session that has one is recent, whatever an older catalog says."""
        try:
            await self._switch_to_recent(await self._manifest(self._shelves.recent, session_id))
        except Damaged as error:
            log.error(
                "manifest.damaged",
                session=session_id,
                error=str(error),
                remedy=f"put {manifest_name(session_id)} back from a copy",
            )

    # -- what both share -------------------------------------------------------------------------------------------

    async def _manifest(self, objects: Objects, session_id: str) -> Manifest:
        return decode_manifest(await objects.get(manifest_name(session_id)), session_id)

    async def _write_manifest(self, objects: Objects, manifest: Manifest) -> None:
        """It is written last of all objects: from here on the session is complete there."""
        await put_unless_there(objects, manifest_name(manifest.session_id), _checked(manifest))

    async def _row(self, manifest: Manifest, objects: Objects) -> CatalogRow:
        return catalog_row(with_facts(manifest.record, await facts_of(objects, manifest.session_id)))

    def _changed(self, session_id: str, tier: str) -> None:
        self._event_log.forget(session_id)
        self._moved(session_id, tier)


def _checked(manifest: Manifest) -> bytes:
    """It as it is written, and read once: so that nothing is taken for complete that is not."""
    data = encode_manifest(manifest)
    decode_manifest(data, manifest.session_id)
    return data


def _recent_manifest(
    state: SessionState, epoch: int, snapshot: ManifestObject, segments: list[ManifestObject]
) -> Manifest:
    record = public_record(state, epoch=epoch, snapshot_path=snapshot.name)
    sealed_at: datetime = record["sealed_at"]
    return Manifest(
        chain=chain_of(segments),
        epoch=epoch,
        losses=tuple(state.losses),
        objects=(*segments, snapshot),
        record={**record, "storage": {**record["storage"], "active": False}, "tier": RECENT},
        sealed_at=sealed_at,
        seq=state.seq,
        session_id=state.session_id,
        tier=RECENT,
    )


def _archive_manifest(manifest: Manifest, objects: Sequence[ManifestObject], archive_at: str) -> Manifest:
    archive_path = f"{archive_at}/{manifest_name(manifest.session_id)}"
    storage = {"active": False, "archive_path": archive_path, "snapshot_path": None}
    return evolve(
        manifest,
        objects=tuple(objects),
        record={**manifest.record, "storage": storage, "tier": ARCHIVE},
        tier=ARCHIVE,
    )


def _unpacked(data: bytes) -> bytes | None:
    try:
        return unpack(data, SNAPSHOT_BYTES_MAX)
    except Damaged:
        return None


def _is_history(name: str) -> bool:
    return parse_name(name) is not None or snapshot_seq(name) is not None


def _has_superseded(names: Sequence[str]) -> bool:
    """Whether there is more than one snapshot, or segments overlap: one that is listed covers every other."""
    if sum(snapshot_seq(name) is not None for name in names) > 1:
        return True
    segments = sorted(
        (segment.first_seq, segment.last_seq) for name in names if (segment := parse_name(name)) is not None
    )
    return any(following[0] <= before[1] for before, following in pairwise(segments))


async def by_session(objects: Objects) -> AsyncIterator[tuple[str, list[str]]]:
    """Session ids and the names of their objects."""
    session_id, names = "", list[str]()
    async for name in objects.list(SESSIONS):
        folder = name.rpartition("/")[0]
        owner = folder.rpartition("/")[2]
        if owner != session_id:
            if names:
                yield session_id, names
            session_id, names = owner, []
        names.append(name)
    if names:
        yield session_id, names
