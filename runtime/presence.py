"""Who has given a sign of life: what makes a session live or lost, and a server idle.

Signs of life are no events, or a week of heartbeats would bury a session's history; they are gone with the process, and a
session that is read back afterwards has one more interval to give the next. A session that left memory is not kept here,
either, where its last sign was its last event: the catalog knows when that was.
"""

import math
from datetime import datetime, timedelta
from typing import Any

from ..actors.ports import Clock
from ..actors.session.record import LOST_AFTER_S, complete_record

WITH_EVENT_S = 1.0  # a command is taken, its event committed, its sender answered: that was one sign
STEP_S = 1.0


class Presence:
    """Signs of life by session, of those that have not ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opened_at = self._last_end_at = clock.monotonic()
        # Of sessions without a sign of their own: their last events are told by the wall clock, and say nothing of the time
        # before it was last set.
        self._unsigned_since = self._opened_at
        self._last_unsigned = -math.inf
        self._zero = self._wall_zero()
        self._signs: dict[str, float] = {}  # on the monotonic clock
        # A sign of life, at a time of the monotonic clock. The dict's own method: every ask gives one.
        self.sign = self._signs.__setitem__

    def rests(self, session_id: str, updated_at: datetime) -> None:
        """The session has left memory, and no timer of its will make an event.

        Args:
            updated_at: the time of its last event.
        """
        self._look_at_clock()
        sign = self._signs.get(session_id)
        if sign is None:
            return
        event_at = self._clock.monotonic() - (self._clock.now() - updated_at).total_seconds()
        if abs(sign - event_at) <= WITH_EVENT_S:
            self._last_unsigned = max(self._last_unsigned, sign)
            del self._signs[session_id]

    def forget(self, session_id: str) -> None:
        """It has ended: what comes from now on is no sign of life."""
        self._signs.pop(session_id, None)

    def ended(self, session_id: str) -> None:
        """It has ended, just now."""
        self._last_end_at = self._clock.monotonic()
        self.forget(session_id)

    def silent_s(self, session_id: str) -> float:
        """Seconds since its last sign of life; where none is kept, since this process opened or the wall clock was set: then
        its last event may be a later one."""
        sign = self._signs.get(session_id)
        if sign is None:
            self._look_at_clock()
            sign = self._unsigned_since
        return self._clock.monotonic() - sign

    def idle_for_s(self) -> float:
        """Seconds since the last sign of life of any session, or the end of one; 0 while a session that has not ended
        shows signs of life."""
        now = self._clock.monotonic()
        last_sign = max(self._last_unsigned, max(self._signs.values(), default=-math.inf))
        if now - last_sign <= LOST_AFTER_S:
            return 0.0
        return now - max(last_sign, self._last_end_at)

    def completed(
        self,
        record: dict[str, Any],
        missing: tuple[int, int] | None,
        quarantined: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A stored record with what depends on the moment.

        Args:
            missing: the first and last of the events that the session has lost, where it is set aside for that.
            quarantined: why it is set aside otherwise.
        """
        now = self._clock.now()
        last_sign_at = record["updated_at"]
        if record["ended_at"] is None:
            # Not its last event: a timer that fires is no sign of life.
            session_id = record["session_id"]
            last_sign_at = now - timedelta(seconds=self.silent_s(session_id))
            if session_id not in self._signs and last_sign_at < record["updated_at"] <= now:
                last_sign_at = record["updated_at"]
        return complete_record(
            record,
            now=now,
            last_sign_at=last_sign_at,
            owner_alive=True,
            missing=missing,
            quarantined=quarantined,
        )

    def _wall_zero(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    def _look_at_clock(self) -> None:
        before, self._zero = self._zero, self._wall_zero()
        if abs(self._zero - before) > STEP_S:
            self._unsigned_since = self._clock.monotonic()
