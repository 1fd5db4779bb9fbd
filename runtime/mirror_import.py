"""Takes in what only the mirror has, where the disk was lost, rolled back or damaged.

The mirror holds a session's documents, which are its whole state, and its events since the last snapshot. What it does not
hold of the history is declared lost, and the session goes on.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog
from anyio import to_thread

from ..actors.errors import StoreUnavailable
from ..actors.ports import Clock, Journal, Mirror, MirrorHead, Record
from ..actors.session.codec import encode_events, encode_snapshot
from ..actors.session.commands import HISTORY_LOST, Event, HistoryLost
from ..actors.session.documents import state_of
from ..actors.session.model import SessionState
from .compactor import Compactor
from .event_log import EventLog
from .layout import session_folder, snapshot_name
from .segments import encode_segment, segment_name
from .shelves import Shelves
from .verified import put_and_read_back

log = structlog.get_logger("sojourn.mirror")


class MirrorImport:
    """Makes sessions durable here again.

    Args:
        drop: a session leaves memory; on return its next message reads it from what is stored.
        imported: told of a session that was taken in.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        shelves: Shelves,
        event_log: EventLog,
        compactor: Compactor,
        clock: Clock,
        epoch: int,
        drop: Callable[[str], Awaitable[None]],
        imported: Callable[[str], None],
    ) -> None:
        self._journal = journal
        self._shelves = shelves
        self._event_log = event_log
        self._compactor = compactor
        self._clock = clock
        self._epoch = epoch
        self._drop = drop
        self._imported = imported

    async def fill(self, mirror: Mirror, session_id: str, first_seq: int, last_seq: int) -> bool:
        """For a session that is starting and has lost these events: whether the mirror had them, or its state after them.

        Raises as `take_in`.
        """
        head = await mirror.head(session_id)
        if head is None or head.seq < last_seq:
            return False
        if last_seq > self._journal.heads().get(session_id, 0):
            await self.take_in(mirror, session_id, head, starting=True)
            return True
        events = [e for e in await mirror.events(session_id, first_seq - 1) if e[0] <= last_seq]
        lines = _last_run(events, last_seq)
        if len(lines) < last_seq - first_seq + 1:
            return False
        async with self._shelves.alone(session_id):
            await self._store_segment(session_id, head.epoch, last_seq, lines)
        self._event_log.forget(session_id)
        log.warning(
            "session.filled_from_mirror",
            session=session_id,
            first_seq=first_seq,
            last_seq=last_seq,
            remedy="none is needed; look after the disk under the data folder, which had lost them",
        )
        return True

    async def take_in(
        self, mirror: Mirror, session_id: str, head: MirrorHead, *, starting: bool = False
    ) -> None:
        """On return the session stands here as it does in the mirror. What was here stays; what neither has is declared
        lost. A kill meanwhile leaves what is found again.

        A session that went on here since this start, before the mirror could be asked, has two histories, and the one here
        stays: what was acknowledged is in it. The mirror's is kept in `quarantine/`, as a snapshot and a list of events.

        Args:
            starting: its actor is, so there is none to drop.

        Raises:
            Damaged: the mirror's documents make no state.
            StoreUnavailable: it changed while it was read; or a store did not answer.
        """
        documents = await mirror.documents(session_id)
        here = self._journal.heads().get(session_id, 0)
        events = _last_run(await mirror.events(session_id, here), head.seq)
        if await mirror.head(session_id) != head:
            raise StoreUnavailable(f"the mirror of {session_id} changed while it was read; it is tried again")
        state = await to_thread.run_sync(state_of, session_id, head.seq, documents)
        if not starting and await self._went_on(session_id, here):
            await self._keep_aside(state, head, await mirror.events(session_id))
            return
        if not starting:
            await self._drop(session_id)
        async with self._shelves.alone(session_id):
            if self._journal.heads().get(session_id, 0) != here:
                raise StoreUnavailable(
                    f"session {session_id} went on here meanwhile, at seq {here}, where the mirror has seq {head.seq} of an "
                    "earlier time; the mirror's is given up"
                )
            if here:
                await self._compactor.write_segments(session_id, over_holes=True)
            await self._store(state, head, events)
            lost = (here + 1, head.seq - len(events))
            is_lost = lost[0] <= lost[1]
            # A session that nobody knows here begins with what declares its loss, so that none finds it without. From here
            # on it is active.
            if is_lost and not here:
                await self._declare(state, *lost)
            await self._journal.release({session_id: head.seq})
            if is_lost and here:
                await self._declare(state, *lost)
        if here and not starting:
            await self._drop(session_id)
        self._event_log.forget(session_id)
        self._imported(session_id)
        log.warning(
            "session.taken_from_mirror",
            session=session_id,
            seq=head.seq,
            lost=f"events {lost[0]} to {lost[1]}" if is_lost else "nothing",
            remedy="none is needed; look after the disk under the data folder, which had lost it",
        )

    async def _went_on(self, session_id: str, here: int) -> bool:
        """Whether its last event is of this process."""
        records = await self._journal.read(session_id, here - 1, bytes_max=1) if here else []
        return bool(records) and records[-1].epoch == self._epoch

    async def _keep_aside(
        self, state: SessionState, head: MirrorHead, events: list[tuple[int, bytes]]
    ) -> None:
        folder = f"quarantine/mirror-{state.session_id}-{head.epoch}-{head.seq}"
        data = await to_thread.run_sync(encode_snapshot, state, head.epoch)
        await put_and_read_back(self._shelves.recent, f"{folder}/snapshot.json", data)
        lines = b"".join([line + b"\n" for _, line in events])
        await put_and_read_back(self._shelves.recent, f"{folder}/events.ndjson", lines)
        log.error(
            "session.has_two_histories",
            session=state.session_id,
            mirror_seq=head.seq,
            kept=folder,
            remedy="this data folder is older than the mirror, which could not be asked when it was opened, and the session went on "
            "here meanwhile; that stays, and what the mirror had is kept below the data folder",
        )

    async def _store(self, state: SessionState, head: MirrorHead, events: list[bytes]) -> None:
        session_id = state.session_id
        data = await to_thread.run_sync(encode_snapshot, state, head.epoch)
        await put_and_read_back(self._shelves.recent, snapshot_name(session_id, head.seq), data)
        if events:
            await self._store_segment(session_id, head.epoch, head.seq, events)

    async def _store_segment(self, session_id: str, epoch: int, last_seq: int, lines: list[bytes]) -> None:
        first_seq = last_seq - len(lines) + 1
        payload = b"".join([line + b"\n" for line in lines])
        record = Record(session_id, first_seq, len(lines), epoch, payload)
        segment = await to_thread.run_sync(encode_segment, session_id, [record])
        name = segment_name(session_folder(session_id), first_seq, last_seq)
        await put_and_read_back(self._shelves.recent, name, segment)

    async def _declare(self, state: SessionState, first_seq: int, last_seq: int) -> None:
        now = self._clock.now()
        at = max(now, state.updated_at or datetime.min.replace(tzinfo=UTC))
        body = HistoryLost(first_seq=first_seq, last_seq=last_seq)
        event = Event(at, None, body, state.seq + 1, HISTORY_LOST.event)
        await self._journal.append(
            [Record(state.session_id, state.seq + 1, 1, self._epoch, encode_events([event]))]
        )


def _last_run(entries: list[tuple[int, bytes]], upto: int) -> list[bytes]:
    """The events that lead up to a seq without a gap."""
    events: list[bytes] = []
    for seq, event in reversed(entries):
        if seq > upto:
            continue
        if seq != upto - len(events):
            break
        events.append(event)
    return events[::-1]
