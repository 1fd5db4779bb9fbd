"""Events over HTTP in NDJSON batches of 100 lines, durable before they are answered, from 16 kept connections (--clients) of
another process, a session each. The ceiling decodes the same batches and asks them in process, without HTTP; a host that
has its commands as objects already is quicker still (`of_objects_per_s`)."""

import time
from typing import Any

from attrs import evolve

from sojourn.http.body import read_batch

from ..harness import Measured, Options, Stopwatch
from ..live import at_once, new_sessions, open_runtime, work_folder
from ..load import batch
from ..processes import sojourn_serve
from . import http_single

UNIT = "events"
LINES = 100
CLIENTS = 16
OPERATIONS = 100_000


def _shape(options: Options) -> tuple[int, int]:
    """How many connections, and how many batches each."""
    clients = options.clients or CLIENTS
    return clients, max(1, (options.operations or OPERATIONS) // (clients * LINES))


async def measure(options: Options) -> Measured:
    clients, each = _shape(options)
    with work_folder() as folder, sojourn_serve(folder) as server:
        requests = evolve(options, clients=clients, operations=clients * each, rate_per_s=None)
        found = http_single.commands(server, requests, is_bare=False, lines=LINES)
    return evolve(found, operations=found.operations * LINES)


async def ceiling(options: Options) -> Measured:
    clients, each = _shape(options)
    bodies = [batch(number * LINES + 1, LINES) for number in range(each)]
    decoded = [read_batch(body).commands for body in bodies]
    latencies: list[float] = []
    async with open_runtime() as runtime:
        ids = await new_sessions(runtime, 2 * clients)

        async def from_bytes(number: int) -> None:
            for body in bodies:
                began = time.perf_counter()
                commands = read_batch(body).commands
                await runtime.ask_batch(ids[number], commands, ack=options.ack, size_bytes=len(body))
                latencies.append((time.perf_counter() - began) * 1e6)

        async def from_objects(number: int) -> None:
            for commands, body in zip(decoded, bodies, strict=True):
                await runtime.ask_batch(
                    ids[clients + number], commands, ack=options.ack, size_bytes=len(body)
                )

        with Stopwatch() as watch:
            await at_once(from_bytes, clients, clients=clients)
        with Stopwatch() as of_objects:
            await at_once(from_objects, clients, clients=clients)
    operations = clients * each * LINES
    more: dict[str, Any] = {"of_objects_per_s": operations / of_objects.elapsed_s}
    return Measured(
        operations=operations,
        elapsed_s=watch.elapsed_s,
        cpu_s=watch.cpu_s,
        latencies_us=latencies,
        more=more,
    )
