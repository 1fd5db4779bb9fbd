"""Compaction: events leave the bounded journal for segments, oldest rows first, sessions in memory or not."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack

import anyio
import structlog
from anyio.lowlevel import checkpoint
from attrs import evolve, frozen

from ..actors.compaction import SPARE_SHARE, Kept, bytes_to_free, releasable_seq, slowed_s
from ..actors.errors import (
    Damaged,
    Missing,
    SessionQuarantined,
    SetAside,
    SojournError,
    StorageFull,
    StoreError,
)
from ..actors.kernel.park import Gate
from ..actors.ports import Journal, Record
from .bridge import compute
from .event_log import EventLog
from .layout import session_folder
from .recovery import History
from .resting import Pace, Rest
from .segments import SEGMENT_BYTES_FULL, SegmentName, encode_segment, payload_bytes, segment_name
from .shelves import Shelves
from .snapshots import Snapshotter

log = structlog.get_logger("sojourn.compaction")

Snapshots = tuple[int, int]  # a session's newest and its older one, by their seqs

# What is done for each session, and about how long it takes: each snapshot, reading what moves, moving it, the release.
LEVEL, READ, MOVE, RELEASE = 2, 3, 3, 1
# Of the journal's bound. Compaction that went as fast as it could took the interpreter from commits, for seconds: their p99 was
# 20 times what it is otherwise.
HURRY_SHARE = 0.8
BYTES_A_READ = 32 * 1024 * 1024  # of several sessions, which wait in memory until they are moved
SESSIONS_A_RELEASE = 256  # held alone meanwhile
SESSIONS_A_SLICE = 16
RECORDS_A_SLICE = 250  # a millisecond; eight sessions are at it in turn
RETRY_S = 1.0
SPARED_MIN = 256  # for fewer sessions a second look is not worth it
GRACE_S = 1.0  # after the start: those who ask first are answered first


@frozen(kw_only=True)
class CompactionStatistics:
    """What compaction did since the start, and how much of the journal's bound is used."""

    segments_written: int
    events_moved: int
    journal_bytes: int
    journal_bytes_max: int


