"""Durable asks to 256 sessions, offered at half of what the same run reached at most over as long a time (or --rate), each at a
moment of its own; latency counts from that moment. The ceiling is the time of the commits alone, in the same run: an ask
waits at least for the one that it is in."""

import time
from collections.abc import Sequence
from typing import Any

from attrs import evolve

from sojourn.actors.ports import Record
from sojourn.runtime.opening import SystemClock, open_stores
from sojourn.runtime.runtime import Runtime

from ..harness import Measured, Options, Stopwatch
from ..live import for_so_long, new_sessions, numbers, progress, settings, work_folder
from ..pace import LagMeter, generator_cpu_us, offer

UNIT = "asks"
COMPARED = "p99_us"
SESSIONS = 256
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
    duration_s = options.duration_s or DURATION_S
    with work_folder() as folder:
        changed = settings(folder)
        async with open_stores(changed) as stores:
            journal = TimedJournal(stores.journal)
            timed: Any = evolve(stores, journal=journal)
            async with Runtime.over(changed, timed, SystemClock()) as runtime:
                ids = await new_sessions(runtime, sessions)
                next_n = [numbers() for _ in ids]

                async def ask(which: int) -> int:
                    await runtime.ask(ids[which], progress(next_n[which]()), ack=options.ack)
                    return 1

                with Stopwatch() as watch:
                    asked = await for_so_long(ask, sessions, duration_s)
                maximum_per_s = asked / watch.elapsed_s
                rate_per_s = options.rate_per_s or maximum_per_s / 2
                generator_us = await generator_cpu_us(rate_per_s)
                journal.appends_us.clear()

                async with LagMeter() as lag:
                    with Stopwatch() as open_watch:
                        offered = await offer(
                            lambda number: ask(number % sessions),
                            rate_per_s=rate_per_s,
                            duration_s=duration_s,
                        )
                commits_us = list(journal.appends_us)
    more: dict[str, Any] = {
        "offered_per_s": rate_per_s,
        "reached_per_s": offered.reached_per_s,
        "maximum_per_s": maximum_per_s,
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
