"""Asks for `mirrored` offered at 10,000 a second (--rate), to 256 sessions, each at a moment of its own; latency counts from
that moment. The ceiling is the same offer to the skeleton and bare script call of mirrored-ask, in the same run."""

from collections.abc import Awaitable, Callable
from typing import Any

from sojourn.actors.session.model import Ack

from ..bare_redis import NAMESPACE, BareScript, server, spent
from ..harness import Measured, Options, Stopwatch
from ..live import at_once, new_sessions, open_runtime, progress
from ..pace import LagMeter, generator_cpu_us, offer
from ..skeleton import committing

UNIT = "asks"
COMPARED = "p99_us"
SESSIONS = 256
RATE_PER_S = 10_000.0
DURATION_S = 3.0


async def measure(options: Options) -> Measured:
    sessions = options.sessions or SESSIONS
    async with (
        server(options) as url,
        open_runtime(mirror=url, mirror_namespace=NAMESPACE) as runtime,
    ):
        ids = await new_sessions(runtime, sessions)

        async def send(number: int) -> None:
            await runtime.ask(ids[number % sessions], progress(1 + number // sessions), ack=Ack.MIRRORED)

        # Level before the clock starts.
        await at_once(send, sessions)
        before = spent(url)
        measured = await _offered(lambda number: send(sessions + number), options)
        measured.processes_cpu_s["redis"] = spent(url).cpu_s - before.cpu_s
        return measured


async def ceiling(options: Options) -> Measured:
    sessions = options.sessions or SESSIONS
    async with server(options) as url, BareScript(url) as script, committing(script.mirror) as commits:

        async def send(number: int) -> None:
            n = 1 + number // sessions
            await commits.ask(f"sess_{number % sessions:032x}", n, progress(n))

        return await _offered(send, options)


async def _offered(send: Callable[[int], Awaitable[None]], options: Options) -> Measured:
    rate_per_s = options.rate_per_s or RATE_PER_S
    generator_us = await generator_cpu_us(rate_per_s)
    async with LagMeter() as lag:
        with Stopwatch() as watch:
            offered = await offer(send, rate_per_s=rate_per_s, duration_s=options.duration_s or DURATION_S)
    more: dict[str, Any] = {
        "offered_per_s": rate_per_s,
        "reached_per_s": offered.reached_per_s,
        "generator_cpu_us": generator_us,
        "sent_late_p99_us": sorted(offered.late_us)[int(0.99 * len(offered.late_us))],
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
