"""Timers of a session: tables of when they are due, and a machine that runs them against a model that counts seconds."""

from datetime import UTC, datetime, timedelta

import pytest
from attrs import define, evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sojourn.actors.errors import IllegalInStatus, LimitReached, NoSuchTimer
from sojourn.actors.session import codec
from sojourn.actors.session.actor import SessionActor, Surroundings, Tick, Ticked, copy_state
from sojourn.actors.session.commands import (
    Body,
    Cancel,
    CancelTimer,
    Command,
    Complete,
    Create,
    Event,
    Fail,
    HistoryLost,
    Pause,
    Resume,
    SetTimer,
    Start,
    TimerFired,
)
from sojourn.actors.session.core import apply, decide, fold
from sojourn.actors.session.model import Limits, Outcome, SessionState, Status, TimerAction, TimerClock
from sojourn.actors.session.record import public_record
from sojourn.actors.session.timers import next_due_at, tick

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LIMITS = Limits()
ACTIVE, WALL = TimerClock.ACTIVE, TimerClock.WALL
NAMES: dict[type[Body], str] = {
    Cancel: "session.cancel",
    CancelTimer: "timer.cancel",
    Complete: "session.complete",
    Create: "session.create",
    Fail: "session.fail",
    Pause: "session.pause",
    Resume: "session.resume",
    SetTimer: "timer.set",
    Start: "session.start",
}


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def do(state: SessionState, body: Body, at_s: float = 0, limits: Limits = LIMITS) -> list[Event]:
    """What the command makes happen, so many seconds after noon."""
    events = list(decide(state, Command(NAMES[type(body)], body), after(at_s), limits))
    for event in events:
        apply(state, event, limits)
    return events


def ring(state: SessionState, at_s: float) -> list[tuple[str, float, int]]:
    """(key, due after noon, missed) of the timers that fire."""
    events = tick(state, after(at_s))
    for event in events:
        apply(state, event, LIMITS)
    return [
        (event.data.key, (event.data.due_at - NOON).total_seconds(), event.data.missed)
        for event in events
        if isinstance(event.data, TimerFired)
    ]


def due_s(state: SessionState) -> float | None:
    due_at = next_due_at(state)
    return (due_at - NOON).total_seconds() if due_at is not None else None


@pytest.fixture
def state() -> SessionState:
    """Running since noon."""
    state = SessionState(session_id="sess_1")
    do(state, Create())
    do(state, Start())
    return state


def test_a_timer_fires_once_it_is_due_and_is_gone(state: SessionState) -> None:
    do(state, SetTimer(key="k", after_s=5.0), at_s=1)
    assert due_s(state) == 6
    assert ring(state, 5.999999) == []
    assert ring(state, 6) == [("k", 6.0, 0)]
    assert (ring(state, 7), state.timers, due_s(state)) == ([], {}, None)


def test_a_timer_may_be_due_at_a_time_of_day_that_has_passed(state: SessionState) -> None:
    do(state, SetTimer(key="past", at=after(-3600)), at_s=1)
    do(state, SetTimer(key="later", at=after(3600)), at_s=1)
    assert ring(state, 1) == [("past", -3600.0, 0)]
    assert due_s(state) == 3600


def test_a_periodic_timer_keeps_its_grid_and_tells_how_many_it_missed(state: SessionState) -> None:
    do(state, SetTimer(key="k", after_s=10.0, every_s=60.0))
    assert ring(state, 12.5) == [("k", 10.0, 0)]
    assert due_s(state) == 70
    assert ring(state, 70 + 3 * 60 + 59) == [("k", 250.0, 3)]
    assert due_s(state) == 310
    assert state.timers["k"].fired == 2


def test_the_cost_of_what_was_missed_does_not_grow_with_it(state: SessionState) -> None:
    do(state, SetTimer(key="k", after_s=1.0, every_s=1.0))
    ten_years_s = 10 * 365 * 86_400.0
    assert ring(state, ten_years_s) == [("k", ten_years_s, int(ten_years_s) - 1)]
    assert due_s(state) == ten_years_s + 1


def test_those_that_are_due_together_fire_in_the_order_of_their_moments(state: SessionState) -> None:
    for key, seconds in (("c", 2.0), ("b", 1.0), ("a", 2.0), ("d", 9.0)):
        do(state, SetTimer(key=key, after_s=seconds))
    before = state.seq
    assert ring(state, 3) == [("b", 1.0, 0), ("a", 2.0, 0), ("c", 2.0, 0)]
    assert state.seq == before + 3


