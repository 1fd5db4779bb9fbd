"""Death watch: who is told, once, that an actor is no longer as it was."""

import enum
from collections.abc import Callable, Hashable

from attrs import frozen

# On one node. A watch is 200 bytes, and each may become a message.
WATCHES_MAX = 10_000


class DownReason(enum.Enum):
    """Why a watch ended."""

    CRASHED = "crashed"  # what was not committed is gone; it starts again by itself
    QUARANTINED = "quarantined"  # it crashed too often, and is set aside until a person releases it
    REMOVED = "removed"  # it left this node for good: a session that was handed over
    UNKNOWN = "unknown"  # when the watch began there was none, or nothing durable of it yet
    LIMIT = (
        "limit"  # nothing is wrong with it: the node watches as many as it may, and this watch never began
    )


@frozen(kw_only=True)
class Down:
    """The one message that a watch ends with. Passivation is no death: the actor comes back with its next message.

    Attributes:
        epoch: the owner's number at that moment, 0 where it is not known.
        seq: the last durable one of the actor then, 0 where there is none.
    """

    actor_id: str
    reason: DownReason
    epoch: int = 0
    seq: int = 0


# Called once: with the Down, or with None where the kernel stops first.
Told = Callable[[Down | None], None]


class Watches:
    """Who watches whom. A watcher has one watch on an actor at most."""

    def __init__(self, watches_max: int = WATCHES_MAX) -> None:
        self._watches_max = watches_max
        self._by_actor: dict[str, dict[Hashable, Told]] = {}
        self._by_watcher: dict[Hashable, set[str]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, actor_id: str, watcher: Hashable, told: Told) -> bool:
        """Whether there is such a watch now: False where there are `watches_max`. Where it was there before, nothing happens."""
        if watcher in self._by_actor.get(actor_id, ()):
            return True
        if self._count >= self._watches_max:
            return False
        self._by_actor.setdefault(actor_id, {})[watcher] = told
        self._by_watcher.setdefault(watcher, set()).add(actor_id)
        self._count += 1
        return True

    def remove(self, actor_id: str, watcher: Hashable) -> None:
        """End a watch without a word. There is none: nothing happens."""
        if self._by_actor.get(actor_id, {}).pop(watcher, None) is None:
            return
        if not self._by_actor[actor_id]:
            del self._by_actor[actor_id]
        self._unlist(actor_id, watcher)

    def remove_watcher(self, watcher: Hashable) -> None:
        """End all watches of one that is gone itself."""
        for actor_id in tuple(self._by_watcher.get(watcher, ())):
            self.remove(actor_id, watcher)

    def end(self, actor_id: str) -> list[Told]:
        """End all watches on an actor, and say who must be told."""
        watchers = self._by_actor.pop(actor_id, None)
        if watchers is None:
            return []
        for watcher in watchers:
            self._unlist(actor_id, watcher)
        return list(watchers.values())

    def end_all(self) -> list[Told]:
        """End every watch, and say who must be told."""
        return [told for actor_id in tuple(self._by_actor) for told in self.end(actor_id)]

    def _unlist(self, actor_id: str, watcher: Hashable) -> None:
        watched = self._by_watcher[watcher]
        watched.discard(actor_id)
        if not watched:
            del self._by_watcher[watcher]
        self._count -= 1
