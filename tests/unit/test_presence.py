from datetime import timedelta
from typing import Any

import pytest

from sojourn.runtime.presence import Presence
from tests.support.faulty import TestClock


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def presence(clock: TestClock) -> Presence:
    return Presence(clock)


def test_a_sign_that_was_the_last_event_is_not_kept_for_a_session_at_rest(
    clock: TestClock, presence: Presence
) -> None:
    clock.pass_time(100)
    updated_at = clock.now()
    clock.pass_time(0.5)  # the commit
    presence.sign("sess_1", clock.monotonic())
    clock.pass_time(60)
    presence.rests("sess_1", updated_at)
    assert not presence._signs
    record: dict[str, Any] = {"session_id": "sess_1", "updated_at": updated_at, "metadata": {}}
    record |= {"ended_at": None, "started_at": None}
    assert presence.completed(record, None)["last_sign_at"] == updated_at
    assert presence.idle_for_s() == 60


def test_a_sign_after_the_last_event_is_kept(clock: TestClock, presence: Presence) -> None:
    clock.pass_time(100)
    updated_at = clock.now()
    clock.pass_time(10)
    presence.sign("sess_1", clock.monotonic())
    clock.pass_time(60)
    presence.rests("sess_1", updated_at)
    assert presence.silent_s("sess_1") == 60


@pytest.mark.parametrize("set_by_s", [86_400.0, -86_400.0])
def test_a_session_at_rest_counts_as_heard_of_when_the_wall_clock_is_set(
    clock: TestClock, presence: Presence, set_by_s: float
) -> None:
    presence.sign("sess_1", clock.monotonic())
    presence.rests("sess_1", clock.now())
    clock.pass_time(60)
    assert presence.silent_s("sess_1") == 60
    clock.wall += timedelta(seconds=set_by_s)
    assert presence.silent_s("sess_1") == 0
    clock.pass_time(5)
    assert presence.silent_s("sess_1") == 5


def test_a_clock_set_back_and_set_right_again_is_seen_where_something_came_to_rest_in_between(
    clock: TestClock, presence: Presence
) -> None:
    clock.pass_time(1_000)
    clock.wall -= timedelta(seconds=500)
    presence.sign("sess_1", clock.monotonic())
    presence.rests("sess_1", clock.now())
    clock.wall += timedelta(seconds=500)
    assert presence.silent_s("sess_1") == 0


def test_a_clock_set_between_the_event_and_the_rest_leaves_the_sign(
    clock: TestClock, presence: Presence
) -> None:
    presence.sign("sess_1", clock.monotonic())
    updated_at = clock.now()
    clock.wall += timedelta(seconds=500)
    clock.pass_time(60)
    presence.rests("sess_1", updated_at)
    assert presence.silent_s("sess_1") == 60


def test_a_session_that_rests_and_has_not_ended_keeps_the_server_from_being_idle(
    clock: TestClock, presence: Presence
) -> None:
    presence.sign("sess_1", clock.monotonic())
    presence.rests("sess_1", clock.now())
    clock.pass_time(10)
    assert presence.idle_for_s() == 0
