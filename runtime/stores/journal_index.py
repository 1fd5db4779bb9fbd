"""Where in the journal each session's records lie. It holds no payload and touches no file.

A record takes two words of 64 bits in an array of its session: (last seq << 32 | length) and (row << 24 | offset). A
length of 0 is a hole: these events are lost; where they stand in no row at all its offset is 0, too. Each array begins
with a pair that is no record, so that a record's first seq is always the last seq before it, plus one.

Records that were released lie at the front of their array until they are half of it; then a shorter array takes its
place. A session of which nothing else is here has none.

One thread writes; others may read meanwhile: each of their steps is one look-up or one copy, which the interpreter
does not divide, and an array only ever grows at its end.
"""

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence

from attrs import define

from ...actors.errors import StaleEpoch
from ...actors.ports import JournalStatistics, RecordKind
from .frames import CRC_BYTES, Row
from .journal_rows import JournalRows

OFFSET_BITS = 24
OFFSET_MASK = (1 << OFFSET_BITS) - 1
LENGTH_MASK = (1 << 32) - 1
SEQ_MAX = (1 << 32) - 1
ROW_MAX = (1 << 64 - OFFSET_BITS) - 1


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
        self._released: dict[str, int] = {}
        self._forgotten: dict[
            str, int
        ] = {}  # the last row that may hold a record from before the session was
        self._waiting: dict[str, int] = {}  # released sessions of which the rows beyond `row` may hold more
        self._epoch_rows: list[int] = []  # the rows from which on a new epoch writes,
        self._epochs: list[int] = []  # and which
        self.heads: Mapping[str, int] = _Heads(self._last_seqs)
        self.rows = JournalRows()
        self.row = 0  # the last row that is indexed
        self.epoch = 0
        self.commits = 0
        self.releases = (
            -1
        )  # how often the journal had been told of releases when that was last read; -1: never
        self._records = self._events = self._payload_bytes = self._damaged = 0
        self._checked: Row | None = None  # the last one of which `check` found that it plainly follows

    def check(self, rows: Sequence[Row]) -> None:
        """That these rows may be appended now.

        Raises:
            StaleEpoch: one is of a lower epoch than what stands before it.
            ValueError: a record does not follow what stands before it of its session.
        """
        if len(rows) == 1 and self._plainly_follows(rows[0]):
            self._checked = rows[0]
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
        pins = len(row.kinds)
        if row is self._checked or self._plainly_follows(row):
            plainly = self._add_plainly(number, row)
            self._checked = None
        else:
            plainly = False
        if not plainly:
            pins -= self._add_singly(number, row)
        self._count(row)
        self.rows.add(number, len(row.data), pins)
        self.row = number

    def _add_plainly(self, number: int, row: Row) -> bool:
        """What `_add_singly` does, by columns, at a third of its cost; False where nothing was done."""
        session_ids, all_words, high = row.session_ids, self._words, number << OFFSET_BITS
        if not all(map(all_words.__contains__, session_ids)):  # all that came before was released of one
            return False
        last = [first_seq + count - 1 for first_seq, count in zip(row.first_seqs, row.counts, strict=True)]
        for words, last_seq, length, offset in zip(
            map(all_words.__getitem__, session_ids), last, row.lengths, row.offsets, strict=True
        ):
            words.extend((last_seq << 32 | length, high | offset))
        self._last_seqs.update(zip(session_ids, last, strict=True))
        return True

    def _add_singly(self, number: int, row: Row) -> int:
        """Returns how many of its records need not stand here."""
        high = number << OFFSET_BITS
        events = RecordKind.EVENTS.value
        last_seqs, all_words = self._last_seqs, self._words
        needless = 0
        for session_id, first_seq, count, kind, length, offset in zip(
            row.session_ids, row.first_seqs, row.counts, row.kinds, row.lengths, row.offsets, strict=True
        ):
            if kind != events:
                self._discount(0, length)
                needless += 1
                continue
            last_seq = first_seq + count - 1
            record = (last_seq << 32 | length, high | offset)
            if last_seqs.get(session_id) == first_seq - 1:
                try:
                    all_words[session_id].extend(record)
                except KeyError:  # all that came before was released
                    all_words[session_id] = array("Q", ((first_seq - 1) << 32, 0, *record))
            elif not self._add_apart(session_id, first_seq, number, record):
                self._discount(count, length)
                needless += 1
                continue
            last_seqs[session_id] = last_seq
        return needless

    def _add_apart(self, session_id: str, first_seq: int, number: int, record: tuple[int, ...]) -> bool:
        """A record that does not plainly follow; False where all of it was released, or stands here already."""
        if number <= self._forgotten.get(session_id, 0):
            return False
        before = self._last_seqs.get(session_id)
        if before is None:
            before = self._waiting.pop(session_id, None)
            if before is None:
                before = first_seq - 1
            else:
                self._last_seqs[session_id] = before
        if record[0] >> 32 <= before:
            return False
        if first_seq > before + 1:
            record = ((first_seq - 1) << 32, number << OFFSET_BITS, *record)
        words = self._words.get(session_id)
        if words is None:  # where a part of it was released, it is here whole all the same
            self._words[session_id] = array("Q", (min(before, first_seq - 1) << 32, 0, *record))
        else:  # where a part of it stands here already, no owner wrote it, and reading it will say so
            words.extend(record)
        return True

    def _count(self, row: Row) -> None:
        lost = [count for count, length in zip(row.counts, row.lengths, strict=True) if not length]
        held = len(row.lengths) - len(lost)
        self._records += held
        self._damaged += len(lost)
        self._events += sum(row.counts) - sum(lost)
        self._payload_bytes += sum(row.lengths) - CRC_BYTES * held

    def _discount(self, count: int, length: int) -> None:
        if length:
            self._records -= 1
            self._events -= count
            self._payload_bytes -= length - CRC_BYTES

    def add_lost(self, number: int, size_bytes: int) -> None:
        """A row of which nothing can be read. Whose events it held shows as holes between others, or not at all."""
        self._damaged += 1
        self.rows.add_lost(number, size_bytes)
        self.row = number

    def count_lost(self, rows: int) -> None:
        """So many rows are gone, of which nothing could be read."""
        self._damaged += rows

    # -- what leaves --

    def released(self, session_id: str) -> int:
        return self._released.get(session_id, 0)

    def gone(self, session_id: str) -> int:
        """The last row that may hold a record from before the session was forgotten; 0: it never was."""
        return self._forgotten.get(session_id, 0)

    def records_of(self, session_id: str) -> int:
        """How many of its records are needed here."""
        words = self._words.get(session_id, _NONE)
        return (len(words) - self._live(session_id, words)) // 2

    def newly(self, upto: Mapping[str, int], records_max: int) -> tuple[dict[str, int], dict[str, int]]:
        """What of these releases is new, in two parts: one that lets go of no more than so many records, and the rest. A
        session of very many records is in both."""
        rest = {
            session_id: seq for session_id, seq in upto.items() if seq > self._released.get(session_id, 0)
        }
        part: dict[str, int] = {}
        for session_id, seq in rest.items():
            if not records_max:
                break
            words = self._words.get(session_id, _NONE)
            start, stop = self._live(session_id, words), _first_above(words, seq)
            if (stop - start) // 2 > records_max:
                part[session_id] = words[start + 2 * records_max - 2] >> 32
                break
            part[session_id] = seq
            records_max -= (stop - start) // 2
        return part, {session_id: seq for session_id, seq in rest.items() if part.get(session_id) != seq}

    def release(self, session_id: str, seq: int) -> None:
        """Its events up to `seq`, which is above what was released of it, need not stand here."""
        words = self._words.get(session_id)
        if words is not None:
            stop = _first_above(words, seq)
            self._let_go(words, self._live(session_id, words), stop)
            if stop == len(words):
                del self._words[session_id]
            elif 2 * stop > len(words) + 2:
                self._words[session_id] = words[stop - 2 :]
        self._released[session_id] = seq
        self._last_seqs[session_id] = max(seq, self._last_seqs.get(session_id, 0))

    def forget(self, session_id: str) -> None:
        """It is as if the session had never been here; what the rows up to this one hold of it is needed no more."""
        words = self._words.pop(session_id, None)
        if words is not None:
            self._let_go(words, self._live(session_id, words), len(words))
        self._released.pop(session_id, None)
        self._last_seqs.pop(session_id, None)
        self._forgotten[session_id] = self.row

    def _let_go(self, words: "array[int]", start: int, stop: int) -> None:
        lengths = [word & LENGTH_MASK for word in words[start:stop:2]]
        if all(lengths):
            self._records -= len(lengths)
            self._payload_bytes -= sum(lengths) - CRC_BYTES * len(lengths)
            self._events -= (words[stop - 2] >> 32) - (words[start - 2] >> 32)
        else:
            for at in range(start, stop, 2):
                self._discount((words[at] >> 32) - (words[at - 2] >> 32), words[at] & LENGTH_MASK)
        # Not where nothing stands.
        self.rows.unpin([word >> OFFSET_BITS for word in words[start + 1 : stop : 2] if word & OFFSET_MASK])

    def forgotten_before(self, row: int) -> list[str]:
        """The forgotten sessions of which no row from this one on holds anything from before."""
        return [
            session_id
            for session_id, last in self._forgotten.items()
            if last < row and session_id not in self._released
        ]

    def forgetting_is_over(self, session_ids: Collection[str]) -> None:
        """No row holds a record of these sessions from before they were forgotten."""
        for session_id in session_ids:
            del self._forgotten[session_id]

    def follow(self, told: Mapping[str, tuple[int, int]], oldest_row: int) -> None:
        """Takes in what was released and forgotten, as the journal tells, before the rows beyond `row` are added; at the
        end of these stands `settle`.

        Args:
            told: by session the seq up to which it was released, and the last row from before it was forgotten.
            oldest_row: that still stands in the file.
        """
        for session_id in self._waiting:  # of a walk over the rows that failed
            del self._released[session_id]
        self._waiting.clear()
        for session_id, head in list(self._last_seqs.items()):
            seq, last = told.get(session_id, (0, 0))
            # A session that was forgotten is told of no more once its rows have gone. Nothing else takes back a release,
            # or takes a row whose records were not released.
            newest_row = self._words.get(session_id, _NONE)[-1] >> OFFSET_BITS
            if last > self._forgotten.get(session_id, 0) or (
                head > seq and (not newest_row or newest_row < oldest_row)
            ):
                self.forget(session_id)
        self._forgotten = {session_id: last for session_id, (seq, last) in told.items() if last or not seq}
        for session_id, (seq, _) in told.items():
            if seq > self._released.get(session_id, 0):
                if session_id in self._last_seqs:
                    self.release(session_id, seq)
                else:
                    self._released[session_id] = self._waiting[session_id] = seq

    def settle(self) -> None:
        """All rows were added: what was released and has no record in them stands at its released seq."""
        self._last_seqs.update(self._waiting)
        self._waiting.clear()

    def oldest(self, size_bytes: int) -> dict[str, int]:
        """Of the oldest rows that together hold `size_bytes`, never the newest: by session its last unreleased seq.

        It looks at each session with a record here, and not at the records.
        """
        last_row = self.rows.reach(size_bytes)
        beyond = (last_row + 1) << OFFSET_BITS
        found: dict[str, int] = {}
        for session_id, words in self.words() if last_row else ():
            if words[3] < beyond:
                seq = last_before(words, beyond)
                if seq > self._released.get(session_id, 0):
                    found[session_id] = seq
        return found

    def words(self) -> list[tuple[str, "array[int]"]]:
        """Of each session with a record here, as of now: what stands in them stays."""
        return list(self._words.items())

    def _live(self, session_id: str, words: "array[int]") -> int:
        """The position of the session's first record that was not released."""
        released = self._released.get(session_id, 0)
        return 2 if words[0] >> 32 >= released else _first_above(words, released)

    # -- what is here --

    def holds(self, session_id: str, place: Place) -> bool:
        """Whether this place, given out before, is one still: the record was not released meanwhile."""
        words = self._words.get(session_id, _NONE)
        at = _first_above(words, max(place.last_seq - 1, self._released.get(session_id, 0)))
        return at < len(words) and words[at + 1] == place.row << OFFSET_BITS | place.offset

    def places(self, session_id: str, after_seq: int, records_max: int | None = None) -> list[Place]:
        """Of the records that hold an event above `after_seq`, by seq, holes among them: no gap, no overlap. The first so
        many of them; None: all."""
        words = self._words.get(session_id, _NONE)
        places: list[Place] = []
        start = _first_above(words, max(after_seq, self._released.get(session_id, 0)))
        stop = len(words) if records_max is None else min(len(words), start + 2 * records_max)
        for at in range(start, stop, 2):
            row = words[at + 1] >> OFFSET_BITS
            places.append(
                Place(
                    row=row,
                    offset=words[at + 1] & OFFSET_MASK,
                    length=words[at] & LENGTH_MASK,
                    first_seq=(words[at - 2] >> 32) + 1,
                    last_seq=words[at] >> 32,
                    epoch=self.epoch_of(row),
                )
            )
        return places

    def epoch_of(self, row: int) -> int:
        """Of its records."""
        return self._epochs[max(bisect_right(self._epoch_rows, row) - 1, 0)]

    def stretch(
        self, session_id: str, after_seq: int, upto_seq: int | None = None
    ) -> tuple["array[int]", int, int]:
        """The session's words, and between which positions stand the records that hold an event above `after_seq` and none
        of which only events above `upto_seq` do. What is there now stays there: more is written behind it, or a shorter array
        takes its place."""
        words = self._words.get(session_id, _NONE)
        start = _first_above(words, max(after_seq, self._released.get(session_id, 0)))
        stop = len(words) if upto_seq is None else min(len(words), _first_above(words, upto_seq - 1) + 2)
        return words, start, max(start, stop)

    def last_epoch(self, session_id: str) -> int:
        """Of the session's last record; 0 where there is none."""
        words = self._words.get(session_id)
        return self.epoch_of(words[-1] >> OFFSET_BITS) if words else 0

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        """Payload bytes of the records that hold an event above `after_seq`."""
        if self._last_seqs.get(session_id, 0) <= after_seq:
            return 0
        words = self._words.get(session_id, _NONE)
        start = _first_above(words, max(after_seq, self._released.get(session_id, 0)))
        lengths = [word & LENGTH_MASK for word in words[start::2]]
        return sum(lengths) - CRC_BYTES * (len(lengths) - lengths.count(0))

    @property
    def damaged(self) -> int:
        """Records whose checksum does not hold, and rows of which nothing can be read."""
        return self._damaged

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(
            sessions=len(self._last_seqs),
            records=self._records,
            events=self._events,
            payload_bytes=self._payload_bytes,
            commits=self.commits,
            damaged=self._damaged,
            size_bytes=self.rows.size_bytes,
        )


_NONE = array("Q", (0, 0))  # the words of a session without a record


def last_before(words: "array[int]", place: int) -> int:
    """The last seq of the last record that stands before `place`, as the first one does."""
    return words[-2 if words[-1] < place else _first_beyond(words, place) - 2] >> 32


def _first_beyond(words: "array[int]", place: int) -> int:
    """The position of the first record that stands at `place` or behind it."""
    low, high = 1, len(words) // 2
    while low < high:
        middle = (low + high) // 2
        if words[2 * middle + 1] >= place:
            high = middle
        else:
            low = middle + 1
    return 2 * low


def _first_above(words: "array[int]", after_seq: int) -> int:
    """The position of the first record whose last seq is above `after_seq`; never that of the pair at the beginning."""
    low, high = 1, len(words) // 2
    while low < high:
        middle = (low + high) // 2
        if words[2 * middle] >> 32 > after_seq:
            high = middle
        else:
            low = middle + 1
    return 2 * low
