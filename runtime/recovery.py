"""A session's state from what is stored: the newest valid snapshot, else the older one, then the events above it."""

from collections.abc import Mapping

import structlog
from anyio.lowlevel import checkpoint
from attrs import frozen

from ..actors.errors import Damaged, Missing, ObjectMissing, SessionQuarantined, SetAside
from ..actors.ports import Journal, Objects, Record
from ..actors.session.actor import ReplayFailure
from ..actors.session.codec import decode_events, decode_snapshot
from ..actors.session.core import apply
from ..actors.session.model import Limits, SessionState
from ..actors.session.poison import one_line
from .event_log import EventLog
from .layout import session_folder, snapshot_seq
from .segments import unpack
from .shelves import Shelf, Shelves

log = structlog.get_logger("sojourn.recovery")

READ_BYTES = 256 * 1024
EVENTS_A_SLICE = 200  # some 2 ms: others go on while a long history is folded
SNAPSHOT_BYTES_MAX = 512 * 1024 * 1024


@frozen(kw_only=True)
class Recovered:
    """A state, the epoch of its last record, and the seq of the snapshot it began with (0: none).

    `missing` are the first and last seq of events that are lost and were not accepted as such; then `state` stands
    before the first of them, or is a snapshot from behind them, and nothing may be added to it. With a `failure` it stands
    before an event that cannot be applied, and nothing may be added to it either.
    """

    state: SessionState
    epoch: int
    snapshot_seq: int
    missing: tuple[int, int] | None = None
    failure: ReplayFailure | None = None

    def whole(self) -> SessionState:
        """The state, where it is the session's last. Raises SetAside, SessionQuarantined."""
        if self.missing is not None:
            raise SetAside(self.state.session_id, *self.missing)
        if self.failure is not None:
            raise SessionQuarantined(self.state.session_id, self.failure.seq, self.failure.error)
        return self.state


class _Unreplayable(Exception):
    """Event `seq` cannot be read or applied."""

    def __init__(self, seq: int, error: Exception) -> None:
        super().__init__(seq)
        self.seq = seq
        self.error = error


