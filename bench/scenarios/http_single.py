"""Commands over HTTP, each durable before it is answered: 64 kept connections (--clients) from another process, a session
each; with --rate in an open loop. The ceiling is a bare ASGI callable that reads the same bodies and answers as many bytes,
under the same uvicorn settings, asked by the same load."""

from ..harness import Measured, Options
from ..live import work_folder
from ..processes import Server, bare, load, sojourn_serve

UNIT = "requests"
CLIENTS = 64
OPERATIONS = 20_000


async def measure(options: Options) -> Measured:
    with work_folder() as folder, sojourn_serve(folder) as server:
        return commands(server, options, is_bare=False)


async def ceiling(options: Options) -> Measured:
    with work_folder() as folder, bare("http", folder) as server:
        return commands(server, options, is_bare=True)


def commands(server: Server, options: Options, *, is_bare: bool, lines: int = 0) -> Measured:
    """What a load process finds with single commands, or with batches of `lines`; it counts requests. Not async: nothing
    else runs in this process meanwhile."""
    clients = options.clients or CLIENTS
    operations = options.operations or OPERATIONS
    before_s = server.cpu_s()
    found = load(
        "commands",
        server.port,
        connections=clients,
        each=max(1, operations // clients),
        batch=lines,
        ack=options.ack.value,
        bare=is_bare,
        rate_per_s=options.rate_per_s,
    )
    # The making of the sessions is in the server's time too; it is two requests a connection.
    cpu_s = server.cpu_s() - before_s
    more = {"clients": clients, "server_rss_bytes": server.rss_bytes()} | found.more
    return Measured(
        operations=found.operations,
        elapsed_s=found.elapsed_s,
        cpu_s=cpu_s,
        latencies_us=found.latencies_us,
        processes_cpu_s={"server": cpu_s, "load": found.cpu_s},
        more=more,
    )
