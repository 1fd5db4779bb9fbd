"""Events of one session delivered to 1,000 live streams (--clients) in another process, eight events on their way at most.
The ceiling is a bare ASGI callable that sends frames of the same bytes to every open stream."""

from ..harness import BrokenOff, Measured, Options
from ..live import work_folder
from ..processes import Server, bare, load, sojourn_serve

UNIT = "deliveries"
CLIENTS = 1_000
EVENTS = 200
UNDER_WAY = 8


async def measure(options: Options) -> Measured:
    with work_folder() as folder, sojourn_serve(folder) as server:
        return _fan_out(server, options, is_bare=False)


async def ceiling(options: Options) -> Measured:
    with work_folder() as folder, bare("sse", folder) as server:
        return _fan_out(server, options, is_bare=True)


def _fan_out(server: Server, options: Options, *, is_bare: bool) -> Measured:
    clients, events = options.clients or CLIENTS, options.operations or EVENTS
    before_s = server.cpu_s()
    found = load("fan_out", server.port, clients=clients, operations=events, window=UNDER_WAY, bare=is_bare)
    if found.operations < clients * events:
        raise BrokenOff(f"{clients * events:,} deliveries were due, and {found.operations:,} came")
    cpu_s = server.cpu_s() - before_s
    return Measured(
        operations=found.operations,
        elapsed_s=found.elapsed_s,
        cpu_s=cpu_s,
        latencies_us=found.latencies_us,
        processes_cpu_s={"server": cpu_s, "load": found.cpu_s},
        more={"clients": clients, "server_rss_bytes": server.rss_bytes()},
    )
