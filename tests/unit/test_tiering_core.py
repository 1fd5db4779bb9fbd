"""What is moved next: bounds, order, backoff."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from sojourn.actors.tiering.core import (
    Desk,
    TieringLimits,
    Work,
    failed,
    next_due_at,
    note,
    room,
    start_next,
    succeeded,
)

LIMITS = TieringLimits(at_once_max=4, pending_max=100)
HAND_OFF, ARCHIVE = Work.HAND_OFF, Work.ARCHIVE


def desk_of(*sessions: tuple[str, Work, float], limits: TieringLimits = LIMITS) -> Desk:
    desk = Desk()
    for session_id, work, due_at in sessions:
        assert note(desk, session_id, work, due_at, limits)
    return desk


def test_what_is_due_begins_the_longest_due_first_and_no_more_than_allowed_at_once() -> None:
    desk = desk_of(*((f"s{n}", HAND_OFF, 10.0 - n) for n in range(6)))
    assert start_next(desk, 10.0, LIMITS) == [(f"s{n}", HAND_OFF) for n in (5, 4, 3, 2)]
    assert start_next(desk, 10.0, LIMITS) == []
    succeeded(desk, "s4")
    assert start_next(desk, 10.0, LIMITS) == [("s1", HAND_OFF)]


def test_what_is_not_due_waits_and_its_moment_is_told() -> None:
    desk = desk_of(("a", HAND_OFF, 7.0), ("b", HAND_OFF, 5.0))
    assert start_next(desk, 4.9, LIMITS) == []
    assert next_due_at(desk, LIMITS) == 5.0
    assert start_next(desk, 5.0, LIMITS) == [("b", HAND_OFF)]
    assert next_due_at(desk, LIMITS) == 7.0
    assert next_due_at(Desk(), LIMITS) is None


def test_nothing_is_due_while_no_move_may_begin() -> None:
    limits = evolve(LIMITS, at_once_max=1)
    desk = desk_of(("a", HAND_OFF, 1.0), ("b", HAND_OFF, 1.0), limits=limits)
    assert len(start_next(desk, 1.0, limits)) == 1
    assert next_due_at(desk, limits) is None


@pytest.mark.parametrize(("at_once_max", "archiving"), [(4, 2), (5, 2), (2, 1), (1, 1)])
def test_archiving_takes_at_most_half_of_the_moves(at_once_max: int, archiving: int) -> None:
    limits = evolve(LIMITS, at_once_max=at_once_max)
    desk = desk_of(*((f"old{n}", ARCHIVE, 0.0) for n in range(9)), limits=limits)
    assert len(start_next(desk, 1.0, limits)) == archiving
    for n in range(9):
        note(desk, f"new{n}", HAND_OFF, 0.0, limits)
    assert len(start_next(desk, 1.0, limits)) == at_once_max - archiving


def test_each_kind_has_its_own_bounded_room() -> None:
    limits = evolve(LIMITS, pending_max=2)
    desk = desk_of(("a", ARCHIVE, 0.0), ("b", ARCHIVE, 0.0), limits=limits)
    assert not note(desk, "c", ARCHIVE, 0.0, limits)
    assert (room(desk, ARCHIVE, limits), room(desk, HAND_OFF, limits)) == (0, 2)
    assert note(desk, "c", HAND_OFF, 0.0, limits)
    start_next(desk, 0.0, limits)
    assert not note(desk, "d", ARCHIVE, 0.0, limits)
    succeeded(desk, "a")
    assert note(desk, "d", ARCHIVE, 0.0, limits)


def test_a_session_that_is_noted_again_comes_no_later() -> None:
    desk = desk_of(("a", HAND_OFF, 30.0))
    assert note(desk, "a", HAND_OFF, 40.0, LIMITS)
    assert next_due_at(desk, LIMITS) == 30.0
    note(desk, "a", HAND_OFF, 1.0, LIMITS)
    assert next_due_at(desk, LIMITS) == 1.0
    assert desk.counts[HAND_OFF] == 1


def test_the_pause_doubles_with_each_failure_up_to_its_bound() -> None:
    desk = desk_of(("a", HAND_OFF, 0.0))
    now, pauses = 0.0, []
    for _ in range(12):
        assert start_next(desk, now, LIMITS) == [("a", HAND_OFF)]
        failed(desk, "a", "storage_full", now, 0.5, LIMITS)
        due_at = next_due_at(desk, LIMITS)
        assert due_at is not None
        pauses.append(due_at - now)
        now = due_at
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_news_do_not_cut_a_pause_short() -> None:
    desk = desk_of(("a", HAND_OFF, 0.0))
    start_next(desk, 0.0, LIMITS)
    failed(desk, "a", "x", 0.0, 0.5, LIMITS)
    note(desk, "a", HAND_OFF, 0.0, LIMITS)
    assert next_due_at(desk, LIMITS) == 1.0


def test_a_failure_is_worth_a_line_once_until_no_session_shows_it() -> None:
    desk = desk_of(*((id_, HAND_OFF, 0.0) for id_ in "abc"))
    start_next(desk, 0.0, LIMITS)
    assert failed(desk, "a", "storage_full", 0.0, 0.5, LIMITS)
    assert not failed(desk, "b", "storage_full", 0.0, 0.5, LIMITS)
    assert failed(desk, "c", "damaged", 0.0, 0.5, LIMITS)
    assert desk.failing == {"storage_full": 2, "damaged": 1}
    start_next(desk, 9.0, LIMITS)
    assert succeeded(desk, "a") is None
    assert succeeded(desk, "b") == "storage_full"
    assert failed(desk, "c", "storage_full", 9.0, 0.5, LIMITS)
    assert desk.failing == {"storage_full": 1}
    start_next(desk, 99.0, LIMITS)
    assert succeeded(desk, "c") == "storage_full"
    assert (desk.failing, desk.pending) == ({}, {})


@given(st.integers(0, 3_000), st.floats(0, 1, exclude_max=True))
def test_a_pause_stays_within_its_jitter(failures: int, random: float) -> None:
    desk = desk_of(("a", HAND_OFF, 0.0))
    desk.pending["a"].failures = failures
    failed(desk, "a", "x", 5.0, random, LIMITS)
    pause_s = desk.pending["a"].due_at - 5.0
    whole_s = min(2.0 ** min(failures, 20), 300.0)
    assert 0.8 * whole_s <= pause_s + 1e-9
    assert pause_s - 1e-9 <= 1.2 * whole_s


steps = st.lists(
    st.tuples(st.sampled_from(["note", "start", "ok", "fail"]), st.integers(0, 9), st.sampled_from(Work)),
    max_size=80,
)


@given(steps, st.integers(1, 5), st.integers(1, 4))
def test_whatever_happens_the_bounds_hold_and_nobody_starves(
    given_: list[tuple[str, int, Work]], at_once_max: int, pending_max: int
) -> None:
    limits = TieringLimits(at_once_max=at_once_max, pending_max=pending_max)
    desk = Desk()
    for now, (step, n, work) in enumerate(given_):
        session_id = f"s{n}"
        pending = desk.pending.get(session_id)
        if step == "note":
            note(desk, session_id, work, float(now), limits)
        elif step == "start":
            start_next(desk, float(now), limits)
        elif pending is not None and pending.running:
            if step == "ok":
                succeeded(desk, session_id)
            else:
                failed(desk, session_id, f"code{n % 2}", float(now), 0.5, limits)
        for kind in Work:
            mine = [one for one in desk.pending.values() if one.work is kind]
            assert len(mine) == desk.counts[kind] <= pending_max
            assert sum(one.running for one in mine) == desk.running[kind]
        assert sum(desk.running.values()) <= at_once_max
        assert desk.running[ARCHIVE] <= max(1, at_once_max // 2)
        failures = [one.failure for one in desk.pending.values() if one.failure]
        assert desk.failing == {code: failures.count(code) for code in failures}
    now_s, left = 1e6, len(desk.pending)
    for session_id in [id_ for id_, one in desk.pending.items() if one.running]:
        succeeded(desk, session_id)
    while desk.pending:
        started = start_next(desk, now_s, limits)
        assert started
        for session_id, _ in started:
            succeeded(desk, session_id)
        assert len(desk.pending) < left
        left = len(desk.pending)
