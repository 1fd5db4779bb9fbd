"""A session's whole event history: segments below what left the journal, the journal above.

The one place where both are read, so their overlap is deduplicated here, a copy that is damaged is replaced by the other
here, and a hole is found here.
"""

from collections import OrderedDict
from collections.abc import Sequence

import structlog

from ..actors.errors import Damaged, Missing, ObjectMissing
from ..actors.ports import Journal, Record
from .layout import session_folder
from .segments import SegmentName, decode_segment, parse_name
from .shelves import Shelves

log = structlog.get_logger("sojourn.history")

SEGMENTS_HELD = 4
LISTS_HELD = 64


class EventLog:
    """Reads what `Journal.read` reads, from the beginning of a session, whatever has been compacted or handed over.

    The last few segments stay unfolded in memory, and the last few lists of them: many readers follow each other.
    """

    def __init__(self, journal: Journal, shelves: Shelves) -> None:
        self._journal = journal
        self._shelves = shelves
        self._lists: OrderedDict[str, list[SegmentName]] = OrderedDict()
        self._unfolded: OrderedDict[str, list[Record]] = OrderedDict()

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        """The next records that hold an event above `after_seq`, without gap or overlap; none at the end. From a segment
        they are at most one segment's, whatever `bytes_max`.

        Raises:
            Missing: event `after_seq + 1` is known to have happened, and neither copy of it can be read.
        """
        while True:
            tier = (await self._shelves.find(session_id)).tier
            try:
                records = await self._read(session_id, after_seq, bytes_max)
            except Missing:
                if not await self._shelves.has_left(session_id, tier):
                    raise
                continue
            if records or not await self._shelves.has_left(session_id, tier):
                return records

    async def _read(self, session_id: str, after_seq: int, bytes_max: int | None) -> list[Record]:
        tried: set[str] = set()
        while True:
            if after_seq >= self._journal.released(session_id):
                records = await self._from_journal(session_id, after_seq, bytes_max)
                if records:
                    return records
            records = await self._from_segments(session_id, after_seq, tried)
            # What a release was not told of yet, or will never be, because the segment was damaged.
            records = records or await self._from_journal(session_id, after_seq, bytes_max)
            if records or not await self._has_moved(session_id, after_seq, tried):
                return records

    async def head(self, session_id: str) -> int:
        """The session's last seq, as journal or catalog knows it; 0 for one that is not there."""
        return (await self._shelves.find(session_id)).seq

    async def segments(self, session_id: str) -> list[SegmentName]:
        """The session's segments by first seq, as their names say; read anew."""
        objects = (await self._shelves.find(session_id)).objects
        found = [
            segment
            async for name in objects.list(session_folder(session_id))
            if (segment := parse_name(name)) is not None
        ]
        self._lists[session_id] = found
        self._lists.move_to_end(session_id)
        while len(self._lists) > LISTS_HELD:
            self._lists.popitem(last=False)
        return found

    def forget(self, session_id: str) -> None:
        """The session's segments have changed."""
        for segment in self._lists.pop(session_id, ()):
            self._unfolded.pop(segment.name, None)

    async def _from_journal(self, session_id: str, after_seq: int, bytes_max: int | None) -> list[Record]:
        """Empty where the journal does not continue there, or cannot be read there."""
        try:
            records = await self._journal.read(session_id, after_seq, bytes_max=bytes_max)
        except Missing as missing:
            if missing.first_seq <= after_seq + 1:
                return []
            # What stands before the damage, record by record.
            records = await self._journal.read(session_id, after_seq, bytes_max=1)
        return records if records and records[0].first_seq <= after_seq + 1 else []

    async def _from_segments(self, session_id: str, after_seq: int, tried: set[str]) -> list[Record]:
        """Empty where no segment that can be read holds the next event."""
        known = self._lists.get(session_id)
        if known is not None:
            records = await self._from_one_of(session_id, known, after_seq, tried)
            if records:
                return records
        return await self._from_one_of(session_id, await self.segments(session_id), after_seq, tried)

    async def _from_one_of(
        self, session_id: str, segments: Sequence[SegmentName], after_seq: int, tried: set[str]
    ) -> list[Record]:
        holding = [s for s in segments if s.first_seq <= after_seq + 1 <= s.last_seq]
        for segment in sorted(holding, key=lambda s: s.last_seq, reverse=True):
            tried.add(segment.name)
            try:
                records = await self.unfold(session_id, segment)
            except ObjectMissing:
                continue  # merged into another one since it was listed
            except Damaged as error:
                log.error(
                    "segment.damaged",
                    session=session_id,
                    name=segment.name,
                    error=str(error),
                    remedy="another copy is used where there is one; put this file back from a backup",
                )
                continue
            return [record for record in records if record.last_seq > after_seq]
        return []

    async def unfold(self, session_id: str, segment: SegmentName) -> list[Record]:
        """What one segment holds. Raises Damaged, ObjectMissing."""
        held = self._unfolded.get(segment.name)
        if held is not None:
            self._unfolded.move_to_end(segment.name)
            return held
        objects = (await self._shelves.find(session_id)).objects
        records = decode_segment(
            await objects.get(segment.name),
            session_id=session_id,
            first_seq=segment.first_seq,
            last_seq=segment.last_seq,
        )
        self._unfolded[segment.name] = records
        while len(self._unfolded) > SEGMENTS_HELD:
            self._unfolded.popitem(last=False)
        return records

    async def _has_moved(self, session_id: str, after_seq: int, tried: set[str]) -> bool:
        """Nothing was found there. Whether it stands in a segment that was not tried: compaction may merge segments faster than
        a slow store lists and reads them. Each name is tried once, so this comes to an end. False: it is the history's
        end. Raises Missing for a hole."""
        segments = await self.segments(session_id)
        if any(s.first_seq <= after_seq + 1 <= s.last_seq and s.name not in tried for s in segments):
            return True
        later = [s.first_seq for s in segments if s.first_seq > after_seq + 1]
        head = self._journal.heads().get(session_id, 0)
        if head > after_seq:
            later.append(await self._next_in_journal(session_id, after_seq, head))
        if later:
            raise Missing(session_id, after_seq + 1, min(later) - 1)
        return False

    async def _next_in_journal(self, session_id: str, after_seq: int, head: int) -> int:
        """The first seq above a hole that the journal can read, or one beyond its head."""
        at = max(after_seq, self._journal.released(session_id))
        while at < head:
            try:
                records = await self._journal.read(session_id, at, bytes_max=1)
            except Missing as missing:
                at = missing.last_seq
                continue
            return max(records[0].first_seq, at + 1) if records else head + 1
        return head + 1
