"""What a durable ask costs in CPU among 10,000 live sessions (--sessions), of which 100 are asked, against the same hundred
alone, once the catalog shows them all. A live session that nothing happens to should cost nothing."""

from attrs import evolve

from ..harness import Measured, Options, Stopwatch
from ..live import catalog_written, closed_loop, new_sessions, open_runtime

UNIT = "asks"
COMPARED = "cpu_us"
WARM_UP = False
SESSIONS = 10_000
ASKED = 100
OPERATIONS = 50_000


async def measure(options: Options) -> Measured:
    sessions = options.sessions or SESSIONS
    clients = min(options.clients or ASKED, sessions)
    each = max(1, (options.operations or OPERATIONS) // clients)
    async with open_runtime() as runtime:
        ids = await new_sessions(runtime, sessions)
        await catalog_written(runtime)
        # Spread over all, so that those asked do not lie beside one another in any order.
        asked = ids[:: max(1, sessions // clients)][:clients]
        with Stopwatch() as watch:
            await closed_loop(runtime, asked, each)
    return Measured(
        operations=each * len(asked),
        elapsed_s=watch.elapsed_s,
        cpu_s=watch.cpu_s,
        more={"sessions": sessions, "asked": len(asked)},
    )


async def ceiling(options: Options) -> Measured:
    clients = options.clients or ASKED
    return await measure(evolve(options, sessions=min(clients, options.sessions or SESSIONS)))
