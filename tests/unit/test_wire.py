"""Commands from outside: what is read, and how every mistake is named."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.actors.errors import InvalidCommand, TooLarge
from sojourn.actors.session.commands import AppendLog, CancelTimer, RecordResult, SetTimer
from sojourn.actors.session.model import TimerAction, TimerClock
from sojourn.actors.session.wire import COMMAND_BYTES_MAX, decode_json, read_command, read_create

RESULT = {"type": "result.record", "case_id": "m::a", "outcome": "passed", "duration_s": 1}


def mistakes(value: Any) -> dict[str, str]:
    with pytest.raises(InvalidCommand) as invalid:
        read_command(value)
    return {error.pointer: error.code for error in invalid.value.errors}


def test_a_command_is_read_with_its_id_and_digest() -> None:
    command = read_command({**RESULT, "command_id": "c1"})
    assert isinstance(command.body, RecordResult)
    assert command.body.duration_s == 1.0
    assert (command.command_id, command.source) == ("c1", None)
    assert command.digest
    assert command.digest != read_command({**RESULT, "command_id": "c1", "duration_s": 2}).digest


def test_a_command_of_a_source_is_read() -> None:
    command = read_command({"type": "log.append", "stream": "stdout", "text": "x", "source": "rec", "n": 3})
    assert (command.source, command.n, command.command_id) == ("rec", 3, None)


@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        ({"type": "result.invent"}, "/type", "unknown_type"),
        ({"type": None}, "/type", "missing_field"),
        ({"type": ["x"]}, "/type", "unknown_type"),
        ({"type": "session.create"}, "/type", "unknown_type"),
        ({"zap": 1}, "/zap", "unknown_field"),
        ({"a/b~c": 1}, "/a~1b~0c", "unknown_field"),
        ({"duration_s": "7"}, "/duration_s", "invalid_field"),
        ({"duration_s": True}, "/duration_s", "invalid_field"),
        ({"duration_s": -1}, "/duration_s", "invalid_field"),
        ({"case_id": 5}, "/case_id", "invalid_field"),
        ({"case_id": "x" * 1025}, "/case_id", "too_large"),
        ({"message": "ü" * 2049}, "/message", "too_large"),
        ({"outcome": "green"}, "/outcome", "invalid_field"),
        ({"started_at": "2026-01-01T00:00:00"}, "/started_at", "invalid_field"),
        ({"started_at": "yesterday"}, "/started_at", "invalid_field"),
        ({"started_at": 5}, "/started_at", "invalid_field"),
        ({"command_id": ""}, "/command_id", "invalid_field"),
        ({"command_id": "x" * 129}, "/command_id", "invalid_field"),
        ({"command_id": "a\nb"}, "/command_id", "invalid_field"),
        ({"source": "s"}, "/n", "missing_field"),
        ({"n": 1}, "/n", "missing_field"),
        ({"source": "s", "n": 0}, "/n", "invalid_field"),
        ({"source": "s", "n": 1.0}, "/n", "invalid_field"),
        ({"source": "s", "n": 1, "command_id": "c"}, "/command_id", "invalid_field"),
    ],
)
def test_a_mistake_is_named_with_its_path_and_code(change: dict[str, Any], pointer: str, code: str) -> None:
    assert mistakes({**RESULT, **change}) == {pointer: code}


TIMER = {"type": "timer.set", "key": "limit", "after_s": 60}


@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        ({"key": ""}, "/key", "invalid_field"),
        ({"key": "a\nb"}, "/key", "invalid_field"),
        ({"key": "x" * 129}, "/key", "too_large"),
        ({"after_s": None}, "/after_s", "missing_field"),
        ({"after_s": -1}, "/after_s", "invalid_field"),
        ({"after_s": 4e8}, "/after_s", "invalid_field"),
        ({"at": "2026-11-22T10:00:00Z"}, "/after_s", "invalid_field"),
        ({"after_s": None, "at": "2026-11-22T10:00:00"}, "/at", "invalid_field"),
        ({"after_s": None, "at": "3000-01-01T00:00:00Z"}, "/at", "invalid_field"),
        ({"after_s": None, "at": "2026-11-22T10:00:00Z", "clock": "active"}, "/at", "invalid_field"),
        ({"clock": "sundial"}, "/clock", "invalid_field"),
        ({"every_s": 0}, "/every_s", "invalid_field"),
        ({"every_s": 0.5}, "/every_s", "invalid_field"),
        ({"every_s": 4e8}, "/every_s", "invalid_field"),
        ({"every_s": 60, "action": "fail"}, "/every_s", "invalid_field"),
        ({"action": "explode"}, "/action", "invalid_field"),
        ({"reason": "why"}, "/reason", "invalid_field"),
        ({"type": "timer.tick"}, "/type", "unknown_type"),
        ({"type": "timer.fired"}, "/type", "unknown_type"),
    ],
)
def test_a_mistake_in_a_timer_is_named_with_its_path_and_code(
    change: dict[str, Any], pointer: str, code: str
) -> None:
    assert mistakes({**TIMER, **change}) == {pointer: code}


def test_a_timer_is_read_with_its_clock_and_what_it_does() -> None:
    body = read_command({**TIMER, "clock": "active", "action": "fail", "reason": "too long"}).body
    assert body == SetTimer(
        key="limit", after_s=60.0, clock=TimerClock.ACTIVE, action=TimerAction.FAIL, reason="too long"
    )
    at = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
    body = read_command(
        {"type": "timer.set", "key": "k", "at": "2026-11-22T10:00:00+01:00", "every_s": 1}
    ).body
    assert body == SetTimer(key="k", at=at, every_s=1.0)
    assert mistakes({"type": "timer.cancel", "key": ""}) == {"/key": "invalid_field"}
    assert read_command({"type": "timer.cancel", "key": "k"}).body == CancelTimer(key="k")


def test_all_mistakes_are_named_at_once() -> None:
    found = mistakes({"type": "result.record", "outcome": 3, "zap": 1})
    assert found == {
        "/case_id": "missing_field",
        "/duration_s": "missing_field",
        "/outcome": "invalid_field",
        "/zap": "unknown_field",
    }


@pytest.mark.parametrize("value", [[], "x", 5, None, True])
def test_a_command_is_an_object(value: Any) -> None:
    assert mistakes(value) == {"": "invalid_json"}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"done": 1.5}, "/done"),
        ({"done": True}, "/done"),
        ({"done": 1 << 70}, "/done"),
        ({"done": -1}, "/done"),
        ({"total": "9"}, "/total"),
    ],
)
def test_a_count_is_a_whole_number(change: dict[str, Any], pointer: str) -> None:
    assert mistakes({"type": "progress.report", "done": 1, **change}) == {pointer: "invalid_field"}


def test_a_flag_is_a_boolean_and_a_level_is_known() -> None:
    log = {"type": "log.append", "stream": "stdout", "text": "x"}
    assert mistakes({**log, "invalid_utf8": 1}) == {"/invalid_utf8": "invalid_field"}
    assert mistakes({**log, "level": "loud"}) == {"/level": "invalid_field"}
    body = read_command({**log, "level": "info"}).body
    assert isinstance(body, AppendLog)


def test_a_session_that_completes_was_not_cancelled() -> None:
    assert mistakes({"type": "session.complete", "outcome": "cancelled"}) == {"/outcome": "invalid_field"}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"metadata": {"a": [1]}}, "/metadata/a"),
        ({"metadata": {"k" * 129: 1}}, "/metadata/" + "k" * 129),
        ({"metadata": {str(n): n for n in range(101)}}, "/metadata"),
        ({"metadata": {"a": "x" * 5000}}, "/metadata/a"),
        ({"environment": "staging"}, "/environment"),
        ({"title": 3}, "/title"),
        ({"zap": 3}, "/zap"),
    ],
)
def test_a_creation_is_checked_like_any_command(body: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidCommand) as invalid:
        read_create(body)
    assert [error.pointer for error in invalid.value.errors] == [pointer]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "invalid_json"),
        (b"[NaN]", "invalid_json"),
        (b'{"a":"\xff"}', "invalid_utf8"),
        (b'"\\ud800"', "invalid_json"),
        (b"[" * 40 + b"]" * 40, "invalid_json"),
        (b"[" * 100_000 + b"]" * 100_000, "invalid_json"),
    ],
)
def test_what_is_not_json_is_named(data: bytes, code: str) -> None:
    with pytest.raises(InvalidCommand) as invalid:
        decode_json(data)
    assert invalid.value.code == code


def test_the_byte_that_is_not_utf8_is_counted_from_the_start_of_the_body() -> None:
    with pytest.raises(InvalidCommand, match="at byte 6;"):
        decode_json(b'{"a":"\xff"}')


def test_half_a_surrogate_pair_is_called_that() -> None:
    with pytest.raises(InvalidCommand, match="surrogate"):
        decode_json(b'{"a":"\\ud800"}')


def test_the_known_fields_include_those_that_every_command_may_carry() -> None:
    with pytest.raises(InvalidCommand, match=r"command_id, emitted_at, .* n, source, stream"):
        read_command({"type": "log.append", "stream": "s", "text": "x", "colour": 1})
    with pytest.raises(InvalidCommand, match="known: command_id, environment"):
        read_create({"titel": "x"})


def test_a_command_is_bounded() -> None:
    with pytest.raises(TooLarge):
        decode_json(b" " * (COMMAND_BYTES_MAX + 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.dictionaries(
        st.sampled_from(["type", "done", "text", "stream", "outcome", "n", "source", "level"]), json_values
    )
)
def test_whatever_comes_is_read_or_refused_and_never_crashes(value: dict[str, Any]) -> None:
    value.setdefault("type", "log.append")
    try:
        read_command(decode_json(json.dumps(value).encode("utf-8", "surrogatepass")))
    except (InvalidCommand, TooLarge):
        return
