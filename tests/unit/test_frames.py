"""A row of framed records gives back what was put in, and damage costs no more than what it hits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.actors.ports import Record, RecordKind
from sojourn.runtime.stores import frames

SEQS = st.integers(0, 2**32 - 1)
RECORDS = st.lists(
    st.builds(
        Record,
        session_id=st.text("abc_019", max_size=40),
        first_seq=SEQS,
        count=st.integers(0, 2**20),
        epoch=st.just(7),
        payload=st.binary(max_size=60),
        kind=st.sampled_from(RecordKind),
    ),
    min_size=1,
    max_size=6,
)


def decoded(row: frames.Row) -> list[Record | None]:
    """The records of a row that was found, None for each that is lost."""
    records: list[Record | None] = []
    for at, session_id in enumerate(row.session_ids):
        piece = row.data[row.offsets[at] : row.offsets[at] + row.lengths[at]]
        payload = frames.payload_of(piece, row.first_seqs[at])
        records.append(
            Record(
                session_id, row.first_seqs[at], row.counts[at], row.epoch, payload, RecordKind(row.kinds[at])
            )
            if payload is not None and row.lengths[at]
            else None
        )
    return records


def scanned(data: bytes) -> list[Record | None]:
    row = frames.scan(data)
    assert row is not None
    return decoded(row)


@given(RECORDS)
def test_records_come_back_as_they_were(records: list[Record]) -> None:
    (row,) = frames.encode(records)
    assert scanned(row.data) == records


def _plain(column: object) -> object:
    return list(column) if isinstance(column, tuple) else column


@given(RECORDS)
def test_what_is_written_is_described_as_what_is_found(records: list[Record]) -> None:
    (row,) = frames.encode(records)
    found = frames.scan(row.data)
    assert found is not None
    for column in ("epoch", "session_ids", "first_seqs", "counts", "kinds", "lengths", "offsets"):
        assert _plain(getattr(row, column)) == _plain(getattr(found, column))


@given(RECORDS, st.integers(1, 255))
def test_every_flipped_byte_costs_at_most_the_record_it_is_in(records: list[Record], mask: int) -> None:
    (row,) = frames.encode(records)
    for at in range(len(row.data)):
        data = bytearray(row.data)
        data[at] ^= mask
        hit = [n for n, offset in enumerate(row.offsets) if offset <= at < offset + row.lengths[n]]
        expected: list[Record | None] = list(records)
        for n in hit:
            expected[n] = None
        assert scanned(bytes(data)) == expected


@given(RECORDS, st.data())
def test_a_hole_in_a_row_is_detected_or_costs_nothing(records: list[Record], data: st.DataObject) -> None:
    (row,) = frames.encode(records)
    begin = data.draw(st.integers(0, len(row.data) - 1))
    end = data.draw(st.integers(begin + 1, len(row.data)))
    broken = row.data[:begin] + bytes(end - begin) + row.data[end:]
    found = frames.scan(broken)
    if found is not None:
        for was, now in zip(records, decoded(found), strict=True):
            assert now is None or now == was


def test_a_directory_of_zeros_does_not_carry_the_checksum_of_nothing() -> None:
    (row,) = frames.encode([Record("a", 1, 1, 7, b"x")])
    assert scanned(row.data[:4] + bytes(9) + row.data[13:]) == [Record("a", 1, 1, 7, b"x")]


@given(RECORDS, st.data())
def test_a_row_cut_short_never_gives_a_wrong_record(records: list[Record], data: st.DataObject) -> None:
    (row,) = frames.encode(records)
    found = frames.scan(row.data[: data.draw(st.integers(0, len(row.data) - 1))])
    if found is not None:
        for was, now in zip(records, decoded(found), strict=True):
            assert now is None or now == was


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    frames.scan(data)


def test_records_of_two_epochs_lie_in_two_rows() -> None:
    records = [Record("a", 1, 1, 3, b"x"), Record("b", 1, 1, 3, b"y"), Record("a", 2, 1, 4, b"z")]
    rows = frames.encode(records)
    assert [row.epoch for row in rows] == [3, 4]
    assert [record for row in rows for record in decoded(row)] == records


def test_a_large_batch_takes_several_rows_and_no_offset_more_than_24_bits() -> None:
    records = [Record("a", seq, 1, 1, bytes(3 * 1024 * 1024)) for seq in range(1, 8)]
    rows = frames.encode(records)
    assert len(rows) == 3
    assert max(offset for row in rows for offset in row.offsets) < 1 << 24
    assert [record for row in rows for record in decoded(row)] == records


def test_many_records_take_several_rows() -> None:
    records = [Record("a", seq, 1, 1, b"") for seq in range(1, 70_001)]
    rows = frames.encode(records)
    assert [len(row.session_ids) for row in rows] == [65_536, 4_464]
    assert [record for row in rows for record in decoded(row)] == records


def test_no_records_take_no_row() -> None:
    assert frames.encode([]) == []


@pytest.mark.parametrize(
    "record",
    [
        Record("a\nb", 1, 1, 1, b""),
        Record("ä", 1, 1, 1, b""),
        Record("a", 2**64, 1, 1, b""),
        Record("a", 1, 2**32, 1, b""),
        Record("a", -1, 1, 1, b""),
        Record("a", 1, 1, 2**64, b""),
    ],
)
def test_what_does_not_fit_is_refused(record: Record) -> None:
    with pytest.raises(ValueError, match=r"newline|ascii|fit"):
        frames.encode([record])
