"""Which rows of the journal may go, and which are the oldest."""

from hypothesis import given
from hypothesis import strategies as st

from sojourn.runtime.stores.journal_rows import JournalRows


def rows_of(*pins: int | None) -> JournalRows:
    """Rows of 100 bytes, each with so many needed records; None: one of which nothing can be read."""
    rows = JournalRows()
    for number, count in enumerate(pins, 1):
        if count is None:
            rows.add_lost(number, 100)
        else:
            rows.add(number, 100, count)
    return rows


def disposable(rows: JournalRows) -> list[int]:
    return [number for number, _ in rows.disposable(10**6, 10**6)]


def test_a_row_may_go_once_all_its_records_are_unpinned() -> None:
    rows = rows_of(1, 2, 1)
    rows.unpin([2])
    assert disposable(rows) == []
    rows.unpin([2, 1])
    assert disposable(rows) == [1, 2]  # as they lie in the file


def test_the_newest_row_may_go_once_it_is_not() -> None:
    rows = rows_of(1, 1)
    rows.unpin([2])
    assert disposable(rows) == []
    rows.add(3, 100, 0)
    assert disposable(rows) == [2]
    rows.add_lost(4, 100)
    rows.add(5, 100, 1)
    assert disposable(rows) == [2, 3]


def test_an_unreadable_row_may_go_once_no_older_one_is_needed() -> None:
    rows = rows_of(None, 1, None, 1, None)
    assert disposable(rows) == []
    rows.dispose_of_lost()
    assert disposable(rows) == [1]
    rows.unpin([2, 4])
    rows.dispose_of_lost()
    assert disposable(rows) == [1, 2, 3, 4]


def test_what_may_go_is_given_in_parts_and_counted_until_it_is_gone() -> None:
    rows = rows_of(1, 1, 1, 1, 1)
    rows.unpin([1, 2, 3, 4])
    assert [number for number, _ in rows.disposable(200, 9)] == [1, 2]
    assert [number for number, _ in rows.disposable(1, 9)] == [1]
    assert [number for number, _ in rows.disposable(900, 3)] == [1, 2, 3]
    assert rows.size_bytes == 500
    rows.removed(rows.disposable(200, 9))
    assert (rows.size_bytes, disposable(rows)) == (300, [3, 4])
    rows.keep()
    assert (rows.size_bytes, disposable(rows)) == (300, [4])


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 200), st.booleans()), max_size=60), st.data())
def test_reach_is_the_row_up_to_which_the_oldest_needed_ones_hold_so_much(
    drawn: list[tuple[int, int, bool]], data: st.DataObject
) -> None:
    rows, needed, number = JournalRows(), [], 0
    for step, size, gone in drawn:
        number += step  # rows between are missing in a file that was opened again
        rows.add(number, size, 1)
        if gone:
            rows.unpin([number])
        elif number:
            needed.append((number, size))
    needed = [row for row in needed if row[0] != number]
    size_bytes = data.draw(st.integers(0, 10_000))
    held, expected = 0, 0
    for at, size in needed:
        if held >= size_bytes:
            break
        held, expected = held + size, at
    reached = rows.reach(size_bytes)
    assert [at for at, _ in needed if at <= reached] == [at for at, _ in needed if at <= expected]


def test_reach_counts_far() -> None:
    rows = rows_of(*([1] * 10_000))
    assert [rows.reach(100 * count) for count in (1, 1_024, 1_025, 5_000, 9_999, 10_000)] == [
        1,
        1_024,
        1_025,
        5_000,
        9_999,
        9_999,
    ]
    assert (rows.reach(0), JournalRows().reach(1), rows_of(1).reach(1)) == (0, 0, 0)