def test_paused_time_does_not_count_for_the_active_clock(state: SessionState) -> None:
    do(state, SetTimer(key="active", after_s=10.0, clock=ACTIVE), at_s=0)
    do(state, SetTimer(key="wall", after_s=30.0), at_s=0)
    do(state, Pause(), at_s=4)
    assert due_s(state) == 30
    assert ring(state, 25) == []
    do(state, Resume(), at_s=24)
    assert due_s(state) == 30
    assert ring(state, 30) == [("active", 30.0, 0), ("wall", 30.0, 0)]


def test_a_timer_that_was_due_before_the_pause_fires_in_it(state: SessionState) -> None:
    do(state, SetTimer(key="due", after_s=4.0, clock=ACTIVE))
    do(state, SetTimer(key="not due", after_s=5.0, clock=ACTIVE))
    do(state, Pause(), at_s=4)
    assert due_s(state) == 4
    assert ring(state, 100) == [("due", 4.0, 0)]
    assert due_s(state) is None


def test_what_a_periodic_timer_missed_in_a_pause_is_not_counted(state: SessionState) -> None:
    do(state, SetTimer(key="k", after_s=4.0, every_s=2.0, clock=ACTIVE))
    do(state, Pause(), at_s=7)
    assert ring(state, 100) == [("k", 6.0, 1)]
    do(state, Resume(), at_s=107)
    assert due_s(state) == 108


def test_a_timer_on_the_active_clock_waits_for_the_start_of_its_session() -> None:
    state = SessionState(session_id="sess_1")
    do(state, Create())
    do(state, SetTimer(key="k", after_s=5.0, clock=ACTIVE), at_s=10)
    assert due_s(state) is None
    do(state, Start(), at_s=100)
    do(state, SetTimer(key="later", after_s=6.0, clock=ACTIVE), at_s=101)
    assert due_s(state) == 105
    assert ring(state, 107) == [("k", 105.0, 0), ("later", 107.0, 0)]


def test_a_timer_that_is_set_in_a_pause_counts_from_the_resumption(state: SessionState) -> None:
    do(state, Pause(), at_s=10)
    do(state, SetTimer(key="k", after_s=5.0, every_s=2.0, clock=ACTIVE), at_s=20)
    do(state, Resume(), at_s=50)
    do(state, Pause(), at_s=56)
    do(state, Resume(), at_s=66)
    assert ring(state, 67) == [("k", 67.0, 1)]
    assert due_s(state) == 69


def test_a_key_that_is_set_again_is_replaced(state: SessionState) -> None:
    do(state, SetTimer(key="k", after_s=5.0, every_s=5.0))
    ring(state, 5)
    do(state, SetTimer(key="k", after_s=60.0), at_s=6)
    assert (due_s(state), state.timers["k"].fired) == (66, 0)


def test_a_cancelled_timer_does_not_fire_and_cannot_be_cancelled_again(state: SessionState) -> None:
    do(state, SetTimer(key="k", after_s=5.0, clock=ACTIVE))
    do(state, CancelTimer(key="k"), at_s=4)
    assert (ring(state, 6), state.active_clock) == ([], None)
    with pytest.raises(NoSuchTimer, match="no timer 'k': it has fired, was cancelled, or was never set"):
        do(state, CancelTimer(key="k"))


def test_timers_are_bounded_and_a_known_key_can_be_set_all_the_same(state: SessionState) -> None:
    limits = evolve(LIMITS, timers_max=2)
    for key in ("a", "b", "a"):
        do(state, SetTimer(key=key, after_s=5.0), limits=limits)
    with pytest.raises(LimitReached, match="timers_max = 2"):
        do(state, SetTimer(key="c", after_s=5.0), limits=limits)


@pytest.mark.parametrize(
    ("reason", "told"),
    [("over its time limit of 8 h", "over its time limit of 8 h"), (None, "the timer k was due")],
)
def test_a_timer_that_fails_its_session_ends_it_with_its_reason_and_the_others_are_gone(
    state: SessionState, reason: str | None, told: str
) -> None:
    do(state, SetTimer(key="before", after_s=4.0))
    do(state, SetTimer(key="k", after_s=5.0, clock=ACTIVE, action=TimerAction.FAIL, reason=reason))
    do(state, SetTimer(key="after", after_s=6.0))
    assert ring(state, 7) == [("before", 4.0, 0), ("k", 5.0, 0)]
    header = state.header
    assert header is not None
    assert (header.status, header.outcome, header.reason) == (Status.FAILED, Outcome.ERROR, told)
    assert header.ended_at == after(7)
    assert (state.timers, state.active_clock, due_s(state), ring(state, 99)) == ({}, None, None, [])


