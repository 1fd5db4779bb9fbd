"""Where messages end that nobody will handle: kept for a look, counted for ever."""

from collections import Counter, deque
from typing import Any

from attrs import frozen

KEPT_MAX = 1_000
TEXT_CHARACTERS_MAX = 500


@frozen(kw_only=True)
class DeadLetter:
    """A message that was not handled: to whom, why, and the start of its text."""

    actor_id: str
    reason: str
    message: str


class DeadLetters:
    """The last `KEPT_MAX` of them, and a count by reason."""

    def __init__(self) -> None:
        self._kept: deque[DeadLetter] = deque(maxlen=KEPT_MAX)
        self.counts: Counter[str] = Counter()

    def add(self, actor_id: str, reason: str, message: Any) -> None:
        """Count it and keep its text for a look."""
        self.counts[reason] += 1
        self.keep(actor_id, reason, message)

    def keep(self, actor_id: str, reason: str, message: Any) -> None:
        """Keep the text of a message that is counted elsewhere."""
        self._kept.append(
            DeadLetter(actor_id=actor_id, reason=reason, message=repr(message)[:TEXT_CHARACTERS_MAX])
        )

    @property
    def total(self) -> int:
        return self.counts.total()

    def recent(self) -> tuple[DeadLetter, ...]:
        """Oldest first."""
        return tuple(self._kept)
