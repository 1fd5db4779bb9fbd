"""A clock that goes with trio's virtual one, so that days pass in milliseconds. It begins at noon."""

from datetime import UTC, datetime, timedelta

import trio
from attrs import define

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@define
class VirtualClock:
    """`step_s` is how far the wall clock was stepped."""

    step_s: float = 0.0

    def now(self) -> datetime:
        return NOON + timedelta(seconds=trio.current_time() + self.step_s)

    def monotonic(self) -> float:
        return trio.current_time()
