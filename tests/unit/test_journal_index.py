"""The index of the journal says where every event lies, and which are lost."""

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
    index.add_lost(2)
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
