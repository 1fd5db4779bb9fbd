"""What several sessions have in the journal, read with each row taken from its pages once.

A row holds what all sessions committed at one moment, and SQLite takes a row whole, whatever piece of it is wanted. Where
200 sessions under full load were compacted each by itself, 12 GB were copied to move 50 MB, and the journal filled faster
than it was emptied.
"""

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, takewhile
from zlib import crc32

from attrs import define, field

from ...actors.ports import Record
from . import frames
from .frames import CRC_BYTES
from .journal_index import LENGTH_MASK, OFFSET_BITS, OFFSET_MASK, JournalIndex

STEP_BYTES_MAX = 512 * 1024  # of rows: some 4 ms, in which nobody else reads
STEP_SESSIONS = 8  # looked for, or taken of, in one step: a quarter of a millisecond
# In one turn of the event loop, where nobody rests: at full load a turn is 5 ms, and the mirror waits to be level.
STEPS_MAX = 16
JOINED_BYTES_MAX = 64 * 1024  # what a segment may be too long by


@define(eq=False)
class Run:
    """What is looked for of one session, and what was found. Records that follow each other are joined to a few: 100,000 that
    wait in memory had the garbage collector look at them for 30 ms at a time, while everybody waited, and to make each and
    pass it on was half of what compaction took.

    Attributes:
        words: of the records that are looked for, behind the pair before them, as in `journal_index`.
    """

    session_id: str
    words: "array[int]"
    found: list[Record] = field(factory=list)
    _at: int = 2

    def take(self, data: bytes, starts: Mapping[int, int], epoch: int, upto_row: int) -> bool:
        """The records in these rows. Whether there are more: with one that is not there, or does not carry its checksum, it
        ends. By columns, as they lie in `words`."""
        words, at, end = self.words, self._at, len(self.words)
        beyond = (upto_row + 1) << OFFSET_BITS
        count = bisect_left(range(at + 1, end, 2), beyond, key=words.__getitem__)
        self._at = stop = at + 2 * count
        places = words[at + 1 : stop : 2]
        lengths = [word & LENGTH_MASK for word in words[at:stop:2]]
        first_seqs = [(word >> 32) + 1 for word in words[at - 2 : stop : 2]]
        try:
            begins = [starts[place >> OFFSET_BITS] + (place & OFFSET_MASK) for place in places]
        except KeyError:
            there = takewhile(lambda place: place >> OFFSET_BITS in starts, places)
            begins = [starts[place >> OFFSET_BITS] + (place & OFFSET_MASK) for place in there]
        payloads = _payloads(data, begins, lengths, first_seqs)
        size = list(accumulate(map(len, payloads), initial=0))
        first = 0
        while first < len(payloads):
            behind = max(first + 1, bisect_right(size, size[first] + JOINED_BYTES_MAX) - 1)
            events = first_seqs[behind] - first_seqs[first]
            payload = b"".join(payloads[first:behind])
            self.found.append(Record(self.session_id, first_seqs[first], events, epoch, payload))
            first = behind
        return len(payloads) == count and stop < end


def _payloads(data: bytes, begins: list[int], lengths: list[int], first_seqs: list[int]) -> list[bytes]:
    """Those that carry their checksum, up to the first that does not."""
    pieces = list(zip(begins, lengths, first_seqs, strict=False))
    ends = [begin + length - CRC_BYTES for begin, length, _ in pieces]
    payloads = [data[begin:end] for begin, end in zip(begins, ends, strict=True)]
    written = b"".join([data[end : end + CRC_BYTES] for end in ends])
    whole = len(written) == CRC_BYTES * len(ends) and 0 not in lengths  # which is of one that is lost
    if whole and list(map(crc32, payloads, first_seqs)) == list(struct.unpack(f"<{len(ends)}I", written)):
        return payloads
    payloads.clear()
    for begin, length, seq in pieces:
        payload = frames.payload_of(data[begin : begin + length], seq)
        if payload is None:
            break
        payloads.append(payload)
    return payloads


_NOTHING: tuple[bytes, Mapping[int, int], int, int] = (b"", {}, 0, 0)


class Sweep:
    """One walk over the rows in which these sessions have events above their seqs, as far as they do now.

    Attributes:
        found: by session its records, by seq, without a gap; up to the first that cannot be read.
    """

    def __init__(
        self, index: JournalIndex, after: Mapping[str, int], upto: Mapping[str, int] | None = None
    ) -> None:
        self._index = index
        self._unknown = deque(after.items())
        self._upto = upto or {}
        self.found: dict[str, list[Record]] = {}
        self._unfinished: list[Run] = []
        self._looking: list[Run] = []  # those that were not shown yet what is given now
        self._given = _NOTHING
        self._wanted: set[int] = set()
        self._rows: deque[int] = deque()
        self._rows_in_all = 0

    @property
    def share(self) -> float:
        """How much of it is done, by rows."""
        return 1 - len(self._rows) / self._rows_in_all if self._rows_in_all else 0.0

    @property
    def is_over(self) -> bool:
        return not (self._unknown or self._wanted or self._rows or self._looking)

    @property
    def wants_rows(self) -> bool:
        """Whether nothing is left to do before the next rows are read."""
        return not (self._unknown or self._looking) and bool(self._wanted or self._rows)

    def step(self) -> None:
        """Looks for some of the sessions in the index, or takes what some have in the rows that were given. Short, and not for
        another thread: one that computes has the event loop and the commits wait for the interpreter again and again."""
        if self._unknown:
            self._look_for([self._unknown.popleft() for _ in range(min(STEP_SESSIONS, len(self._unknown)))])
        elif self._looking:
            self._take()

    def _look_for(self, after: Iterable[tuple[str, int]]) -> None:
        for session_id, seq in after:
            words, start, stop = self._index.stretch(session_id, seq, self._upto.get(session_id))
            run = Run(session_id, words[max(0, start - 2) : stop])
            self.found[session_id] = run.found
            self._unfinished.append(run)
            self._wanted.update([word >> OFFSET_BITS for word in words[start + 1 : stop : 2]])

    def next_rows(self) -> list[int]:
        """Those to be read now, in order, of one epoch."""
        if self._wanted:
            self._rows = deque(sorted(self._wanted))
            self._rows_in_all = len(self._rows)
            self._wanted.clear()
        size, some, rows = 0, list[int](), self._rows
        while rows and size < STEP_BYTES_MAX:
            if some and self._index.epoch_of(rows[0]) != self._index.epoch_of(some[0]):
                break
            some.append(rows.popleft())
            size += self._index.rows.size_of(some[-1])
        return some

    def give(self, asked: Sequence[int], data: bytes, starts: Mapping[int, int]) -> None:
        """All that are there of `asked`, as they were given by `next_rows`: where in `data` each row begins."""
        epoch, upto_row = self._index.epoch_of(asked[0]), asked[-1]
        self._given = (data, starts, epoch, upto_row)
        self._looking, self._unfinished = self._unfinished, []

    def _take(self) -> None:
        some, self._looking = self._looking[:STEP_SESSIONS], self._looking[STEP_SESSIONS:]
        self._unfinished += [run for run in some if run.take(*self._given)]
        if not self._looking:
            self._given = _NOTHING
            if not self._unfinished:
                self._rows.clear()
