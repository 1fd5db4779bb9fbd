"""Where in the journal each session's records lie. It holds no payload and touches no file.

A record takes two words of 64 bits in an array of its session: (last seq << 32 | length) and (row << 24 | offset). A
length of 0 is a hole: these events are lost. Each array begins with a hole before its first record, so that a record's
first seq is always the last seq before it, plus one.

One thread writes; others may read meanwhile: each of their steps is one look-up or one copy, which the interpreter
does not divide.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from attrs import define

from ...actors.errors import StaleEpoch
from ...actors.ports import JournalStatistics, RecordKind
from .frames import CRC_BYTES, Row

_OFFSET_BITS = 24
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_LENGTH_MASK = (1 << 32) - 1
SEQ_MAX = (1 << 32) - 1


@define
class Place:
    """Where one record lies, and which events it holds. `length` 0: they are lost."""

    row: int
    offset: int
    length: int
    first_seq: int
    last_seq: int
    epoch: int


class _Heads(Mapping[str, int]):
    """The heads, for readers in another thread: a walk goes over a copy of the keys."""

    def __init__(self, heads: dict[str, int]) -> None:
        self._heads = heads

    def __getitem__(self, session_id: str) -> int:
        return self._heads[session_id]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._heads))

    def __len__(self) -> int:
        return len(self._heads)


class JournalIndex:
    """Session id to the places of its records, with the counts of what the journal holds."""

    def __init__(self) -> None:
        self._last_seqs: dict[str, int] = {}
        self._words: dict[str, array[int]] = {}
        self._epoch_rows: list[int] = []  # the rows from which on a new epoch writes,
        self._epochs: list[int] = []  # and which
        self.heads: Mapping[str, int] = _Heads(self._last_seqs)
        self.row = 0  # the last row that is indexed
        self.epoch = 0
        self.commits = 0
        self._records = self._events = self._payload_bytes = self._damaged = 0

    def check(self, rows: Sequence[Row]) -> None:
        """That these rows may be appended now.

        Raises:
            StaleEpoch: one is of a lower epoch than what stands before it.
            ValueError: a record does not follow what stands before it of its session.
        """
        if len(rows) == 1 and self._plainly_follows(rows[0]):
            return
        epoch = self.epoch
        ahead: dict[str, int] = {}
        for row in rows:
            if row.epoch < epoch:
                raise StaleEpoch(f"epoch {row.epoch} is fenced: the journal is at {epoch}; stop this process")
            epoch = row.epoch
            for session_id, first_seq, count, kind in zip(
                row.session_ids, row.first_seqs, row.counts, row.kinds, strict=True
            ):
                if kind != RecordKind.EVENTS:
                    continue
                before = ahead.get(session_id)
                if before is None:
                    before = self._last_seqs.get(session_id, first_seq - 1)
                if first_seq != before + 1 or first_seq < 1 or count < 1:
                    raise ValueError(
                        f"session {session_id}: {count} events from seq {first_seq} do not follow seq {before}"
                    )
                ahead[session_id] = before + count
                if before + count > SEQ_MAX:
                    raise ValueError(f"session {session_id}: seq {before + count} is above {SEQ_MAX}")

    def _plainly_follows(self, row: Row) -> bool:
        """Whether it is one record each of sessions that are known, in this epoch: nearly always, and told in C."""
        return (
            row.epoch == self.epoch
            and row.kinds.count(RecordKind.EVENTS) == len(row.kinds) == len(set(row.session_ids))
            and [first_seq - 1 for first_seq in row.first_seqs]
            == list(map(self._last_seqs.get, row.session_ids))
            and min(row.counts) > 0
            and max(row.first_seqs) + max(row.counts) <= SEQ_MAX
        )

    def add(self, number: int, row: Row) -> None:
        """A row that stands in the journal under `number`, just committed or found there."""
        if row.epoch > self.epoch or not self._epochs:
            self.epoch = max(self.epoch, row.epoch)
            self._epoch_rows.append(number)
            self._epochs.append(row.epoch)
        high = number << _OFFSET_BITS
        events = RecordKind.EVENTS.value
        last_seqs, all_words = self._last_seqs, self._words
        for session_id, first_seq, count, kind, length, offset in zip(
            row.session_ids, row.first_seqs, row.counts, row.kinds, row.lengths, row.offsets, strict=True
        ):
            if kind != events:
                continue
            last_seq = first_seq + count - 1
            before = last_seqs.get(session_id)
            record = (last_seq << 32 | length, high | offset)
            if before == first_seq - 1:
                all_words[session_id].extend(record)
            elif before is None:
                all_words[session_id] = array("Q", ((first_seq - 1) << 32, 0, *record))
            elif last_seq <= before:  # all of it stands here already
                continue
            elif first_seq > before:
                all_words[session_id].extend(((first_seq - 1) << 32, 0, *record))
            else:  # a part of it does: no owner writes that, and reading it will say so
                all_words[session_id].extend(record)
            last_seqs[session_id] = last_seq
        self._count(row)
        self.row = number

    def _count(self, row: Row) -> None:
        lost = [count for count, length in zip(row.counts, row.lengths, strict=True) if not length]
        held = len(row.lengths) - len(lost)
        self._records += held
        self._damaged += len(lost)
        self._events += sum(row.counts) - sum(lost)
        self._payload_bytes += sum(row.lengths) - CRC_BYTES * held

    def add_lost(self, number: int) -> None:
        """A row of which nothing can be read. Whose events it held shows as holes between others, or not at all."""
        self._damaged += 1
        self.row = number

    def places(self, session_id: str, after_seq: int) -> list[Place]:
        """Of the records that hold an event above `after_seq`, by seq, holes among them: no gap, no overlap."""
        words = self._words.get(session_id, array("Q"))[:]
        places: list[Place] = []
        for at in range(_first_above(words, after_seq), len(words), 2):
            row = words[at + 1] >> _OFFSET_BITS
            places.append(
                Place(
                    row=row,
                    offset=words[at + 1] & _OFFSET_MASK,
                    length=words[at] & _LENGTH_MASK,
                    first_seq=(words[at - 2] >> 32) + 1,
                    last_seq=words[at] >> 32,
                    epoch=self._epochs[max(bisect_right(self._epoch_rows, row) - 1, 0)],
                )
            )
        return places

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        """Payload bytes of the records that hold an event above `after_seq`."""
        if self._last_seqs.get(session_id, 0) <= after_seq:
            return 0
        words = self._words[session_id]
        lengths = [word & _LENGTH_MASK for word in words[_first_above(words, after_seq) :: 2]]
        return sum(lengths) - CRC_BYTES * (len(lengths) - lengths.count(0))

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(
            sessions=len(self._last_seqs),
            records=self._records,
            events=self._events,
            payload_bytes=self._payload_bytes,
            commits=self.commits,
            damaged=self._damaged,
        )


def _first_above(words: "array[int]", after_seq: int) -> int:
    """The position of the first record whose last seq is above `after_seq`; never that of the hole at the beginning."""
    low, high = 1, len(words) // 2
    while low < high:
        middle = (low + high) // 2
        if words[2 * middle] >> 32 > after_seq:
            high = middle
        else:
            low = middle + 1
    return 2 * low
