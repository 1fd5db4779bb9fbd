"""Durable asks offered at half of what the same run reached at most (or --rate), to 256 sessions, each at a moment of its
own; latency counts from that moment. The ceiling is the time of the commits alone, in the same run: an ask waits at least
for the one that it is in."""

import time
from collections.abc import Sequence
from typing import Any

from attrs import evolve

from sojourn.actors.ports import Record
from sojourn.runtime.opening import SystemClock, open_stores
from sojourn.runtime.runtime import Runtime

from ..harness import Measured, Options, Stopwatch
from ..live import closed_loop, new_sessions, progress, settings, work_folder
from ..pace import LagMeter, generator_cpu_us, offer

UNIT = "asks"
COMPARED = "p99_us"
SESSIONS = 256
OPERATIONS = 30_000  # to find the maximum with
DURATION_S = 3.0


class TimedJournal:
    """A journal that notes how long each append took, from the call to its return on the loop."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.appends_us: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(self, records: Sequence[Record]) -> None:
        began = time.perf_counter()
        await self._inner.append(records)
        self.appends_us.append((time.perf_counter() - began) * 1e6)


async def both(options: Options) -> tuple[Measured, Measured]:
    sessions = options.sessions or SESSIONS
    each = max(1, (options.operations or OPERATIONS) // sessions)
    with work_folder() as folder:
        changed = settings(folder)
        async with open_stores(changed) as stores:
            journal = TimedJournal(stores.journal)
            timed: Any = evolve(stores, journal=journal)
            async with Runtime.over(changed, timed, SystemClock()) as runtime:
                ids = await new_sessions(runtime, sessions)
                with Stopwatch() as watch:
                    await closed_loop(runtime, ids, each)
                rate_per_s = options.rate_per_s or each * sessions / watch.elapsed_s / 2
                generator_us = await generator_cpu_us(rate_per_s)
                journal.appends_us.clear()

                async def send(number: int) -> None:
                    await runtime.ask(
                        ids[number % sessions], progress(each + 1 + number // sessions), ack=options.ack
                    )

                async with LagMeter() as lag:
                    with Stopwatch() as open_watch:
                        offered = await offer(
                            send, rate_per_s=rate_per_s, duration_s=options.duration_s or DURATION_S
                        )
                commits_us = list(journal.appends_us)
    more: dict[str, Any] = {
        "offered_per_s": rate_per_s,
        "reached_per_s": offered.reached_per_s,
        "maximum_per_s": each * sessions / watch.elapsed_s,
        "generator_cpu_us": generator_us,
        "sent_late_p99_us": sorted(offered.late_us)[int(0.99 * len(offered.late_us))],
    }
    if (told := offered.told()) is not None:
        more["told"] = told
    real = Measured(
        operations=max(1, offered.answered),
        elapsed_s=offered.elapsed_s,
        cpu_s=open_watch.cpu_s,
        latencies_us=offered.latencies_us,
        lag_us=lag.lag_us,
        more=more,
    )
    commits = Measured(
        operations=len(commits_us),
        elapsed_s=open_watch.elapsed_s,
        cpu_s=open_watch.cpu_s,
        latencies_us=commits_us,
    )
    return real, commits