class Compactor:
    """Keeps the journal within `bytes_max`. `notice` is called after every commit and costs a comparison. A store that
    fails is tried again: it is no crash."""

    def __init__(
        self,
        *,
        journal: Journal,
        event_log: EventLog,
        history: History,
        shelves: Shelves,
        snapshotter: Snapshotter,
        bytes_max: int,
    ) -> None:
        self._journal = journal
        self._event_log = event_log
        self._history = history
        self._shelves = shelves
        self._snapshotter = snapshotter
        self._bytes_max = bytes_max
        self._pressure = Gate()
        self._hurry = Gate()  # a commit waits for room: not the moment for a pause
        self._freed = anyio.Event()
        # How far each session's segments reach that were verified here; beyond what was released, while it goes on writing.
        self._reach: dict[str, int] = {}
        self._waiting = 0  # commits that wait for room
        self._began_bytes = self._began_freed = (
            0  # what the journal held where this pass began, and had held before
        )
        self._spare_bytes = int(bytes_max * SPARE_SHARE)
        self._pace = Pace(self._room_used)
        self._segments = self._events = self._progress = self._failures = 0

    @property
    def is_waited_for(self) -> bool:
        """A commit waits for room, and with it the sessions that it is of."""
        return self._waiting > 0

    def notice(self) -> None:
        """Something was committed."""
        if bytes_to_free(self._journal.size_bytes, self._bytes_max):
            self._pressure.wake()

    async def room(self, wait_s: float) -> None:
        """Returns at once while the journal is well within its bound, near it some ms later, and at it once compaction has freed
        enough; or where only the newest row is left to free, because that goes with a newer one.

        Raises:
            StorageFull: nothing could be moved for `wait_s`, there is no room on the disk to move it to, or the journal
                takes no release.
        """
        if wait_s and (slowed := slowed_s(self._journal.size_bytes, self._bytes_max)):
            await anyio.sleep(slowed)
        self._waiting += 1
        try:
            while self._journal.size_bytes > self._bytes_max:
                if not self._journal.oldest(bytes_to_free(self._journal.size_bytes, self._bytes_max)):
                    return  # one commit was larger than the bound: refusing the next would refuse all of them for ever
                self._pressure.wake()
                self._hurry.wake()
                progress, failures = self._progress, self._failures
                with anyio.move_on_after(wait_s):
                    await self._freed.wait()
                if self._progress == progress or self._failures != failures:
                    raise StorageFull(
                        f"the journal holds the {self._bytes_max:,} bytes it may, and its events cannot be moved out of it now; "
                        "the server's log says why; or raise journal_bytes_max"
                    )
        finally:
            self._waiting -= 1

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor; runs until cancelled."""
        started()
        self.notice()
        with anyio.move_on_after(GRACE_S):
            await self._hurry.wait()
        while True:
            await self._pressure.wait()
            while bytes_to_free(self._journal.size_bytes, self._bytes_max):
                if not await self._compacts():
                    # Pinned by what fails, and was said so; the rest goes on.
                    with anyio.move_on_after(RETRY_S):
                        await self._hurry.wait()

    async def _compacts(self) -> bool:
        try:
            return await self.compact()
        except StoreError as error:  # the journal takes no release: what was moved is found again
            self._cannot_free()
            log.error("compaction.failed", error=str(error), remedy="it is tried again; nothing is lost")
            return False

    def _cannot_free(self) -> None:
        """Whoever waits for room hears it now: the sessions of that commit can be read again."""
        self._failures += 1
        self._tell_who_waits()

    def _tell_who_waits(self) -> None:
        self._freed.set()
        self._freed = anyio.Event()

    async def compact(self) -> bool:
        """Move what the oldest rows hold, as far as the rules allow. Returns whether that brought anything forward.

        Snapshots first: only what they let go is moved, so that each event is read and written once. A session that goes on
        writing is released up to its older one, which may be the newest of the compaction before this; where that does not
        reach, there is a second round of them.
        """
        before, snapshots = self._journal.size_bytes, self._snapshotter.written
        aim = bytes_to_free(before, self._bytes_max)
        needed = await self._oldest(aim)
        self._began_bytes, self._began_freed = before, self._journal.freed_bytes
        self._pace.begin((LEVEL + READ + MOVE + RELEASE) * len(needed))
        kept = await self._levelled(needed)
        # Half of the sessions let go free nothing, where each row is of all of them.
        short = {one: needed[one] for one, both in kept.items() if self._lets_go(one, both) < needed[one]}
        self._pace.more(LEVEL * len(short))
        kept |= await self._levelled(short)
        async for some in self._in_groups(kept):
            await self._move_group(some)
        freed = self._journal.freed_bytes - self._began_freed
        self._spare_bytes = int(self._bytes_max * SPARE_SHARE) if freed > 0 else 0
        if needed:
            log.info(
                "journal.compacted",
                sessions=len(needed),
                freed_bytes=freed,
                journal_bytes=self._journal.size_bytes,
            )
        return freed > 0 or self._snapshotter.written > snapshots

    async def _oldest(self, aim: int) -> dict[str, int]:
        """What must be released to free so much; most sessions are spared where that goes."""
        needed = self._journal.oldest(aim)
        if not self._spare_bytes or len(needed) < SPARED_MIN:
            return needed
        fewer = await self._journal.oldest_sparing(aim, self._spare_bytes, Rest())
        return fewer if 2 * len(fewer) <= len(needed) else needed

    def _room_used(self) -> float:
        """Of what may be written before the pass should be over. What it has released makes no more room: it would take its
        time for the rest, and the next pass would begin late."""
        freed = self._journal.freed_bytes - self._began_freed
        room = HURRY_SHARE * self._bytes_max - self._began_bytes
        return (self._journal.size_bytes + freed - self._began_bytes) / room if room > 0 else 1.0

    async def _levelled(self, needed: Mapping[str, int]) -> dict[str, Snapshots]:
        """The snapshots of each, with a new one of those whose older one does not reach what is needed."""
        kept: dict[str, Snapshots] = {}

        async def level(session_id: str) -> None:
            async with self._shelves.alone(session_id):
                if session_id in self._journal.heads():
                    kept[session_id] = await self._snapshotter.level(session_id, needed[session_id])
                else:  # it was handed over meanwhile
                    self.forget(session_id)

        await self._each(needed, level, LEVEL)
        return kept

    async def _in_groups(self, kept: Mapping[str, Snapshots]) -> AsyncIterator[dict[str, Snapshots]]:
        """Those that can be released further, as many as are read together."""
        some: dict[str, Snapshots] = {}
        size = 0
        for number, (session_id, snapshots) in enumerate(kept.items(), 1):
            if not number % SESSIONS_A_SLICE:
                await self._pace()
            if self._lets_go(session_id, snapshots) <= self._journal.released(session_id):
                continue
            to_read = self._let_go_bytes(session_id, self._moved_upto(session_id), snapshots)
            if some and size + to_read > BYTES_A_READ:
                yield some
                some, size = {}, 0
            some[session_id] = snapshots
            size += to_read
        if some:
            yield some

    async def _move_group(self, kept: Mapping[str, Snapshots]) -> None:
        ahead = await self._read_ahead(kept)
        session_ids = list(kept)
        for start in range(0, len(session_ids), SESSIONS_A_RELEASE):
            some = session_ids[start : start + SESSIONS_A_RELEASE]
            await self._move_and_release({session_id: kept[session_id] for session_id in some}, ahead)

    async def _move_and_release(
        self, kept: Mapping[str, Snapshots], ahead: dict[str, Sequence[Record]]
    ) -> None:
        upto: dict[str, int] = {}
        # Until they are released: one that was handed over meanwhile would be in the journal's care again.
        async with AsyncExitStack() as alone:

            async def move(session_id: str) -> None:
                await alone.enter_async_context(self._shelves.alone(session_id))
                if session_id in self._journal.heads():
                    records = ahead.pop(session_id, ())
                    upto[session_id] = await self.move(session_id, kept[session_id], records)
                else:  # by now
                    self.forget(session_id)

            await self._each(kept, move, MOVE)
            if upto:
                await self._journal.release(upto, self._pace)
                self._pace.done(RELEASE * len(kept))
                self._progress += 1
                self._tell_who_waits()

    async def _each(
        self, session_ids: Collection[str], do: Callable[[str], Awaitable[None]], pieces: int
    ) -> None:
        """What fails is said, and the others go on."""
        limiter = anyio.CapacityLimiter(1)
        async with anyio.create_task_group() as tasks:
            for session_id in session_ids:
                limiter.total_tokens = self._pace.at_once
                await limiter.acquire_on_behalf_of(session_id)
                await self._pace()
                tasks.start_soon(self._one, session_id, do, pieces, limiter)

    async def _one(
        self,
        session_id: str,
        do: Callable[[str], Awaitable[None]],
        pieces: int,
        limiter: anyio.CapacityLimiter,
    ) -> None:
        try:
            await do(session_id)
            self._progress += 1
        except (Missing, SetAside, SessionQuarantined) as error:
            log.warning(
                "session.not_compacted",
                session=session_id,
                error=str(error),
                remedy="its error says what to do; the other sessions go on",
            )
        except SojournError as error:
            if isinstance(error, StorageFull):
                self._cannot_free()
            log.error(
                "compaction.failed",
                session=session_id,
                error=str(error),
                remedy="it is tried again; nothing is lost",
            )
        finally:
            self._pace.done(pieces)
            limiter.release_on_behalf_of(session_id)

    async def _read_ahead(self, kept: Mapping[str, Snapshots]) -> dict[str, Sequence[Record]]:
        """What is to be moved of these. One alone is read as it is moved: it may be as large as the journal."""
        if len(kept) < 2:
            self._pace.done(READ * len(kept))
            return {}
        moved = {one: self._moved_upto(one) for one in kept}
        upto = {one: self._lets_go(one, snapshots) for one, snapshots in kept.items()}
        after = {one: seq for one, seq in moved.items() if seq < upto[one]}
        pieces = READ * len(kept)
        ahead = dict(await self._journal.read_several(after, upto, self._pace.now(pieces)))
        self._pace.done(pieces)
        return ahead

    def _moved_upto(self, session_id: str) -> int:
        return max(self._journal.released(session_id), self._reach.get(session_id, 0))

    def _let_go_bytes(self, session_id: str, after_seq: int, snapshots: Snapshots) -> int:
        """Of the events above `after_seq`, what goes with these snapshots."""
        pending = self._journal.pending_bytes
        upto = max(after_seq, self._lets_go(session_id, snapshots))
        return pending(session_id, after_seq) - pending(session_id, upto)

    def _lets_go(self, session_id: str, snapshots: Snapshots, segments_seq: int | None = None) -> int:
        """Up to which seq the session can be released with these snapshots, and segments that reach so far (None: all)."""
        head = self._journal.heads().get(session_id, 0)
        newest, older = snapshots
        reach = head if segments_seq is None else segments_seq
        return releasable_seq(Kept(segments_seq=reach, newest_seq=newest, older_seq=older, head_seq=head))

    async def move(self, session_id: str, snapshots: Snapshots, ahead: Sequence[Record] = ()) -> int:
        """Segments so that the session can be released as far as its snapshots allow; for those who write its objects alone.
        Returns the seq up to which it can be released.

        Args:
            snapshots: the seqs of its newest and its older one.
            ahead: records of it that were read already, in order.

        Raises:
            Missing: an event that should move cannot be read.
            StoreError: nothing is released; what was written is found again, or swept.
        """
        upto = self._lets_go(session_id, snapshots)
        segments_seq = await self.write_segments(session_id, upto=upto, ahead=ahead)
        return self._lets_go(session_id, snapshots, segments_seq)

    async def write_segments(
        self,
        session_id: str,
        *,
        upto: int | None = None,
        ahead: Sequence[Record] = (),
        over_holes: bool = False,
    ) -> int:
        """Every durable event up to `upto` (None: all) stands in a verified segment on return, and as many more as were read
        for that; returns the last one's seq.

        Args:
            ahead: see `move`.
            over_holes: leave out what is lost, accepted or not, instead of raising Missing.
        """
        after = self._moved_upto(session_id)
        head = self._journal.heads().get(session_id, 0)
        end = head if upto is None else min(upto, head)
        if after >= end:
            return after
        small, records = await self._small_tail(session_id, after, end - after)
        size_bytes = payload_bytes(records)
        while after < end:
            try:
                if ahead and ahead[0].first_seq <= after + 1 and ahead[-1].last_seq > after:
                    found = ahead
                else:
                    found = await self._history.read(session_id, after, bytes_max=SEGMENT_BYTES_FULL)
            except Missing as missing:
                if not over_holes:
                    raise
                if records:  # a segment ends where a hole begins
                    await self._put(session_id, records)
                    records, size_bytes = [], 0
                after = missing.last_seq
                continue
            ahead = ()
            for number, record in enumerate(found, 1):
                if not number % RECORDS_A_SLICE:
                    await checkpoint()
                if record.last_seq <= after:
                    continue
                behind_a_loss = record.first_seq > after + 1
                if records and (behind_a_loss or size_bytes >= SEGMENT_BYTES_FULL):
                    await self._put(session_id, records)
                    records, size_bytes = [], 0
                records.append(trimmed(record, after))
                after = record.last_seq
                size_bytes += len(record.payload)
        if records:
            await self._put(session_id, records)
        for segment in small:
            await self._shelves.recent.delete(segment.name)
            self._event_log.forget(session_id)
        self._reach[session_id] = after
        return after

    def forget(self, session_id: str) -> None:
        """The session's segments are no longer written here."""
        self._reach.pop(session_id, None)

    async def _small_tail(
        self, session_id: str, released: int, count: int
    ) -> tuple[list[SegmentName], list[Record]]:
        """The last segments that are taken into the next one, of which `count` new events are known, and what they hold.

        Each is at most twice as long as what comes behind it, and together they are at most half a segment: small ones do
        not pile up, and an event is written anew as often as its session doubles, not at each compaction (O'Neil et al.,
        The Log-Structured Merge-Tree, 1996).
        """
        small: list[SegmentName] = []
        held: list[Record] = []
        standing = await self._event_log.segments(session_id) if released else []
        size_bytes = 0
        for segment in sorted(standing, key=lambda segment: (-segment.last_seq, segment.first_seq)):
            if segment.last_seq != released:
                continue
            length = segment.last_seq + 1 - segment.first_seq
            if length > 2 * count:
                break
            try:
                records = await self._event_log.unfold(session_id, segment)
            except Damaged:
                continue  # left by a write that was not what it should be; another one was taken in its place
            size_bytes += payload_bytes(records)
            if size_bytes > SEGMENT_BYTES_FULL // 2:
                break
            small.append(segment)
            held[:0] = records
            released, count = segment.first_seq - 1, count + length
        return small, held

    async def _put(self, session_id: str, records: Sequence[Record]) -> None:
        first_seq, last_seq = records[0].first_seq, records[-1].last_seq
        name = segment_name(session_folder(session_id), first_seq, last_seq)
        data = await compute(payload_bytes(records), encode_segment, session_id, records)
        await self._shelves.recent.put_all([(name, data)])
        self._event_log.forget(session_id)
        self._segments += 1
        self._events += last_seq - first_seq + 1

    def statistics(self) -> CompactionStatistics:
        """A frozen value."""
        return CompactionStatistics(
            segments_written=self._segments,
            events_moved=self._events,
            journal_bytes=self._journal.size_bytes,
            journal_bytes_max=self._bytes_max,
        )


def trimmed(record: Record, after_seq: int) -> Record:
    """The part of a record above `after_seq`."""
    if record.first_seq > after_seq:
        return record
    lines = record.payload.splitlines(keepends=True)[after_seq + 1 - record.first_seq :]
    return evolve(record, first_seq=after_seq + 1, count=len(lines), payload=b"".join(lines))
