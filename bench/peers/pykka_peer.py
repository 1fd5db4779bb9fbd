"""Pykka: an actor is a thread."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import pykka  # type: ignore[import-not-found]


class Counter(pykka.ThreadingActor):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: int) -> int:
        self.count += 1
        return self.count


def ask(clients: int, operations: int) -> float:
    actor = Counter.start()
    each = operations // clients

    def client(_: int) -> None:
        for number in range(each):
            actor.ask(number)

    began = time.perf_counter()
    if clients == 1:
        client(0)
    else:
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, range(clients)))
    found = each * clients / (time.perf_counter() - began)
    actor.stop()
    return found


def tell(operations: int) -> float:
    actor = Counter.start()
    began = time.perf_counter()
    for number in range(operations):
        actor.tell(number)
    actor.ask(0)  # behind them all
    found = operations / (time.perf_counter() - began)
    actor.stop()
    return found


def spawn(actors: int) -> float:
    began = time.perf_counter()
    made = [Counter.start() for _ in range(actors)]
    for actor in made:
        actor.ask(0)
    found = actors / (time.perf_counter() - began)
    pykka.ActorRegistry.stop_all()
    return found


if __name__ == "__main__":
    per_s = {"ask-1": ask(1, 10_000), "ask-64": ask(64, 12_800), "tell": tell(50_000), "spawn": spawn(1_000)}
    print(json.dumps({"version": version("pykka"), "per_s": per_s}))
