"""What people are shown of a session's timers."""

from typing import Any

import msgspec
import pytest

from sojourn.cli.render import TIMERS_SHOWN, event_text, shown_timers
from sojourn.cli.text import local_time


def local(moment: str) -> str:
    return local_time(f"2026-11-22T{moment}Z")


def timer(**fields: Any) -> dict[str, Any]:
    plain = {"action": None, "clock": "wall", "due_at": "2026-11-22T12:00:00Z", "every_s": None}
    return plain | fields


def test_timers_are_shown_by_the_moment_at_which_they_are_due() -> None:
    timers = {
        "limit": timer(clock="active", due_at="2026-11-22T12:30:00Z", action="fail"),
        "check": timer(every_s=3600.0),
        "\x1b[2Jkey": timer(due_at="2026-11-22T12:45:00Z"),
    }
    clock = {"paused_us": 600_000_000, "stopped_at": None}
    assert shown_timers({"timers": timers, "active_clock": clock}) == (
        f"check at {local('12:00:00')}, every 1 h 00 min; limit at {local('12:40:00')}, ends the session; "
        f"key at {local('12:45:00')}"
    )


def test_a_timer_whose_clock_stands_still_says_how_much_is_left() -> None:
    timers = {"limit": timer(clock="active", due_at="2026-11-22T11:00:00Z"), "wall": timer()}
    clock = {"paused_us": 0, "stopped_at": "2026-11-22T10:59:30Z"}
    shown = shown_timers({"timers": timers, "active_clock": clock})
    assert shown == f"wall at {local('12:00:00')}; limit after 30.0 s more of running"


def test_a_session_with_many_timers_shows_the_first_and_counts_the_rest() -> None:
    shown = shown_timers({"timers": {f"k{n}": timer() for n in range(64)}})
    assert shown.count("k") == TIMERS_SHOWN
    assert shown.endswith("; and 59 more")


def test_a_state_from_before_there_were_timers_shows_none() -> None:
    assert shown_timers({"counters": {}}) == ""


@pytest.mark.parametrize(("missed", "said"), [(0, ""), (1_234, ", 1,234 before it were missed")])
def test_a_tail_tells_that_a_timer_was_due(missed: int, said: str) -> None:
    data = {"due_at": "2026-11-22T12:00:00Z", "key": "limit", "missed": missed}
    line = msgspec.json.encode({"data": data})
    assert list(event_text("timer.fired", line, colours=False)) == [
        f"-- timer limit was due at {local('12:00:00')}{said}"
    ]
