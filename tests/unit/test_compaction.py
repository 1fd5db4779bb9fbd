"""The pure rules of what may leave the journal, and segments to the bit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.actors.compaction import SLOW_S_MAX, Kept, bytes_to_free, releasable_seq, slowed_s
from sojourn.actors.errors import Damaged
from sojourn.actors.ports import Record
from sojourn.runtime.segments import decode_segment, encode_segment, pack, parse_name, segment_name, unpack

seqs = st.integers(0, 1_000)


def records(*counts: int, epoch_of: int = 1) -> list[Record]:
    found, seq = [], 0
    for number, count in enumerate(counts):
        lines = b"".join(b'{"seq":%d}\n' % (seq + n + 1) for n in range(count))
        found.append(Record("s", seq + 1, count, epoch_of + number, lines))
        seq += count
    return found


def test_compaction_begins_at_two_fifths_of_the_bound_and_ends_at_one() -> None:
    assert bytes_to_free(40, 100) == 0
    assert bytes_to_free(41, 100) == 21
    assert bytes_to_free(100, 100) == 80


def test_commits_are_slowed_near_the_bound_and_not_before() -> None:
    assert [slowed_s(size, 1_000) for size in (0, 500, 850)] == [0, 0, 0]
    assert slowed_s(925, 1_000) == pytest.approx(SLOW_S_MAX / 2)
    assert [slowed_s(size, 1_000) for size in (1_000, 5_000)] == pytest.approx([SLOW_S_MAX] * 2)


@given(segments=seqs, newest=seqs, older=seqs, head=seqs)
def test_nothing_is_released_that_no_segment_and_no_snapshot_holds(
    segments: int, newest: int, older: int, head: int
) -> None:
    newest, older = max(newest, older), min(newest, older)
    head = max(head, segments, newest)
    seq = releasable_seq(Kept(segments_seq=segments, newest_seq=newest, older_seq=older, head_seq=head))
    assert seq <= segments
    assert seq <= older or newest == head


def test_an_active_session_is_released_up_to_its_older_snapshot() -> None:
    assert releasable_seq(Kept(segments_seq=90, newest_seq=80, older_seq=50, head_seq=100)) == 50


def test_an_idle_session_is_released_up_to_its_newest_snapshot() -> None:
    assert releasable_seq(Kept(segments_seq=100, newest_seq=100, older_seq=50, head_seq=100)) == 100


def test_a_segment_gives_back_lines_and_epochs() -> None:
    data = encode_segment("s", records(3, 2, 4))
    back = decode_segment(data, session_id="s", first_seq=1, last_seq=9)
    assert back == records(3, 2, 4)


def test_records_that_do_not_follow_each_other_are_refused() -> None:
    first, _, third = records(3, 2, 4)
    with pytest.raises(ValueError, match="does not follow"):
        encode_segment("s", [first, third])
    with pytest.raises(ValueError, match="at least one"):
        encode_segment("s", [])


def test_every_flipped_bit_of_a_segment_is_noticed() -> None:
    data = encode_segment("s", records(3, 2))
    for at in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(Damaged):
            decode_segment(bytes(damaged), session_id="s", first_seq=1, last_seq=5)


def test_every_truncation_and_zero_filled_end_of_a_segment_is_noticed() -> None:
    data = encode_segment("s", records(3, 2))
    for at in range(len(data)):
        for damaged in (data[:at], data[:at] + bytes(len(data) - at), data + bytes(at + 1)):
            with pytest.raises(Damaged):
                decode_segment(damaged, session_id="s", first_seq=1, last_seq=5)


def test_a_segment_under_another_name_is_noticed() -> None:
    data = encode_segment("s", records(5))
    for session_id, first_seq, last_seq in (("t", 1, 5), ("s", 2, 5), ("s", 1, 6)):
        with pytest.raises(Damaged, match="named"):
            decode_segment(data, session_id=session_id, first_seq=first_seq, last_seq=last_seq)


def test_an_object_that_unfolds_to_more_than_it_may_is_refused() -> None:
    with pytest.raises(Damaged, match="unfolds"):
        unpack(pack(bytes(2_000)), 1_000)
    assert unpack(pack(bytes(1_000)), 1_000) == bytes(1_000)


def test_names_say_which_events_a_segment_holds() -> None:
    name = segment_name("sessions/ab/s", 1, 90)
    parsed = parse_name(name)
    assert parsed is not None
    assert (parsed.name, parsed.first_seq, parsed.last_seq) == (name, 1, 90)
    assert parse_name("sessions/ab/s/manifest.json") is None
