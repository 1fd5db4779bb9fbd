"""What the mirror writer asks of a runtime: a session whole, and what to do with what stands in the mirror and not here."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

import anyio
import structlog
from anyio.lowlevel import checkpoint

from ..actors.errors import SetAside
from ..actors.ports import Catalog, Journal, Mirror, MirrorHead, MirrorUpdate, Record
from ..actors.session.documents import all_documents
from ..actors.session.model import SessionState
from .event_log import EventLog
from .mirror_import import MirrorImport
from .shelves import ACTIVE
from .snapshots import Snapshotter

log = structlog.get_logger("sojourn.mirror")

DOCUMENTS_A_SLICE = 500  # under a millisecond
EVENTS_BYTES_MAX = (
    4 * 1024 * 1024
)  # more than a session has since its snapshot, while snapshots can be written
READ_AHEAD_BYTES = 32 * 1024 * 1024
READ_BYTES = 256 * 1024
SLICE_BYTES = 64 * 1024  # of events; as above


class MirroredSessions:
    """See actors.mirror_waiting.MirrorSource.

    Args:
        copy: a copy of a session's state, durable as it is.
        in_memory: whether a session is. The events of one that is not are left out of the mirror.
        strays: what only the mirror has is taken in. False: it is removed, since the mirror is this data folder's own, and
            the folder was made anew.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        catalog: Catalog,
        event_log: EventLog,
        snapshotter: Snapshotter,
        epoch: int,
        copy: Callable[[str], Awaitable[SessionState]],
        in_memory: Callable[[str], bool],
        import_: MirrorImport,
        strays: bool,
    ) -> None:
        self._journal = journal
        self._catalog = catalog
        self._event_log = event_log
        self._snapshotter = snapshotter
        self._epoch = epoch
        self._copy = copy
        self._in_memory = in_memory
        self._import = import_
        self._strays = strays
        self._reading = anyio.Lock()
        self._copying = 0
        self._wanted: dict[str, int] = {}  # above which seq: of those that wait for their events
        self._found: dict[str, Sequence[Record]] = {}  # by those that wait, or will be asked for next

    def heads(self) -> Mapping[str, int]:
        return self._journal.heads()

    async def whole(self, session_id: str, following: Callable[[], Sequence[str]]) -> MirrorUpdate | None:
        self._copying += 1
        try:
            return await self._whole(session_id, following)
        finally:
            self._copying -= 1
            if not self._copying:
                self._found.clear()

    async def _whole(self, session_id: str, following: Callable[[], Sequence[str]]) -> MirrorUpdate | None:
        if session_id not in self._journal.heads():
            return None
        in_memory = self._in_memory(session_id)
        try:
            state = await self._copy(session_id)
        except SetAside:
            return None
        events: tuple[bytes, ...] = ()
        if in_memory:
            # Where a snapshot is due, all events up to it need not be read back and sent: seconds for 200 busy sessions.
            await self._snapshotter.offer(state)
            events = await self._events(session_id, state.seq, following)
        documents: dict[str, bytes | None] = {}
        for name, document in all_documents(state):
            documents[name] = document
            if not len(documents) % DOCUMENTS_A_SLICE:
                await checkpoint()
        return MirrorUpdate(
            session_id=session_id,
            epoch=self._epoch,
            first_seq=1,
            last_seq=state.seq,
            events=events,
            documents=documents,
            whole=True,
        )

    async def _events(
        self, session_id: str, upto: int, following: Callable[[], Sequence[str]]
    ) -> tuple[bytes, ...]:
        """Those since the session's snapshot; the last ones where they are more than may be."""
        after = self._snapshotter.seq(session_id)
        events: list[bytes] = []
        size = 0
        while after < upto:
            records = await self._read_with_others(session_id, after, following)
            if not records or records[0].first_seq > after + 1 or records[-1].last_seq <= after:
                records = await self._event_log.read(session_id, after, bytes_max=READ_BYTES)
            for some in _slices(records):
                payload = b"".join([record.payload for record in some])
                first_seq = some[0].first_seq
                lines = payload.splitlines()[max(0, after + 1 - first_seq) : upto + 1 - first_seq]
                events += lines
                after += len(lines)
                size += len(payload)
                if after >= upto:
                    break
                await checkpoint()
            if size > EVENTS_BYTES_MAX:
                events, size = [], 0
        return tuple(events)

    async def _read_with_others(
        self, session_id: str, after: int, following: Callable[[], Sequence[str]]
    ) -> Sequence[Record]:
        """What the journal has above `after`, and perhaps below, too; nothing where it is more than is sent. In one walk over its
        rows for all who wait meanwhile and who come next: 200 sessions under full load have their events in the same rows,
        and where every 40 had a walk of their own, that was three quarters of the time until the mirror was level."""
        if session_id not in self._found:
            if self._journal.pending_bytes(session_id, after) > EVENTS_BYTES_MAX:
                return ()
            self._wanted[session_id] = after
            try:
                async with self._reading:
                    if session_id in self._wanted:
                        # Where this fails, the next one reads for those who still wait.
                        await self._read_for_all(following())
            finally:
                self._wanted.pop(session_id, None)
        return self._found.pop(session_id, ())

    async def _read_for_all(self, following: Sequence[str]) -> None:
        after = dict(self._wanted)
        if not any(session_id in self._found for session_id in following):
            self._found.clear()  # of some that were not asked for after all
            self._add_following(after, following)
        self._found.update(await self._journal.read_several(after))
        for session_id in after:
            self._wanted.pop(session_id, None)

    def _add_following(self, after: dict[str, int], following: Sequence[str]) -> None:
        size = sum([self._journal.pending_bytes(session_id, seq) for session_id, seq in after.items()])
        for session_id in following:
            seq = self._snapshotter.seq(session_id)
            pending = self._journal.pending_bytes(session_id, seq)
            if pending <= EVENTS_BYTES_MAX and self._in_memory(session_id) and session_id not in after:
                size += pending
                if size > READ_AHEAD_BYTES:
                    break
                after[session_id] = seq

    async def found(self, mirror: Mirror, session_id: str, head: MirrorHead) -> None:
        if session_id not in self._journal.heads():
            row = await self._catalog.get(session_id)
            if row is not None and row.tier != ACTIVE:
                await mirror.remove(session_id, self._epoch, row.tier)
                return
            if not self._strays:
                log.info(
                    "mirror.removed_stray",
                    session=session_id,
                    remedy="none is needed: it is of a data folder that was here before this one",
                )
                await mirror.remove(session_id, self._epoch)
                return
        await self._import.take_in(mirror, session_id, head)


def _slices(records: Iterable[Record]) -> Iterator[list[Record]]:
    some: list[Record] = []
    size = 0
    for record in records:
        some.append(record)
        size += len(record.payload)
        if size >= SLICE_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some
