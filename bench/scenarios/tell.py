"""Messages told to actors in memory, against a deque that carries the same envelopes to the same handler. With
--sessions N they go round robin over N actors; the default is one hot actor."""

import time
from collections import deque

from sojourn.actors.kernel.envelope import Envelope
from sojourn.actors.kernel.scheduler import Kernel

from ..counter import SPEC, Counter, load_actors
from ..harness import Measured, Options, Stopwatch

UNIT = "tells"
OPERATIONS = 500_000
BURST = 500  # half of what a mailbox holds


async def measure(options: Options) -> Measured:
    operations, actors = options.operations or OPERATIONS, options.sessions or 1
    kernel = Kernel(clock=time.monotonic, dynamic=SPEC)
    ids = [f"actor-{number}" for number in range(actors)]
    load_actors(kernel, ids)
    step, clock, tell = kernel.step, time.monotonic, kernel.tell
    with Stopwatch() as watch:
        for first in range(0, operations, BURST):
            for number in range(first, first + BURST):
                tell(ids[number % actors], number)
            while step(clock()) <= clock():
                pass
    return Measured(operations=operations, elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s)


async def ceiling(options: Options) -> Measured:
    operations = options.operations or OPERATIONS
    queue: deque[Envelope] = deque()
    receive = Counter().receive
    with Stopwatch() as watch:
        for _ in range(0, operations, BURST):
            for number in range(BURST):
                queue.append(Envelope(number, 0, None, False, False))
            while queue:
                envelope = queue.popleft()
                envelope.answer = receive(envelope.message)
    return Measured(operations=operations, elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s)
