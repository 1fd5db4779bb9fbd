"""xoscar: actors in one process, on asyncio."""

import asyncio
import json
import time
from importlib.metadata import version

import xoscar as xo  # type: ignore[import-not-found]


class Counter(xo.Actor):  # type: ignore[misc]
    def __init__(self) -> None:
        self.count = 0

    def receive(self, message: int) -> int:
        self.count += 1
        return self.count


async def ask(pool: str, clients: int, operations: int) -> float:
    actor = await xo.create_actor(Counter, address=pool, uid=f"ask-{clients}")
    each = operations // clients

    async def client() -> None:
        for number in range(each):
            await actor.receive(number)

    began = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(clients)])
    return each * clients / (time.perf_counter() - began)


async def tell(pool: str, operations: int) -> float:
    actor = await xo.create_actor(Counter, address=pool, uid="tell")
    began = time.perf_counter()
    for number in range(operations):
        await actor.receive.tell(number)
    await actor.receive(0)
    return operations / (time.perf_counter() - began)


async def spawn(pool: str, actors: int) -> float:
    began = time.perf_counter()
    for number in range(actors):
        actor = await xo.create_actor(Counter, address=pool, uid=f"spawn-{number}")
        await actor.receive(0)
    return actors / (time.perf_counter() - began)


async def main() -> None:
    pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
    async with pool:
        address = pool.external_address
        per_s = {
            "ask-1": await ask(address, 1, 10_000),
            "ask-64": await ask(address, 64, 25_600),
            "tell": await tell(address, 20_000),
            "spawn": await spawn(address, 2_000),
        }
    print(json.dumps({"version": version("xoscar"), "per_s": per_s}))


if __name__ == "__main__":
    asyncio.run(main())