class Recovery:
    """Reads sessions back, of every tier.

    Args:
        known_heads: how far sessions are known to have come by what is no part of their history (the catalog's rows,
            where they are ahead of the journal): a session that ends below has lost its end.
        epoch: this process's. What was last written in it has been read back before, and found to be whole.
        short_bytes: such a session is folded from the journal where that holds everything, and less than this: it is not due
            for a snapshot, and looking for one is half of what its activation takes.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        event_log: EventLog,
        shelves: Shelves,
        limits: Limits,
        known_heads: Mapping[str, int],
        epoch: int = 0,
        short_bytes: int = 0,
    ) -> None:
        self._epoch = epoch
        self._short_bytes = short_bytes
        self._journal = journal
        self._event_log = event_log
        self._shelves = shelves
        self._limits = limits
        self._known_heads = known_heads

    async def recover(self, session_id: str, *, losses_accepted: bool = False) -> Recovered:
        """The state at the session's end; seq 0 for a session that is not there.

        Args:
            losses_accepted: fold on behind lost events, as after `sojourn accept-loss`.

        Raises:
            Damaged: nothing of it can be read; or its creation is lost, and no snapshot holds it.
            StoreUnavailable: the disk did not answer.
        """
        while True:
            shelf = await self._shelves.find(session_id)
            try:
                recovered = await self._recover(session_id, shelf, losses_accepted)
            except (Damaged, ObjectMissing):
                if not await self._shelves.has_left(session_id, shelf.tier):
                    raise
                continue
            missing = recovered.missing
            if missing is None:
                return recovered
            if await self._shelves.has_left(session_id, shelf.tier):
                continue
            if not losses_accepted:
                log.error(
                    "session.set_aside",
                    session=session_id,
                    first_seq=missing[0],
                    last_seq=missing[1],
                    remedy=f"put the files back from a copy, or `sojourn accept-loss {session_id}`",
                )
            return recovered

    async def _recover(self, session_id: str, shelf: Shelf, losses_accepted: bool) -> Recovered:
        return await self._short(session_id, shelf) or await self._long(session_id, shelf, losses_accepted)

    async def _short(self, session_id: str, shelf: Shelf) -> Recovered | None:
        """From the journal alone; None where that does not do."""
        journal = self._journal
        end = max(shelf.seq, self._known_heads.get(session_id, 0))
        if (
            journal.epoch_of(session_id) != self._epoch
            or journal.heads().get(session_id) != end
            or journal.released(session_id)
            or journal.pending_bytes(session_id, 0) >= self._short_bytes
        ):
            return None
        state = SessionState(session_id=session_id)
        try:
            epoch, holes = await self._fold(state, 0, end)
        except _Unreplayable:
            return None  # said there
        return None if holes else Recovered(state=state, epoch=epoch, snapshot_seq=0)

    async def _long(self, session_id: str, shelf: Shelf, losses_accepted: bool) -> Recovered:
        state, epoch, snapshot = await self._newest_snapshot(session_id, shelf.objects)
        end = max(shelf.seq, self._known_heads.get(session_id, 0), snapshot)
        holes = [] if snapshot == 0 else await self._below(session_id, snapshot)
        failure = None
        try:
            epoch, found = await self._fold(state, epoch, end)
        except _Unreplayable as stopped:
            # It may have been applied in part, so all is folded anew, up to the event before.
            failure = ReplayFailure(stopped.seq, one_line(stopped.error))
            end = stopped.seq - 1
            state, epoch, snapshot = await self._newest_snapshot(session_id, shelf.objects)
            epoch, found = await self._fold(state, epoch, end)
            log.error(
                "session.not_replayed",
                session=session_id,
                seq=stopped.seq,
                error=failure.error,
                remedy="it is read-only at the event before; upgrade Sojourn if a newer version wrote it, else report it",
                exc_info=stopped.error,
            )
        # Looked at last: the event that accepts a loss comes behind it.
        holes = [hole for hole in holes if not _accepted(hole, state)]
        found = [hole for hole in found if not _accepted(hole, state)]
        holes += found
        if holes and not losses_accepted:
            first = holes[0]
            if found and first == found[0]:  # the state before it, and nothing of what came after
                state, epoch, snapshot = await self._newest_snapshot(session_id, shelf.objects)
                epoch, _ = await self._fold(state, epoch, first[0] - 1)
        if state.header is None and failure is not None:
            raise Damaged(
                f"the creation of {session_id} cannot be applied ({failure.error}); upgrade Sojourn if a newer version wrote it, "
                "else report it"
            )
        if state.header is None and (holes or end):
            raise Damaged(
                f"the creation of {session_id} is lost, and no snapshot of it can be read; put {session_folder(session_id)} or "
                "the journal back from a copy"
            )
        missing = (holes[0][0], holes[-1][1]) if holes else None
        return Recovered(state=state, epoch=epoch, snapshot_seq=snapshot, missing=missing, failure=failure)

    async def _fold(self, state: SessionState, epoch: int, end: int) -> tuple[int, list[tuple[int, int]]]:
        """Applies the events up to `end`, and beyond where there are more in the record that holds it. Lost ones are left
        out. Returns the last record's epoch and the holes. Raises _Unreplayable."""
        holes: list[tuple[int, int]] = []
        limits = self._limits
        while state.seq < end:
            try:
                records = await self._event_log.read(state.session_id, state.seq, bytes_max=READ_BYTES)
                missing = None if records else (state.seq + 1, end)
            except Missing as error:
                missing = (error.first_seq, error.last_seq)
            if missing is not None:
                holes.append(missing)
                state.seq = missing[1]
                if state.header is None:
                    break  # nothing can be folded without the creation
                continue
            for record in records:
                at = state.seq + 1
                try:
                    for event in decode_events(record.payload, state.seq):
                        at = event.seq
                        if at > end:
                            return epoch, holes
                        apply(state, event, limits=limits)
                        at += 1
                        if not event.seq % EVENTS_A_SLICE:
                            await checkpoint()
                except MemoryError:
                    raise  # of the machine, not of the event
                except Exception as error:
                    if at > end:
                        return epoch, holes
                    raise _Unreplayable(at, error) from error
                epoch = record.epoch
        return epoch, holes

    async def _below(self, session_id: str, snapshot: int) -> list[tuple[int, int]]:
        """Events below a snapshot that neither a segment nor the journal holds, by their names and heads alone: damage
        within them shows when they are read."""
        released = self._journal.released(session_id)
        head = self._journal.heads().get(session_id, 0)
        if released == 0 and head >= snapshot:
            return []  # nothing has left the journal
        spans = [(s.first_seq, s.last_seq) for s in await self._event_log.segments(session_id)]
        if head > released:
            spans.append((released + 1, head))
        holes, at = [], 1
        for first_seq, last_seq in sorted(spans):
            if first_seq > at:
                holes.append((at, min(first_seq - 1, snapshot)))
            at = max(at, last_seq + 1)
            if at > snapshot:
                break
        if at <= snapshot:
            holes.append((at, snapshot))
        return [hole for hole in holes if hole[0] <= hole[1]]

    async def _newest_snapshot(
        self, session_id: str, objects: Objects, gone: frozenset[str] = frozenset()
    ) -> tuple[SessionState, int, int]:
        for name in await snapshot_names(objects, session_id):
            try:
                data = await objects.get(name)
            except ObjectMissing:
                if name in gone:  # it is listed, and is not there
                    raise
                # Newer ones have taken its place since the list was read.
                return await self._newest_snapshot(session_id, objects, gone | {name})
            try:
                snapshot = decode_snapshot(
                    unpack(data, SNAPSHOT_BYTES_MAX) if name.endswith(".zst") else data
                )
                if (snapshot.session_id, snapshot.seq) != (session_id, snapshot_seq(name)):
                    raise Damaged(f"it holds seq {snapshot.seq} of {snapshot.session_id}")
            except Damaged as error:
                log.error(
                    "snapshot.damaged",
                    session=session_id,
                    name=name,
                    error=str(error),
                    remedy="the older one is used, or the events themselves",
                )
                continue
            return snapshot.state, snapshot.epoch, snapshot.seq
        return SessionState(session_id=session_id), 0, 0


