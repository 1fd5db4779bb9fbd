"""The index of the journal says where every event lies, and which are lost."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.actors.ports import Record, RecordKind
from sojourn.runtime.stores import frames
from sojourn.runtime.stores.journal_index import SEQ_MAX, JournalIndex

# A history: for each record which session it is of, how many events it holds, its payload's size, whether it is lost.
HISTORY = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.integers(0, 9), st.booleans()), max_size=30
)


def indexed(
    history: list[tuple[str, int, int, bool]],
) -> tuple[JournalIndex, dict[str, list[tuple[int, int, int]]]]:
    """An index of one row per record, and what it must say: first seq, last seq, bytes (-1: lost)."""
    index, expected = JournalIndex(), dict[str, list[tuple[int, int, int]]]()
    for number, (session_id, count, size, lost) in enumerate(history, 1):
        before = expected.setdefault(session_id, [])
        first_seq = before[-1][1] + 1 if before else 1
        (row,) = frames.encode([Record(session_id, first_seq, count, number, bytes(size))])
        index.check([row])
        if lost:
            row.lengths = [0]
        index.add(number, row)
        before.append((first_seq, first_seq + count - 1, -1 if lost else size))
    return index, expected


@given(HISTORY, st.integers(0, 20))
def test_places_and_pending_bytes_tile_the_history_above_a_seq(
    history: list[tuple[str, int, int, bool]], after_seq: int
) -> None:
    index, expected = indexed(history)
    assert dict(index.heads) == {session_id: records[-1][1] for session_id, records in expected.items()}
    for session_id, records in expected.items():
        above = [record for record in records if record[1] > after_seq]
        places = index.places(session_id, after_seq)
        assert [
            (place.first_seq, place.last_seq, place.length - frames.CRC_BYTES if place.length else -1)
            for place in places
        ] == above
        assert [place.epoch for place in places] == [place.row for place in places]
        assert index.pending_bytes(session_id, after_seq) == sum(max(record[2], 0) for record in above)


@given(HISTORY)
def test_statistics_count_what_is_not_lost(history: list[tuple[str, int, int, bool]]) -> None:
    index, _ = indexed(history)
    held = [record for record in history if not record[3]]
    statistics = index.statistics()
    assert (statistics.records, statistics.damaged) == (len(held), len(history) - len(held))
    assert statistics.events == sum(record[1] for record in held)
    assert statistics.payload_bytes == sum(record[2] for record in held)


def test_a_gap_between_two_rows_is_a_hole() -> None:
    index = JournalIndex()
    index.add(1, frames.encode([Record("a", 1, 2, 1, b"x")])[0])
    index.add_lost(2, 90)
    index.add(3, frames.encode([Record("a", 6, 2, 1, b"y")])[0])
    assert [(place.first_seq, place.last_seq, bool(place.length)) for place in index.places("a", 0)] == [
        (1, 2, True),
        (3, 5, False),
        (6, 7, True),
    ]
    assert index.statistics().damaged == 1


def test_a_record_that_stands_already_is_left_out() -> None:
    index = JournalIndex()
    for number in (1, 2):
        index.add(number, frames.encode([Record("a", 1, 2, 1, b"x")])[0])
    assert len(index.places("a", 0)) == 1


def test_a_record_that_stands_in_part_does_not_carry_its_checksum() -> None:
    index = JournalIndex()
    index.add(1, frames.encode([Record("a", 1, 2, 1, b"x")])[0])
    (row,) = frames.encode([Record("a", 2, 2, 1, b"y")])
    index.add(2, row)
    place = index.places("a", 2)[0]
    assert (place.first_seq, place.last_seq) == (3, 3)
    assert frames.payload_of(row.data[place.offset : place.offset + place.length], place.first_seq) is None


def test_marks_have_no_place() -> None:
    index = JournalIndex()
    index.add(1, frames.encode([Record("a", 0, 0, 4, b"x", RecordKind.EPOCH)])[0])
    assert (index.epoch, dict(index.heads), index.places("a", 0)) == (4, {}, [])


def test_a_seq_that_takes_more_than_32_bits_is_refused() -> None:
    index = JournalIndex()
    index.check(frames.encode([Record("a", SEQ_MAX, 1, 1, b"x")]))
    with pytest.raises(ValueError, match="above"):
        index.check(frames.encode([Record("a", SEQ_MAX, 2, 1, b"x")]))


def test_a_record_takes_16_bytes() -> None:
    index = JournalIndex()
    for seq in range(1, 1_001):
        index.add(seq, frames.encode([Record("a", seq, 1, 1, b"x")])[0])
    words = index._words["a"]
    assert words.itemsize * (len(words) - 2) == 16 * 1_000


# What is done to an index: a group of (session, events) is appended, a session released by so many events or forgotten,
# or rows go. A record of 0 events is a mark.
GROUPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=4)
STEPS = st.lists(
    st.one_of(
        GROUPS, st.tuples(st.sampled_from("abc"), st.integers(1, 6)), st.sampled_from(["a", "b", None])
    ),
    max_size=40,
)


class Model:
    """A journal told plainly: its file, and what an index of it must say."""

    def __init__(self) -> None:
        self.rows: dict[int, frames.Row] = {}
        self.newest = 0
        self.told: dict[str, tuple[int, int]] = {}
        self.heads: dict[str, int] = {}
        self.live: dict[str, list[tuple[int, int, int]]] = {}  # by session (row, first seq, last seq)

    def append(self, group: list[tuple[str, int]]) -> frames.Row:
        self.newest += 1
        records = []
        for session_id, count in group:
            if count:
                first_seq = self.heads.get(session_id, 0) + 1
                records.append(Record(session_id, first_seq, count, 1, b"x" * count))
                self.heads[session_id] = first_seq + count - 1
                place = (self.newest, first_seq, first_seq + count - 1)
                self.live.setdefault(session_id, []).append(place)
            else:
                records.append(Record("", 0, 0, 1, b"mark", RecordKind.EPOCH))
        (self.rows[self.newest],) = frames.encode(records)
        return self.rows[self.newest]

    def release(self, session_id: str, seq: int) -> None:
        self.told[session_id] = (seq, self.told.get(session_id, (0, 0))[1])
        self.live[session_id] = [place for place in self.live.get(session_id, []) if place[2] > seq]
        self.heads[session_id] = max(seq, self.heads.get(session_id, 0))

    def forget(self, session_id: str) -> None:
        self.told[session_id] = (0, self.newest)
        self.live.pop(session_id, None)
        del self.heads[session_id]

    def needed(self) -> set[int]:
        return {place[0] for places in self.live.values() for place in places} | {self.newest}


def check(index: JournalIndex, model: Model) -> None:
    assert dict(index.heads) == model.heads
    for session_id in "abc":
        places = model.live.get(session_id, [])
        assert [(at.row, at.first_seq, at.last_seq) for at in index.places(session_id, 0)] == places
        assert all(index.holds(session_id, place) for place in index.places(session_id, 0))
        assert index.released(session_id) == model.told.get(session_id, (0, 0))[0]
        for after in range(0, 12, 3):
            pending = sum(last - first + 1 for _, first, last in places if last > after)
            assert index.pending_bytes(session_id, after) == pending
    statistics = index.statistics()
    records = [place for places in model.live.values() for place in places]
    assert statistics.records == len(records)
    assert (
        statistics.events == statistics.payload_bytes == sum(last - first + 1 for _, first, last in records)
    )
    sizes = {number: len(model.rows[number].data) for number in sorted(model.needed() - {0, model.newest})}
    for size_bytes in (0, 1, 150, 400, 10**6):
        held, reached = 0, 0
        for number, size in sizes.items():
            if held >= size_bytes:
                break
            held, reached = held + size, number
        named = {
            session_id: [last for row, _, last in places if row <= reached]
            for session_id, places in model.live.items()
        }
        assert index.oldest(size_bytes) == {id_: max(seqs) for id_, seqs in named.items() if seqs}


def scanned(model: Model, index: JournalIndex) -> JournalIndex:
    """What one that opens or follows the file makes of it."""
    index.follow(model.told, min(model.rows, default=0))
    for number in sorted(model.rows):
        if number > index.row:
            index.add(number, model.rows[number])
    index.settle()
    return index


def delete(index: JournalIndex, model: Model) -> None:
    rows = index.rows.disposable(10**6, 10**6)
    assert {number for number, _ in rows} == set(model.rows) - model.needed()
    index.rows.removed(rows)
    for number, _ in rows:
        del model.rows[number]
    over = index.forgotten_before(min(model.rows, default=0))
    index.forgetting_is_over(over)
    for session_id in over:
        del model.told[session_id]
    assert index.rows.size_bytes == sum(len(row.data) for row in model.rows.values())


@given(STEPS, st.integers(1, 9))
def test_what_was_released_and_forgotten_is_known_here_after_opening_again_and_to_readers(
    steps: list[list[tuple[str, int]] | tuple[str, int] | str | None], refresh_every: int
) -> None:
    index, reader, model = JournalIndex(), JournalIndex(), Model()
    for at, step in enumerate(steps):
        if isinstance(step, list):
            row = model.append(step)
            index.check([row])
            index.add(model.newest, row)
        elif isinstance(step, tuple):
            session_id, count = step
            seq = model.told.get(session_id, (0, 0))[0] + count
            model.release(session_id, seq)
            index.release(session_id, seq)
        elif step is None:
            delete(index, model)
        elif step in model.heads:
            model.forget(step)
            index.forget(step)
        check(index, model)
        if at % refresh_every == 0:
            check(scanned(model, reader), model)
    check(scanned(model, JournalIndex()), model)
    check(scanned(model, reader), model)
    delete(index, model)


def parts(index: JournalIndex, upto: dict[str, int], records_max: int) -> Iterator[dict[str, int]]:
    while upto:
        part, upto = index.newly(upto, records_max)
        for session_id, seq in part.items():
            index.release(session_id, seq)
        yield part


def test_a_large_release_is_carried_out_in_parts() -> None:
    index = JournalIndex()
    for seq in range(1, 6):
        index.add(seq, frames.encode([Record(name, seq, 1, 1, b"x") for name in "abc"])[0])
    assert list(parts(index, {"a": 4, "b": 9, "c": 0, "d": 7}, 3)) == [
        {"a": 3},
        {"a": 4, "b": 2},
        {"b": 9},
        {"d": 7},
    ]
    assert dict(index.heads) == {"a": 5, "b": 9, "c": 5, "d": 7}


def test_what_is_released_gives_its_memory_back() -> None:
    index = JournalIndex()
    most = 0
    for seq in range(1, 10_001):
        index.add(seq, frames.encode([Record("a", seq, 1, 1, b"x")])[0])
        if seq > 100:
            index.release("a", seq - 100)
            index.rows.removed(index.rows.disposable(10**6, 10))
        most = max(most, len(index._words["a"]), len(index.rows._columns.numbers))
    assert most < 2 * 2 * 102
    index.release("a", 10_000)
    assert not index._words


def test_a_place_is_one_no_more_once_its_record_was_released() -> None:
    index = JournalIndex()
    for seq in (1, 2):
        index.add(seq, frames.encode([Record("a", seq, 1, 1, b"x")])[0])
    first, second = index.places("a", 0)
    index.release("a", 1)
    assert (index.holds("a", first), index.holds("a", second)) == (False, True)
    index.forget("a")
    index.add(3, frames.encode([Record("a", 2, 1, 1, b"x")])[0])
    assert not index.holds("a", second)


def test_a_damaged_record_and_a_hole_are_released_as_others_are() -> None:
    index = JournalIndex()
    index.add(1, frames.encode([Record("a", 1, 2, 1, b"x")])[0])
    index.add_lost(2, 90)
    (row,) = frames.encode([Record("a", 6, 2, 1, b"y")])
    row.lengths = [0]
    index.add(3, row)
    index.add(4, frames.encode([Record("b", 1, 1, 1, b"y")])[0])
    assert index.oldest(10**6) == {"a": 7}
    index.release("a", 4)
    assert [(place.first_seq, place.last_seq) for place in index.places("a", 4)] == [(3, 5), (6, 7)]
    index.release("a", 7)
    assert (index.places("a", 0), index.statistics().events) == ([], 1)
    assert [number for number, _ in index.rows.disposable(10**6, 10)] == [1, 3]
