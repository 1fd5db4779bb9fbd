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

STEP_BYTES_MAX = 1024 * 1024  # of rows: some 8 ms, in which nobody else reads


@define(eq=False)
class Run(Sequence[Record]):
    """Records of one session that follow each other. Each is made when it is asked for: 100,000 that wait in memory had the
    garbage collector look at them for 30 ms at a time, while everybody waited.

    Attributes:
        words: of the records that are looked for, behind the pair before them, as in `journal_index`.
        payloads: of those that were found.
        epochs: from which record on which epoch wrote.
    """

    session_id: str
    words: "array[int]"
    payloads: list[bytes] = field(factory=list)
    epochs: list[tuple[int, int]] = field(factory=list)

    def __len__(self) -> int:
        return len(self.payloads)

    @overload
    def __getitem__(self, at: int) -> Record: ...

    @overload
    def __getitem__(self, at: slice) -> list[Record]: ...

    def __getitem__(self, at: int | slice) -> Record | list[Record]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        payload = self.payloads[at]
        at %= len(self.payloads)
        first_seq = (self.words[2 * at] >> 32) + 1
        count = (self.words[2 * at + 2] >> 32) + 1 - first_seq
        epoch = next(epoch for begin, epoch in reversed(self.epochs) if begin <= at)
        return Record(self.session_id, first_seq, count, epoch, payload)

    def take(self, rows: Mapping[int, tuple[bytes, int, int]], upto_row: int) -> bool:
        """The records in these rows. Whether there are more: with one that is not there, or does not carry its checksum, it
        ends."""
        words, payloads, epochs = self.words, self.payloads, self.epochs
        at, end = 2 * len(payloads) + 2, len(words)
        beyond = (upto_row + 1) << OFFSET_BITS
        while at < end and (place := words[at + 1]) < beyond:
            data, start, epoch = rows.get(place >> OFFSET_BITS, _NOT_THERE)
            start += place & OFFSET_MASK
            piece = data[start : start + (words[at] & LENGTH_MASK)]
            payload = frames.payload_of(piece, (words[at - 2] >> 32) + 1)
            if payload is None:
                return False
            if not epochs or epochs[-1][1] != epoch:
                epochs.append((len(payloads), epoch))
            payloads.append(payload)
            at += 2
        return at < end


_NOT_THERE = (b"", 0, 0)


class Sweep:
    """One walk over the rows in which these sessions have events above their seqs, as far as they do now.

    Attributes:
        found: by session its records, by seq, without a gap; up to the first that cannot be read.
    """

    def __init__(self, index: JournalIndex, after: Mapping[str, int]) -> None:
        self._index = index
        self.found: dict[str, Run] = {}
        rows: set[int] = set()
        for session_id, seq in after.items():
            words, start, stop = index.stretch(session_id, seq)
            self.found[session_id] = Run(session_id, words[max(0, start - 2) : stop])
            rows.update([word >> OFFSET_BITS for word in words[start + 1 : stop : 2]])
        self._unfinished = list(self.found.values())
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

    def take(self, upto_row: int, rows: Mapping[int, tuple[bytes, int]]) -> None:
        """By row, in what its bytes stand and from where on; all that are there of those up to this one."""
        found = {row: (data, start, self._index.epoch_of(row)) for row, (data, start) in rows.items()}
        self._unfinished = [run for run in self._unfinished if run.take(found, upto_row)]
        if not self._unfinished:
            self._rows.clear()
