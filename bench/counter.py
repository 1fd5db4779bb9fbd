"""The least of actors, for scenarios that measure the kernel and nothing else."""

import time
from collections.abc import Sequence
from typing import Any

from sojourn.actors.kernel.actor import Actor, ActorContext, ActorSpec
from sojourn.actors.kernel.scheduler import Kernel


class Counter:
    """Counts its messages, and keeps nothing."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def receive(self, message: Any) -> int:
        self.count += 1
        return self.count

    def close_slot(self) -> None:
        return None


async def _start(context: ActorContext) -> Actor:
    return Counter()


SPEC = ActorSpec(start=_start)


def load_actors(kernel: Kernel, ids: Sequence[str]) -> None:
    """Have every actor in memory, with its first message handled."""
    for actor_id in ids:
        kernel.tell(actor_id, None)
        for cell, _ in kernel.starts:
            kernel.started(cell, Counter())
        kernel.starts.clear()
    while kernel.step(time.monotonic()) <= time.monotonic():
        pass
