"""As `mixed`, with runs of 48 reports: what a session costs from its creation to its hand-over is then most of it."""

from ..harness import Measured, Options
from . import mixed

UNIT = "events"
WARM_UP = False
EVENTS = 48


async def measure(options: Options) -> Measured:
    return await mixed.test_runs(options, reports=EVENTS)


ceiling = mixed.ceiling
