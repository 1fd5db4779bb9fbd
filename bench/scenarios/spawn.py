"""Actors that come to be with their first message and answer it (20,000), against an object, a deque and a place in a dict
for each, and the same call."""

import time
from collections import deque

from sojourn.actors.kernel.envelope import Envelope
from sojourn.actors.kernel.scheduler import Kernel

from ..counter import SPEC, Counter, load_actors
from ..harness import Measured, Options, Stopwatch

UNIT = "actors"
ACTORS = 20_000


async def measure(options: Options) -> Measured:
    ids = [f"actor-{number}" for number in range(options.sessions or ACTORS)]
    kernel = Kernel(clock=time.monotonic, dynamic=SPEC)
    with Stopwatch() as watch:
        load_actors(kernel, ids)
    statistics = kernel.statistics()
    assert statistics.actors == statistics.replied == len(ids), statistics
    return Measured(operations=len(ids), elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s)


async def ceiling(options: Options) -> Measured:
    ids = [f"actor-{number}" for number in range(options.sessions or ACTORS)]
    registry: dict[str, tuple[Counter, deque[Envelope]]] = {}
    with Stopwatch() as watch:
        for actor_id in ids:
            actor, queue = registry[actor_id] = Counter(), deque[Envelope]()
            queue.append(Envelope(None, 0, None, False, False))
            envelope = queue.popleft()
            envelope.answer = actor.receive(envelope.message)
    return Measured(operations=len(ids), elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s)
