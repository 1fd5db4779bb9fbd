"""Durable asks offered at 2,000 a second (--rate) to sessions drawn at random from 50,000 live ones (--sessions), all in
memory, against the same offered to 1,000: p99 from the intended moment, and resident memory."""

import random
from typing import Any

from sojourn.actors.ports import CatalogQuery

from ..harness import Measured, Options, Stopwatch
from ..live import new_sessions, numbers, open_runtime, progress
from ..memory import resident_bytes
from ..pace import LagMeter, offer

UNIT = "asks"
COMPARED = "p99_us"
WARM_UP = False
SESSIONS = 50_000
FEW = 1_000
RATE_PER_S = 2_000.0
DURATION_S = 5.0


async def measure(options: Options) -> Measured:
    return await crowd(options, options.sessions or SESSIONS, passivate_after_s=3_600.0)


async def ceiling(options: Options) -> Measured:
    return await crowd(options, min(FEW, options.sessions or SESSIONS), passivate_after_s=3_600.0)


async def crowd(options: Options, sessions: int, *, hot: float = 1.0, **changed: Any) -> Measured:
    """Fill, and ask at random among the share that is hot. `changed`: settings that differ from the defaults."""
    async with open_runtime(**changed) as runtime:
        ids = await new_sessions(runtime, sessions)
        await runtime.page(
            CatalogQuery(limit=1)
        )  # what making them left to be written: measured is only asking
        asked = max(1, int(sessions * hot))
        next_n = [numbers() for _ in range(asked)]
        chosen = random.Random(1)

        async def send(number: int) -> None:
            which = chosen.randrange(asked)
            await runtime.ask(ids[which], progress(next_n[which]()), ack=options.ack)

        async with LagMeter() as lag:
            with Stopwatch() as watch:
                offered = await offer(
                    send,
                    rate_per_s=options.rate_per_s or RATE_PER_S,
                    duration_s=options.duration_s or DURATION_S,
                )
        in_memory, resident = runtime.statistics().kernel.actors, resident_bytes()
    more: dict[str, Any] = {
        "sessions": sessions,
        "in_memory": in_memory,
        "resident_bytes": resident,
        "reached_per_s": offered.reached_per_s,
    }
    if (told := offered.told()) is not None:
        more["told"] = told
    return Measured(
        operations=max(1, offered.answered),
        elapsed_s=offered.elapsed_s,
        cpu_s=watch.cpu_s,
        latencies_us=offered.latencies_us,
        lag_us=lag.lag_us,
        more=more,
    )
