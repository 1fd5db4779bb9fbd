"""Messages told to 10,000 actors in turn, against a deque that carries the same envelopes to the same handler."""

from attrs import evolve

from ..harness import Measured, Options
from . import tell

UNIT = "tells"
ACTORS = 10_000


async def measure(options: Options) -> Measured:
    return await tell.measure(evolve(options, sessions=options.sessions or ACTORS))


ceiling = tell.ceiling
