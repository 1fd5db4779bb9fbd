"""What follows from the command line of `sojourn record`."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from sojourn.actors.session.wire import read_command
from sojourn.record.limit import timer_commands
from sojourn.record.options import TITLE_CHARACTERS_MAX, RecordError, RecordOptions


def options(*command: str, **fields: Any) -> RecordOptions:
    return RecordOptions(command=command, **fields)


@pytest.mark.parametrize(
    ("command", "plan"),
    [
        (("pytest", "tests"), "pytest tests"),
        (("/usr/bin/python3", "-m", "pytest"), "python3 -m"),
        (("./run.sh",), "run.sh"),
        (("pytest", "/home/ann/checkout/tests/"), "pytest tests"),
    ],
)
def test_the_plan_is_the_first_two_words_without_their_folders(command: tuple[str, ...], plan: str) -> None:
    assert options(*command).plan_or_default == plan


def test_a_long_command_line_makes_a_short_title() -> None:
    title = options("pytest", *("tests/x.py",) * 100).title_or_default
    assert len(title) == TITLE_CHARACTERS_MAX
    assert title.endswith("...")


def test_what_is_given_stands_before_the_defaults() -> None:
    made = options("pytest", plan="nightly", title="t", user_id="ann", meta=("branch=main",)).creation()
    assert (made["plan"], made["title"], made["user_id"]) == ("nightly", "t", "ann")
    assert made["metadata"] == {"branch": "main"}


def test_an_argument_that_is_no_utf8_can_still_be_sent() -> None:
    assert msgspec.json.encode(options("pytest", "tests/\udcff.py").creation())


def test_a_server_is_named_to_the_other_commands_and_so_is_an_unusual_folder(tmp_path: Path) -> None:
    assert options("true", server="http://127.0.0.1:1").where() == " --server http://127.0.0.1:1"
    assert options("true", data_dir=tmp_path / "a b").where() == f" --data '{tmp_path}/a b'"
    assert options("true").where() == ""


def test_a_command_that_cannot_be_found_is_no_failure_of_ours() -> None:
    with pytest.raises(RecordError, match="there is no command") as caught:
        options("no-such-command").check()
    assert caught.value.exit_code == 127


def test_metadata_may_hold_equals_signs() -> None:
    assert options("true", meta=("a=b=c", "empty=")).creation()["metadata"] == {"a": "b=c", "empty": ""}


@pytest.mark.parametrize("pair", ["novalue", "=value", ""])
def test_metadata_without_a_key_or_an_equals_sign_is_a_mistake(pair: str) -> None:
    with pytest.raises(RecordError, match="is no key=value") as caught:
        options("true", meta=(pair,)).check()
    assert caught.value.exit_code == 125


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28_800),
        ("1h30m", 5_400),
        ("90s", 90),
        ("90", 90),
        ("2d", 172_800),
        ("1.5H ", 5_400),
        ("0.5", 0.5),
    ],
)
def test_a_time_limit_is_read_in_the_units_it_is_written_in(text: str, seconds: float) -> None:
    assert options("true", time_limit=text).time_limit_s == seconds


@pytest.mark.parametrize("text", ["", "0", "-5m", "soon", "8 hours", "h", "367d", "1h 30m", "1e3", "nan"])
def test_a_time_limit_that_is_none_is_refused_before_the_command_runs(text: str) -> None:
    with pytest.raises(RecordError, match=r"--time-limit .* is no time limit; write it like 8h"):
        options("true", time_limit=text).check()


def test_a_limit_is_left_with_the_session_a_minute_beyond_and_taken_away_where_there_is_none() -> None:
    (timer,) = timer_commands(options("true", time_limit="8h").time_limit_s, has_timer=True)
    assert timer == {
        "type": "timer.set",
        "key": "record.time-limit",
        "after_s": 28_860.0,
        "clock": "active",
        "action": "fail",
        "reason": "over its time limit of 8 h 00 min, and its recorder was gone",
    }
    assert read_command(timer).type == "timer.set"
    assert timer_commands(None, has_timer=False) == []
    (cancel,) = timer_commands(None, has_timer=True)
    assert read_command(cancel).type == "timer.cancel"
