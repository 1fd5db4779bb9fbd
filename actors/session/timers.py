"""A session's timers, pure: which are due, when the next one is, and what becomes of them.

Two clocks. `wall` is the time of the events, which never falls: where the machine's clock steps back, a timer waits until
it has caught up. `active` goes while the session is running. It says the wall clock's time less all pauses since the first
timer of this kind was set, so a pause costs one document, however many timers there are.

A timer that is due is told once: the event by which it fires moves it to the next point of its grid, or takes it away.
"""

from datetime import datetime, timedelta
from typing import Any

from attrs import evolve

from .commands import TIMER_FIRED, Event, Fail, SetTimer, TimerFired
from .model import ActiveClock, SessionState, Status, Timer, TimerAction, TimerClock

_MICROSECOND = timedelta(microseconds=1)


def tick(state: SessionState, now: datetime) -> tuple[Event, ...]:
    """What happens because it is `now` (aware UTC): an event for each timer that is due, the longest due first, up to one
    that ends the session, and its end. `state` stays as it is. Empty where nothing is due, or the session has ended."""
    at = now if state.updated_at is None or now > state.updated_at else state.updated_at
    due = []
    for key, timer in state.timers.items():
        due_at = wall_due_at(timer, state.active_clock)
        if due_at is not None and due_at <= at:
            due.append((due_at, key, timer))
    events: list[Event] = []
    for due_at, key, timer in sorted(due, key=lambda one: one[:2]):
        missed = 0
        if timer.every_s is not None:
            every = timedelta(seconds=timer.every_s)
            missed = (_stands_at(timer, state.active_clock, at) - due_at) // every
            due_at += missed * every
        seq = state.seq + len(events) + 1
        fired = TimerFired(due_at=due_at, key=key, missed=missed)
        events.append(Event(at, None, fired, seq, TIMER_FIRED.event))
        if timer.action is TimerAction.FAIL:
            reason = timer.reason if timer.reason is not None else f"the timer {key} was due"
            events.append(Event(at, None, Fail(reason=reason), seq + 1, "session.failed"))
            break
    return tuple(events)


def next_due_at(state: SessionState) -> datetime | None:
    """When the session wants to be asked next, by the wall clock; None where no timer will be due by itself: there is none, or
    those there are wait for the session to run."""
    clock = state.active_clock
    moments = [due_at for timer in state.timers.values() if (due_at := wall_due_at(timer, clock)) is not None]
    return min(moments, default=None)


def wall_due_at(timer: Timer, clock: ActiveClock | None) -> datetime | None:
    """When the timer is due by the wall clock; None while its clock stands before that moment.

    Args:
        clock: the session's.
    """
    if timer.clock is TimerClock.WALL or clock is None:
        return timer.due_at
    due_at = timer.due_at + clock.paused_us * _MICROSECOND
    return due_at if clock.stopped_at is None or due_at <= clock.stopped_at else None


def _stands_at(timer: Timer, clock: ActiveClock | None, at: datetime) -> datetime:
    """`at`, or where the timer's clock has stopped before, that moment."""
    if timer.clock is TimerClock.WALL or clock is None or clock.stopped_at is None:
        return at
    return clock.stopped_at


def on_set(state: SessionState, body: SetTimer, event: Event) -> None:
    """Fold `timer.set`."""
    at = event.at
    reading = at
    if body.clock is TimerClock.ACTIVE:
        clock = state.active_clock
        if clock is None:
            runs = state.status is Status.RUNNING
            clock = state.active_clock = ActiveClock(stopped_at=None if runs else at)
        reading = (clock.stopped_at or at) - clock.paused_us * _MICROSECOND
    state.timers[body.key] = Timer(
        action=body.action,
        clock=body.clock,
        due_at=body.at if body.at is not None else reading + timedelta(seconds=body.after_s or 0.0),
        every_s=body.every_s,
        reason=body.reason,
        set_at=at,
    )


def on_cancelled(state: SessionState, body: Any, event: Event) -> None:
    """Fold `timer.cancelled`. A key that is not there: a loss of events was accepted before, and nothing happens."""
    _remove(state, body.key)


def on_fired(state: SessionState, body: TimerFired, event: Event) -> None:
    """Fold `timer.fired`. A key that is not there: as for `on_cancelled`."""
    timer = state.timers.get(body.key)
    if timer is None or timer.every_s is None:
        _remove(state, body.key)
        return
    due_at = timer.due_at + (body.missed + 1) * timedelta(seconds=timer.every_s)
    state.timers[body.key] = evolve(timer, due_at=due_at, fired=timer.fired + 1)


def on_running(state: SessionState, at: datetime) -> None:
    """The session runs from `at` on."""
    clock = state.active_clock
    if clock is not None and clock.stopped_at is not None:
        paused_us = clock.paused_us + (at - clock.stopped_at) // _MICROSECOND
        state.active_clock = ActiveClock(paused_us=paused_us, stopped_at=None)


def on_resting(state: SessionState, at: datetime) -> None:
    """The session rests from `at` on."""
    clock = state.active_clock
    if clock is not None and clock.stopped_at is None:
        state.active_clock = ActiveClock(paused_us=clock.paused_us, stopped_at=at)


def on_ended(state: SessionState) -> None:
    """The session has ended: it has no timers."""
    state.timers = {}
    state.active_clock = None


def _remove(state: SessionState, key: str) -> None:
    state.timers.pop(key, None)
    if not state.timers:
        state.active_clock = None
