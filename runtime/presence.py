"""Who has given a sign of life: what makes a session live or lost, and a server idle.

Signs of life are no events, or a week of heartbeats would bury a session's history; they are gone with the process, and a
session that is read back afterwards has one more interval to give the next.
"""

from datetime import timedelta
from typing import Any

from ..actors.ports import Clock
from ..actors.session.record import LOST_AFTER_S, complete_record


class Presence:
    """Signs of life by session, of those that have not ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opened_at = self._last_end_at = clock.monotonic()
        self._signs: dict[str, float] = {}  # on the monotonic clock
        # A sign of life, at a time of the monotonic clock. The dict's own method: every ask gives one.
        self.sign = self._signs.__setitem__

    def forget(self, session_id: str) -> None:
        """It has ended: what comes from now on is no sign of life."""
        self._signs.pop(session_id, None)

    def ended(self, session_id: str) -> None:
        """It has ended, just now."""
        self._last_end_at = self._clock.monotonic()
        self.forget(session_id)

    def silent_s(self, session_id: str) -> float:
        """Seconds since its last sign of life; where it has given none, since this process opened."""
        return self._clock.monotonic() - self._signs.get(session_id, self._opened_at)

    def idle_for_s(self) -> float:
        """Seconds since the last sign of life of any session, or the end of one; 0 while a session that has not ended
        shows signs of life."""
        now = self._clock.monotonic()
        last_sign = max(self._signs.values(), default=self._opened_at)
        if self._signs and now - last_sign <= LOST_AFTER_S:
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
            last_sign_at = now - timedelta(seconds=self.silent_s(record["session_id"]))
        return complete_record(
            record,
            now=now,
            last_sign_at=last_sign_at,
            owner_alive=True,
            missing=missing,
            quarantined=quarantined,
        )