@pytest.mark.parametrize(
    "end", [Complete(outcome=Outcome.PASSED), Fail(), Cancel()], ids=lambda end: type(end).__name__
)
def test_a_session_that_has_ended_has_no_timers_and_gets_none(state: SessionState, end: Body) -> None:
    do(state, SetTimer(key="k", after_s=5.0, clock=ACTIVE))
    do(state, end, at_s=1)
    assert (state.timers, state.active_clock, ring(state, 9)) == ({}, None, [])
    for body in (SetTimer(key="k", after_s=1.0), CancelTimer(key="k")):
        with pytest.raises(IllegalInStatus):
            do(state, body, at_s=2)


def test_a_clock_that_steps_back_fires_nothing_twice_and_waits_until_it_has_caught_up(
    state: SessionState,
) -> None:
    do(state, SetTimer(key="k", after_s=5.0, every_s=10.0))
    assert ring(state, 5) == [("k", 5.0, 0)]
    assert ring(state, -3600) == []
    do(state, SetTimer(key="new", after_s=1.0), at_s=-3600)
    assert due_s(state) == 6
    assert ring(state, 5.5) == []
    assert ring(state, 15) == [("new", 6.0, 0), ("k", 15.0, 0)]


def test_a_clock_that_steps_forward_is_one_tick_with_what_was_missed(state: SessionState) -> None:
    do(state, SetTimer(key="k", after_s=5.0, every_s=10.0))
    assert ring(state, 86_400) == [("k", 86_395.0, 8_639)]
    assert ring(state, 86_400) == []


def test_what_fires_after_a_loss_that_was_accepted_is_folded_all_the_same(state: SessionState) -> None:
    do(state, SetTimer(key="kept", after_s=5.0))
    seq = state.seq
    bodies: list[tuple[str, Body]] = [
        ("history.lost", HistoryLost(first_seq=2, last_seq=2)),
        ("timer.fired", TimerFired(key="lost", due_at=NOON)),
        ("timer.cancelled", CancelTimer(key="lost")),
        ("session.resumed", Resume()),
        ("session.paused", Pause()),
        ("session.paused", Pause()),
    ]
    for n, (kind, body) in enumerate(bodies, 1):
        apply(state, Event(NOON, None, body, seq + n, kind), LIMITS)
    assert list(state.timers) == ["kept"]


def test_the_record_says_when_the_next_timer_is_due(state: SessionState) -> None:
    assert public_record(state, epoch=1)["next_due_at"] is None
    do(state, SetTimer(key="k", after_s=5.0))
    assert public_record(state, epoch=1)["next_due_at"] == after(5)


def test_the_actor_says_what_fired_and_leaves_a_hint_of_what_is_next(state: SessionState) -> None:
    around = Surroundings(epoch=1, limits=LIMITS, now=NOON)
    actor = SessionActor(state, around)
    actor.receive(Command("timer.set", SetTimer(key="k", after_s=5.0, every_s=5.0)))
    actor.receive(Command("timer.set", SetTimer(key="end", after_s=12.0, action=TimerAction.FAIL)))
    assert actor.close_slot() is not None
    assert around.due == {"sess_1": after(5)}
    around.now = after(6)
    assert actor.receive(Tick()) == Ticked(1, False, after(10))
    record = actor.close_slot()
    assert record is not None
    assert record.count == 1
    assert around.due == {"sess_1": after(10)}
    assert actor.receive(Tick()) == Ticked(0, False, after(10))
    assert actor.close_slot() is None
    around.now = after(13)
    assert actor.receive(Tick()) == Ticked(2, True, None)
    record = actor.close_slot()
    assert record is not None
    assert record.count == 3


# -- against a model that counts seconds -------------------------------------------------------------------------------


@define
class Planned:
    """A timer of the model: `due` on its clock's count of seconds."""

    clock: TimerClock
    due: int
    every: int | None
    fails: bool


def _float(seconds: int | None) -> float | None:
    return None if seconds is None else float(seconds)


