"""Asks answered once their event is in the journal and Redis has it too (ack `mirrored`), one client a session (256). The
ceiling is the skeleton of durable-ask that also encodes the same documents and sends each group to the same script through a
bare socket, two groups under way."""

import time

from sojourn.actors.session.model import Ack

from ..bare_redis import NAMESPACE, BareScript, server, spent
from ..harness import Measured, Options, Stopwatch
from ..live import at_once, new_sessions, open_runtime, progress
from ..pace import LagMeter
from ..skeleton import skeleton
from .durable_ask import each_of

UNIT = "asks"


async def measure(options: Options) -> Measured:
    sessions, each = each_of(options)
    latencies: list[float] = []
    async with (
        server(options) as url,
        open_runtime(mirror=url, mirror_namespace=NAMESPACE) as runtime,
    ):
        ids = await new_sessions(runtime, sessions)

        # Level before the clock starts.
        async def level(number: int) -> None:
            await runtime.ask(ids[number], progress(1), ack=Ack.MIRRORED)

        await at_once(level, sessions)

        async def client(number: int) -> None:
            for n in range(2, each + 2):
                began = time.perf_counter()
                await runtime.ask(ids[number], progress(n), ack=Ack.MIRRORED)
                latencies.append((time.perf_counter() - began) * 1e6)

        before = spent(url)
        async with LagMeter() as lag:
            with Stopwatch() as watch:
                await at_once(client, sessions, clients=sessions)
        server_s = spent(url).cpu_s - before.cpu_s
        statistics = runtime.statistics().mirror
    assert statistics is not None
    return Measured(
        operations=each * sessions,
        elapsed_s=watch.elapsed_s,
        cpu_s=watch.cpu_s,
        latencies_us=latencies,
        lag_us=lag.lag_us,
        processes_cpu_s={"redis": server_s},
        more={
            "batches": statistics.batches,
            "updates": statistics.updates,
            "rewritten": statistics.rewritten,
        },
    )


async def ceiling(options: Options) -> Measured:
    sessions, each = each_of(options)
    async with server(options) as url, BareScript(url) as script:
        return await skeleton([map(progress, range(1, each + 1)) for _ in range(sessions)], script.mirror)
