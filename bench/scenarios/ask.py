"""Asks answered in memory by one actor, with --clients asking at once (100), against a bare deque and futures."""

import asyncio
import time
from collections import deque

import anyio

from sojourn.actors.kernel.driver import Driver
from sojourn.actors.kernel.envelope import Envelope
from sojourn.actors.kernel.park import Gate, parking
from sojourn.actors.kernel.scheduler import Kernel

from ..counter import SPEC, Counter, load_actors
from ..harness import Measured, Options, Stopwatch

UNIT = "asks"
OPERATIONS = 200_000
CLIENTS = 100


async def measure(options: Options) -> Measured:
    clients = options.clients or CLIENTS
    each = (options.operations or OPERATIONS) // clients
    kernel, park = Kernel(clock=time.monotonic, dynamic=SPEC), parking()
    load_actors(kernel, ["actor"])

    async def client() -> None:
        ask = kernel.ask
        for number in range(each):
            await ask("actor", number, park())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Driver(kernel).run, lambda: None)
        with Stopwatch() as watch:
            await asyncio.gather(*[client() for _ in range(clients)])
        tasks.cancel_scope.cancel()
    return Measured(operations=each * clients, elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s)


async def ceiling(options: Options) -> Measured:
    clients = options.clients or CLIENTS
    each = (options.operations or OPERATIONS) // clients
    park, gate, queue = parking(), Gate(), deque[Envelope]()
    receive = Counter().receive

    async def server() -> None:
        while True:
            while queue:
                envelope = queue.popleft()
                assert envelope.reply is not None
                envelope.reply.set_result(receive(envelope.message))
            await gate.wait()

    async def client() -> None:
        for number in range(each):
            reply = park()
            queue.append(Envelope(number, 0, reply, False, False))
            gate.wake()
            await reply

    serving = asyncio.create_task(server())
    with Stopwatch() as watch:
        await asyncio.gather(*[client() for _ in range(clients)])
    serving.cancel()
    return Measured(operations=each * clients, elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s)