class History:
    """Reads a session's events as `EventLog` does, but goes on behind a loss that a person has accepted: the record after
    it begins above the hole."""

    def __init__(self, event_log: EventLog, recovery: Recovery) -> None:
        self._event_log = event_log
        self._recovery = recovery

    async def head(self, session_id: str) -> int:
        """The session's last seq, as journal or catalog knows it; 0 for one that is not there."""
        return await self._event_log.head(session_id)

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        """See EventLog.read. Raises Missing for a loss that was not accepted."""
        try:
            return await self._event_log.read(session_id, after_seq, bytes_max=bytes_max)
        except Missing as missing:
            hole = (missing.first_seq, missing.last_seq)
            recovered = await self._recovery.recover(session_id)
            if not _accepted(hole, recovered.state):
                raise
            return await self.read(session_id, missing.last_seq, bytes_max=bytes_max)


async def snapshot_names(objects: Objects, session_id: str) -> list[str]:
    """A session's snapshots, newest first."""
    found = [
        (seq, name)
        async for name in objects.list(session_folder(session_id))
        if (seq := snapshot_seq(name)) is not None
    ]
    return [name for _, name in sorted(found, reverse=True)]


def _accepted(hole: tuple[int, int], state: SessionState) -> bool:
    return any(loss.first_seq <= hole[0] and hole[1] <= loss.last_seq for loss in state.losses)
