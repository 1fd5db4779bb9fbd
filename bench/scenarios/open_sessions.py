"""Durable asks offered at 1,000 a second (--rate) to sessions drawn at random from 10,000 open ones (--sessions), all in memory,
against the same offered to 100: p99 from the intended moment. The offer goes on long enough for the catalog's rows and a
round of snapshots to be written meanwhile."""

from attrs import evolve

from ..harness import Measured, Options
from . import crowd

UNIT = "asks"
COMPARED = "p99_us"
WARM_UP = False
SESSIONS = 10_000
FEW = 100
RATE_PER_S = 1_000.0
DURATION_S = 8.0
SNAPSHOT_INTERVAL_S = 5.0


async def measure(options: Options) -> Measured:
    return await _offered(options, options.sessions or SESSIONS)


async def ceiling(options: Options) -> Measured:
    return await _offered(options, min(FEW, options.sessions or SESSIONS))


async def _offered(options: Options, sessions: int) -> Measured:
    options = evolve(
        options, rate_per_s=options.rate_per_s or RATE_PER_S, duration_s=options.duration_s or DURATION_S
    )
    return await crowd.crowd(
        options, sessions, passivate_after_s=3_600.0, snapshot_interval_s=SNAPSHOT_INTERVAL_S
    )
