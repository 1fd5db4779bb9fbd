"""Stored JSON: canonical, checked, and refused where it is damaged or newer."""

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest

from sojourn.actors.errors import Damaged
from sojourn.actors.session import codec
from sojourn.actors.session.commands import (
    KIND_BY_COMMAND,
    AppendLog,
    CancelTimer,
    Cause,
    Command,
    Event,
    SetTimer,
    SourceCause,
)
from sojourn.actors.session.model import Status, TimerClock

from .test_session_core import NOW, SAMPLE, do, session

LINE = Event(NOW, SourceCause(1, 7, "rec"), AppendLog(stream="stdout", text="é\n"), 9, "log.appended")


def canonical(data: bytes) -> bytes:
    return json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("kind", sorted(SAMPLE))
@pytest.mark.parametrize(
    "cause", [None, Cause("c", "d", 1), SourceCause(1, 7, "rec")], ids=["none", "id", "source"]
)
def test_every_event_is_canonical_json_and_reads_back_equal(
    kind: str, cause: Cause | SourceCause | None
) -> None:
    event = Event(NOW, cause, SAMPLE[kind], 3, KIND_BY_COMMAND[kind].event)
    line = codec.encode_event(event)
    assert line == canonical(line)
    assert codec.decode_event(line) == event


def test_the_type_is_the_last_field_of_a_line() -> None:
    assert codec.encode_event(LINE).endswith(b',"type":"log.appended"}')
    assert codec.encode_events([LINE, LINE]) == 2 * (codec.encode_event(LINE) + b"\n")


def test_state_and_snapshot_are_canonical_json() -> None:
    state = session()
    do(state, Command("result.record", SAMPLE["result.record"], "b", "d"))
    do(state, Command("log.append", SAMPLE["log.append"], "a", "d"))
    for data in (codec.public_state(state), codec.encode_snapshot(state, 4)):
        assert data == canonical(data)


def test_the_public_state_leaves_out_what_only_deduplication_needs() -> None:
    state = session()
    do(state, Command("log.append", SAMPLE["log.append"], "a", "d"))
    assert sorted(json.loads(codec.public_state(state))) == [
        "active_clock", "counters", "header", "losses", "progress", "resources", "results", "seq", "timers", "updated_at",
    ]  # fmt: skip


def test_an_event_type_of_a_newer_version_is_named() -> None:
    line = codec.encode_event(LINE).replace(b"log.appended", b"log.invented")
    with pytest.raises(Damaged, match=r"log\.invented.*upgrade"):
        codec.decode_event(line)


def test_a_line_that_is_cut_short_is_damage() -> None:
    with pytest.raises(Damaged):
        codec.decode_event(codec.encode_event(LINE)[:40])


def test_a_snapshot_of_a_newer_format_is_refused() -> None:
    newer = b'"format":%d' % (codec.STATE_FORMAT + 1)
    data = codec.encode_snapshot(session(), 1).replace(b'"format":2', newer)
    with pytest.raises(Damaged, match="newer"):
        codec.decode_snapshot(data)


def test_every_flipped_bit_and_every_cut_of_a_snapshot_is_seen() -> None:
    data = codec.encode_snapshot(session(), 1)
    good = codec.decode_snapshot(data)
    for place in range(len(data)):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]):
            try:
                read = codec.decode_snapshot(damaged)
            except Damaged:
                continue
            assert read == good


def test_a_state_of_a_version_without_seals_reads_as_unsealed() -> None:
    state = session(Status.COMPLETED)
    data = codec.encode_snapshot(state, 1)
    older = json.loads(data)
    del older["state"]["header"]["sealed_at"]
    stored = canonical(json.dumps(older["state"]).encode())
    older |= {"checksum": hashlib.sha256(stored).hexdigest(), "format": 1}
    read = codec.decode_snapshot(canonical(json.dumps(older).encode())).state
    assert codec.encode_snapshot(read, 1) == data


# As the version before timers wrote it.
OLDER = (
    b'{"checksum":"6f374f61181d0866c5dbe42954a699572d7df81bf2e161f6b103248ea679e6de","epoch":4,"format":2,"seq":5,'
    b'"session_id":"sess_1","state":{"commands":{"c1":{"at":"2026-11-22T10:00:03Z","digest":"d1","events":1,"first_seq":4}},'
    b'"counters":{"logs.bytes":1,"logs.lines":1},"header":{"created_at":"2026-11-22T10:00:00Z","ended_at":null,'
    b'"environment":{},"exit_code":null,"metadata":{},"outcome":null,"plan":"p","reason":null,"sealed_at":null,'
    b'"session_id":"sess_1","started_at":"2026-11-22T10:00:01Z","status":"running","title":"t","user_id":""},"losses":[],'
    b'"progress":null,"resources":null,"results":{},"seq":5,"session_id":"sess_1","size_bytes":0,'
    b'"sources":{"rec":{"n":1,"seq":5}},"updated_at":"2026-11-22T10:00:04Z"}}'
)


def test_a_snapshot_of_the_version_without_timers_is_read_and_can_be_given_some() -> None:
    state = codec.decode_snapshot(OLDER).state
    assert state.updated_at is not None
    assert (state.timers, state.active_clock) == ({}, None)
    do(state, Command("timer.set", SetTimer(key="k", after_s=5.0, clock=TimerClock.ACTIVE)))
    read = codec.decode_snapshot(codec.encode_snapshot(state, 4)).state
    assert (read.timers, read.active_clock) == (state.timers, state.active_clock)
    assert read.timers["k"].due_at == state.updated_at + timedelta(seconds=5)


def test_a_state_without_timers_is_written_as_the_version_without_them_reads_it() -> None:
    state = codec.decode_snapshot(OLDER).state
    assert codec.encode_snapshot(state, 4) == OLDER
    do(state, Command("timer.set", SetTimer(key="k", after_s=5.0)))
    assert b'"format":3' in codec.encode_snapshot(state, 4)
    do(state, Command("timer.cancel", CancelTimer(key="k")))
    assert b'"format":2' in codec.encode_snapshot(state, 4)


def test_a_time_reads_back_to_the_microsecond() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    event = Event(at, None, AppendLog(stream="s", text=""), 1, "log.appended")
    assert codec.decode_event(codec.encode_event(event)).at == at