class TimersAgainstSeconds(RuleBasedStateMachine):
    """The model lets every second pass by itself: the session's time, which never falls, and beside it a count of the seconds
    in which it was running. Nothing of it is ever multiplied or added up."""

    @initialize()
    def begin(self) -> None:
        self.state = SessionState(session_id="sess_1")
        self.events = do(self.state, Create())
        self.status = Status.CREATED
        self.wall = self.time = self.ran = 0
        self.planned: dict[str, Planned] = {}

    def command(self, body: Body) -> None:
        self.time, self.ran = self.read()
        self.events += do(self.state, body, at_s=self.wall)

    def read(self) -> tuple[int, int]:
        """Session time and running seconds, were something to happen now."""
        time, ran = self.time, self.ran
        while time < self.wall:
            time += 1
            ran += self.status is Status.RUNNING
        return time, ran

    def has_not_ended(self) -> bool:
        return not self.status.ended

    @rule(seconds=st.integers(-20, 40))
    def the_clock_goes_or_steps(self, seconds: int) -> None:
        self.wall += seconds

    @precondition(has_not_ended)
    @rule(
        key=st.sampled_from("abc"),
        seconds=st.integers(0, 20),
        every=st.none() | st.integers(1, 7),
        clock=st.sampled_from(TimerClock),
        fails=st.integers(0, 9),
    )
    def set_in(self, key: str, seconds: int, every: int | None, clock: TimerClock, fails: int) -> None:
        action = TimerAction.FAIL if fails == 0 and every is None else None
        self.command(
            SetTimer(key=key, after_s=float(seconds), every_s=_float(every), clock=clock, action=action)
        )
        reading = self.ran if clock is ACTIVE else self.time
        self.planned[key] = Planned(clock, reading + seconds, every, action is not None)

    @precondition(has_not_ended)
    @rule(key=st.sampled_from("abc"), at=st.integers(-20, 200), every=st.none() | st.integers(1, 7))
    def set_at(self, key: str, at: int, every: int | None) -> None:
        self.command(SetTimer(key=key, at=after(at), every_s=_float(every)))
        self.planned[key] = Planned(WALL, at, every, False)

    @precondition(has_not_ended)
    @rule(key=st.sampled_from("abc"))
    def cancel(self, key: str) -> None:
        if key in self.planned:
            self.command(CancelTimer(key=key))
            del self.planned[key]
        else:
            with pytest.raises(NoSuchTimer):
                do(self.state, CancelTimer(key=key), at_s=self.wall)

    @precondition(has_not_ended)
    @rule()
    def go_on_or_rest(self) -> None:
        bodies: dict[Status, Body] = {
            Status.CREATED: Start(),
            Status.RUNNING: Pause(),
            Status.PAUSED: Resume(),
        }
        self.command(bodies[self.status])
        self.status = Status.PAUSED if self.status is Status.RUNNING else Status.RUNNING

    @rule()
    def ring(self) -> None:
        time, ran = self.read()
        fired = {}
        for key, timer in list(self.planned.items()):
            reading = ran if timer.clock is ACTIVE else time
            points = 0
            while timer.due <= reading:
                points += 1
                if timer.every is None:
                    break
                timer.due += timer.every
            if points:
                fired[key] = points - 1
        events = list(tick(self.state, after(self.wall)))
        told = {}
        for event in events:
            apply(self.state, event, LIMITS)
            if isinstance(event.data, TimerFired):
                told[event.data.key] = event.data.missed
        self.events += events
        ends = next((n for n, key in enumerate(told) if self.planned[key].fails), None)
        if ends is not None:  # what was due after the end is not told
            assert ends == len(told) - 1
            assert isinstance(events[-1].data, Fail)
            fired = {key: missed for key, missed in fired.items() if key in told}
            self.status, self.planned = Status.FAILED, {}
        assert told == fired
        for key in fired.keys() & self.planned.keys():
            if self.planned[key].every is None:
                del self.planned[key]
        if events:
            self.time, self.ran = time, ran

    @rule()
    def a_snapshot_or_the_history_brings_it_back(self) -> None:
        data = codec.encode_snapshot(self.state, 1)
        assert codec.encode_snapshot(fold("sess_1", self.events, limits=LIMITS), 1) == data
        assert codec.encode_snapshot(copy_state(self.state), 1) == data
        self.state = codec.decode_snapshot(data).state
        assert codec.encode_snapshot(self.state, 1) == data

    @invariant()
    def the_next_moment_is_the_models(self) -> None:
        if not hasattr(self, "state"):
            return
        assert self.state.timers.keys() == self.planned.keys()
        waits = []
        for timer in self.planned.values():
            if timer.clock is WALL:
                waits.append(timer.due - self.time)
            elif self.status is Status.RUNNING or timer.due <= self.ran:
                waits.append(timer.due - self.ran)
        next_s = due_s(self.state)
        if waits and min(waits) <= 0:
            assert next_s is not None
            assert next_s <= self.time
        else:
            assert next_s == (self.time + min(waits) if waits else None)


TimersAgainstSeconds.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTimersAgainstSeconds = TimersAgainstSeconds.TestCase
