"""Asks answered once their event is synced to the journal, one client a session (256), against a skeleton of the same
envelope, codec, futures and group commits into the same journal, without kernel, session state or deduplication."""

import time

from ..harness import Measured, Options, Stopwatch
from ..live import at_once, new_sessions, open_runtime, progress
from ..pace import LagMeter
from ..skeleton import skeleton

UNIT = "asks"
OPERATIONS = 100_000
SESSIONS = 256


def each_of(options: Options) -> tuple[int, int]:
    """How many sessions, and how many asks each."""
    sessions = options.sessions or SESSIONS
    return sessions, max(1, (options.operations or OPERATIONS) // sessions)


async def measure(options: Options) -> Measured:
    sessions, each = each_of(options)
    latencies: list[float] = []
    async with open_runtime() as runtime:
        ids = await new_sessions(runtime, sessions)

        async def client(number: int) -> None:
            ask, session_id, ack = runtime.ask, ids[number], options.ack
            for n in range(1, each + 1):
                began = time.perf_counter()
                await ask(session_id, progress(n), ack=ack)
                latencies.append((time.perf_counter() - began) * 1e6)

        before = runtime.statistics().commit
        async with LagMeter() as lag:
            with Stopwatch() as watch:
                await at_once(client, sessions, clients=sessions)
        commit = runtime.statistics().commit
    return Measured(
        operations=each * sessions,
        elapsed_s=watch.elapsed_s,
        cpu_s=watch.cpu_s,
        latencies_us=latencies,
        lag_us=lag.lag_us,
        more={"events_per_commit": (commit.events - before.events) / max(1, commit.commits - before.commits)},
    )


async def ceiling(options: Options) -> Measured:
    sessions, each = each_of(options)
    return await skeleton([map(progress, range(1, each + 1)) for _ in range(sessions)])
