"""The deadline wheel against a sorted list, and the pure restart rule."""

import math

import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from sojourn.actors.kernel.restart import CrashHistory, Intensity, next_start
from sojourn.actors.kernel.wheel import TICKS_PER_S, Entry, Wheel


@define(eq=False)
class Hung:
    deadline: float
    bucket: "dict[Entry, None] | None" = None


TICK_S = 1 / TICKS_PER_S


@given(
    st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=50),
    st.lists(st.floats(0, 101), min_size=1, max_size=10),
)
def test_the_wheel_rings_everything_once_never_early_and_at_most_a_tick_late(
    given_: list[tuple[float, bool]], moments: list[float]
) -> None:
    wheel = Wheel()
    entries = [Hung(deadline) for deadline, _ in given_]
    for entry in entries:
        wheel.add(entry, entry.deadline)
    kept = [entry for entry, (_, removed) in zip(entries, given_, strict=True) if not removed]
    for entry in entries:
        if entry not in kept:
            wheel.remove(entry)
    assert len(wheel) == len(kept)
    rung: list[Entry] = []
    for now in sorted(moments):
        for due in wheel.due(now):
            assert isinstance(due, Hung)
            assert due.deadline <= now
            rung.append(due)
        for entry in kept:
            if entry.deadline <= now - 2 * TICK_S:
                assert entry in rung
        assert wheel.next_at() >= now or wheel.next_at() == math.inf
    assert len(rung) == len(set(map(id, rung)))


def test_an_empty_wheel_wants_never_to_be_called() -> None:
    wheel = Wheel()
    entry = Hung(1.0)
    wheel.add(entry, 1.0)
    wheel.remove(entry)
    wheel.remove(entry)
    assert wheel.next_at() == math.inf


def test_the_pause_doubles_up_to_its_limit_and_then_the_child_is_set_aside() -> None:
    intensity = Intensity(restarts_max=4, period_s=60, backoff_s=1.0, backoff_max_s=3.0, jitter=0.0)
    history = CrashHistory()
    pauses = [next_start(history, intensity, now=float(n), random=0.5) for n in range(5)]
    assert pauses == [1.0, 2.0, 3.0, 3.0, None]


def test_crashes_outside_the_period_are_forgotten() -> None:
    intensity = Intensity(restarts_max=1, period_s=10, backoff_s=1.0, jitter=0.0)
    history = CrashHistory()
    assert [next_start(history, intensity, now=now, random=0.5) for now in (0.0, 11.0, 22.0, 23.0)] == [
        1.0,
        1.0,
        1.0,
        None,
    ]


@pytest.mark.parametrize(("random", "pause"), [(0.0, 0.8), (0.5, 1.0), (0.999999, 1.2)])
def test_jitter_scales_the_pause(random: float, pause: float) -> None:
    intensity = Intensity(backoff_s=1.0, jitter=0.2)
    assert next_start(CrashHistory(), intensity, now=0.0, random=random) == pytest.approx(pause, abs=1e-4)


@given(st.lists(st.floats(0, 1000), max_size=200), st.integers(0, 10))
def test_a_history_stays_short(times: list[float], restarts_max: int) -> None:
    """I15. What is remembered of crashes is bounded, however many there are."""
    history = CrashHistory()
    for now in sorted(times):
        next_start(history, Intensity(restarts_max=restarts_max), now=now, random=0.5)
        assert len(history.crashes) <= restarts_max + 1
