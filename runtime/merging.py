"""The last merge of a session's segments, at its hand-over: few files, and little written anew."""

from collections.abc import AsyncIterator, Sequence

from attrs import evolve

from ..actors.errors import Damaged, Missing, ObjectMissing
from ..actors.ports import Objects, Record
from .bridge import compute
from .layout import session_folder
from .manifest import ManifestObject, entry_of
from .recovery import History
from .segments import SegmentName, decode_segment, encode_segment, parse_name, payload_bytes, segment_name
from .verified import Shipment

READ_BYTES = 1024 * 1024


class Merger:
    """Merges segments among the recent objects.

    Args:
        bytes_full: of event lines, in a segment; one that holds half as much stays as it is.
    """

    def __init__(self, *, recent: Objects, history: History, bytes_full: int) -> None:
        self._recent = recent
        self._history = history
        self._segment_bytes_full = bytes_full

    async def merged(
        self, session_id: str, last_seq: int, standing: Sequence[SegmentName], shipment: Shipment
    ) -> AsyncIterator[ManifestObject]:
        """All events in segments that follow each other, as few as may be without writing much anew: one of those that are
        standing which is half full stays as it is. What is new goes with the shipment. No more than one segment is held in
        memory."""
        pending: list[Record] = []
        after = pending_bytes = 0
        while after < last_seq:
            found = await self._standing_at(session_id, after + 1, standing)
            if found is not None:
                segment, data, records = found
                large = payload_bytes(records) * 2 >= self._segment_bytes_full
                if large or (segment.last_seq == last_seq and not pending):
                    if pending:
                        yield await _ship(session_id, pending, shipment)
                        pending, pending_bytes = [], 0
                    yield entry_of(segment.name, data)
                    after = segment.last_seq
                    continue
            else:
                records = await self._page(session_id, after, last_seq, standing)
                if not records:  # a loss that was accepted reaches to where the next segment begins
                    after = min(s.first_seq - 1 for s in standing if s.first_seq > after + 1)
                    continue
            for record in records:
                behind_a_loss = pending and record.first_seq > pending[-1].last_seq + 1
                if behind_a_loss or pending_bytes >= self._segment_bytes_full:
                    yield await _ship(session_id, pending, shipment)
                    pending, pending_bytes = [], 0
                pending.append(record)
                pending_bytes += len(record.payload)
                after = record.last_seq
        if pending:
            yield await _ship(session_id, pending, shipment)

    async def _standing_at(
        self, session_id: str, first_seq: int, standing: Sequence[SegmentName]
    ) -> tuple[SegmentName, bytes, list[Record]] | None:
        """The longest segment that begins there and can be read."""
        candidates = [segment for segment in standing if segment.first_seq == first_seq]
        for segment in sorted(candidates, key=lambda segment: segment.last_seq, reverse=True):
            try:
                data = await self._recent.get(segment.name)
                return segment, data, await compute(len(data), _decode_named, session_id, segment, data)
            except (Damaged, ObjectMissing):
                continue  # the log reads another copy, and says what is wrong with this one
        return None

    async def _page(
        self, session_id: str, after: int, last_seq: int, standing: Sequence[SegmentName]
    ) -> list[Record]:
        """The next events, as far as where a segment begins that may stay as it is. None where all up to there are lost, and
        that was accepted."""
        upto = min([s.first_seq - 1 for s in standing if s.first_seq > after + 1] + [last_seq])
        records = await self._history.read(session_id, after, bytes_max=READ_BYTES)
        if not records or records[0].first_seq > last_seq:
            raise Missing(session_id, after + 1, last_seq)
        return [_cut(record, after, upto) for record in records if record.first_seq <= upto]


async def _ship(session_id: str, records: list[Record], shipment: Shipment) -> ManifestObject:
    name = segment_name(session_folder(session_id), records[0].first_seq, records[-1].last_seq)
    data = await compute(payload_bytes(records), encode_segment, session_id, records)
    segment = parse_name(name)
    assert segment is not None
    await compute(payload_bytes(records), _decode_named, session_id, segment, data)
    await shipment.add(name, data)
    return entry_of(name, data)


def _decode_named(session_id: str, segment: SegmentName, data: bytes) -> list[Record]:
    return decode_segment(data, session_id=session_id, first_seq=segment.first_seq, last_seq=segment.last_seq)


def _cut(record: Record, after: int, upto: int) -> Record:
    """The part of a record above `after` and up to `upto`."""
    if record.first_seq > after and record.last_seq <= upto:
        return record
    first_seq = max(record.first_seq, after + 1)
    lines = record.payload.splitlines(keepends=True)
    lines = lines[first_seq - record.first_seq : upto + 1 - record.first_seq]
    return evolve(record, first_seq=first_seq, count=len(lines), payload=b"".join(lines))
