"""Virtual time: it stands still while anything runs, and jumps to the next deadline at once where nothing does."""

import math
from datetime import UTC, datetime, timedelta

import trio
from attrs import define

START_AT = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
CLOCK_S_MAX = 40_000.0  # as far as the wall clock is off: a command id is known for a day of it


class JumpingClock(trio.abc.Clock):
    """As trio's `MockClock` with `autojump_threshold=0`, at half the rounds of its loop: nothing here waits for a thread or a
    socket, so that there is nothing to look for before time may go on."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def start_clock(self) -> None:
        """It stands at 0."""

    def current_time(self) -> float:
        return self._now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Asked by the loop where no task can run."""
        if deadline == math.inf:
            return deadline
        self._now_s = max(self._now_s, deadline)
        return 0.0

    def jump(self, seconds: float) -> None:
        """So much time passes now."""
        self._now_s += seconds


@define(eq=False)
class SimClock:
    """See ports.Clock. `step_s` is by how much the wall clock was set, `reading_s` what a reading of `monotonic` takes."""

    virtual: JumpingClock
    reading_s: float = 0.0
    step_s: float = 0.0
    furthest_s: float = 0.0

    def now(self) -> datetime:
        return START_AT + timedelta(seconds=self.virtual.current_time() + self.step_s)

    def monotonic(self) -> float:
        if self.reading_s:
            self.virtual.jump(self.reading_s)
        return self.virtual.current_time()

    def set(self, by_s: float) -> None:
        self.step_s = max(-CLOCK_S_MAX, min(CLOCK_S_MAX, self.step_s + by_s))
        self.furthest_s = max(self.furthest_s, self.step_s)

    def set_right(self) -> None:
        """Events do not lie in its future any more."""
        self.step_s = self.furthest_s
