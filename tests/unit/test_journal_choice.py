"""Rows that many resting sessions have in the journal are left there while newer ones free as much."""

from sojourn.actors.ports import Record
from sojourn.runtime.stores import frames
from sojourn.runtime.stores.journal_choice import STEP_SESSIONS, Choice
from sojourn.runtime.stores.journal_index import JournalIndex

RESTING = [f"resting-{number}" for number in range(300)]


def needed(index: JournalIndex, size_bytes: int, spare_bytes: int) -> dict[str, int]:
    choice, steps = Choice(index, size_bytes, spare_bytes), 0
    while not choice.is_over:
        choice.step()
        steps += 1
    assert steps == -(-len(index.words()) // STEP_SESSIONS)
    return choice.needed()


def journal() -> JournalIndex:
    """Three rows in which all sessions are created, then 60 of a busy one, with a second record of a resting one."""
    rows = [
        [Record(session_id, 1, 1, 1, bytes(100)) for session_id in RESTING[start : start + 100]]
        for start in range(0, 300, 100)
    ]
    rows += [[Record("busy", seq, 1, 1, bytes(2_000))] for seq in range(1, 61)]
    rows[10].append(Record("resting-7", 2, 1, 1, bytes(100)))
    index = JournalIndex()
    for number, records in enumerate(rows, 1):
        (row,) = frames.encode(records)
        index.check([row])
        index.add(number, row)
    return index


def test_what_is_left_out_is_made_up_for_by_newer_rows() -> None:
    index = journal()
    assert index.oldest(60_000).keys() == {"busy", *RESTING}
    fewer = needed(index, 60_000, 50_000)
    assert fewer.keys() == {"busy", "resting-7"}
    assert fewer["resting-7"] == 2
    assert fewer["busy"] > index.oldest(60_000)["busy"]
    for session_id, seq in fewer.items():
        index.release(session_id, seq)
    assert sum(size for _, size in index.rows.disposable(10**9, 10**9)) >= 60_000
    assert needed(index, 60_000, 50_000).keys() == {"busy"}  # what was released is asked for no more
    assert index.oldest(10**9).keys() == {"busy", *RESTING} - {"resting-7"}


def test_no_more_is_left_out_than_may_be() -> None:
    index = journal()
    assert needed(index, 60_000, 100) == index.oldest(60_000)  # none of the rows is so small
    one_row = index.rows.size_of(1)
    assert len(needed(index, 60_000, one_row)) == 1 + 200 + 1  # and resting-7


def test_rows_that_are_much_for_few_sessions_are_not_left_out() -> None:
    index = JournalIndex()
    for number in range(1, 11):
        (row,) = frames.encode([Record(f"s{number}", 1, 1, 1, bytes(5_000))])
        index.check([row])
        index.add(number, row)
    assert needed(index, 20_000, 50_000) == index.oldest(20_000)
