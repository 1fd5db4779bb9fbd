"""What several sessions have in the journal, read with each row taken from its pages once.

A row holds what all sessions committed at one moment, and SQLite takes a row whole, whatever piece of it is wanted. Where
200 sessions under full load were compacted each by itself, 12 GB were copied to move 50 MB, and the journal filled faster
than it was emptied.
"""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from typing import overload

from attrs import define, field

from ...actors.ports import Record
from . import frames
from .journal_index import LENGTH_MASK, OFFSET_BITS, OFFSET_MASK, JournalIndex

STEP_BYTES_MAX = 512 * 1024  # of rows: some 4 ms, in which nobody else reads


@define(eq=False)
class Run(Sequence[Record]):
    """Records of one session that follow each other. Each is made when it is asked for: 100,000 that wait in memory had the
    garbage collector look at them for 30 ms at a time, while everybody waited."""

    session_id: str
    first_seqs: "array[int]" = field(factory=lambda: array("Q"))
    counts: "array[int]" = field(factory=lambda: array("Q"))
    epochs: "array[int]" = field(factory=lambda: array("Q"))
    payloads: list[bytes] = field(factory=list)

    def __len__(self) -> int:
        return len(self.payloads)

    @overload
    def __getitem__(self, at: int) -> Record: ...

    @overload
    def __getitem__(self, at: slice) -> list[Record]: ...

    def __getitem__(self, at: int | slice) -> Record | list[Record]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        return Record(
            self.session_id, self.first_seqs[at], self.counts[at], self.epochs[at], self.payloads[at]
        )

    def add(self, first_seq: int, count: int, epoch: int, payload: bytes) -> None:
        self.first_seqs.append(first_seq)
        self.counts.append(count)
        self.epochs.append(epoch)
        self.payloads.append(payload)


@define(eq=False)
class _Cursor:
    """Where one session's next record is, of those that are read."""

    words: "array[int]"
    at: int
    stop: int
    found: Run

    def take(self, upto_row: int, rows: dict[int, tuple[bytes, int]], index: JournalIndex) -> None:
        """The records in these rows. With one that is not there, or does not carry its checksum, it ends."""
        words = self.words
        beyond = (upto_row + 1) << OFFSET_BITS
        while self.at < self.stop and (place := words[self.at + 1]) < beyond:
            word, row = words[self.at], place >> OFFSET_BITS
            first_seq = (words[self.at - 2] >> 32) + 1
            data, start = rows.get(row, (b"", 0))
            start += place & OFFSET_MASK
            payload = frames.payload_of(data[start : start + (word & LENGTH_MASK)], first_seq)
            if payload is None:
                self.stop = self.at
                return
            self.found.add(first_seq, (word >> 32) + 1 - first_seq, index.epoch_of(row), payload)
            self.at += 2


class Sweep:
    """One walk over the rows in which these sessions have events above their seqs, as far as they do now.

    Attributes:
        found: by session its records, by seq, without a gap; up to the first that cannot be read.
    """

    def __init__(self, index: JournalIndex, after: Mapping[str, int]) -> None:
        self._index = index
        self.found = {session_id: Run(session_id) for session_id in after}
        self._cursors = [
            _Cursor(*index.stretch(session_id, after[session_id]), found)
            for session_id, found in self.found.items()
        ]
        rows: set[int] = set()
        for cursor in self._cursors:
            rows.update([word >> OFFSET_BITS for word in cursor.words[cursor.at + 1 : cursor.stop : 2]])
        self._rows = deque(sorted(rows))

    @property
    def is_over(self) -> bool:
        return not self._rows

    def next_rows(self) -> list[int]:
        """Those to be read now, in order."""
        size, some = 0, list[int]()
        while self._rows and size < STEP_BYTES_MAX:
            some.append(self._rows.popleft())
            size += self._index.rows.size_of(some[-1])
        return some

    def take(self, upto_row: int, rows: dict[int, tuple[bytes, int]]) -> None:
        """By row, in what its bytes stand and from where on; all that are there of those up to this one."""
        for cursor in self._cursors:
            cursor.take(upto_row, rows, self._index)
        self._cursors = [cursor for cursor in self._cursors if cursor.at < cursor.stop]
        if not self._cursors:
            self._rows.clear()
