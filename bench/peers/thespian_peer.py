"""Thespian: its in-process system, synchronous."""

import json
import time
from importlib.metadata import version

from thespian.actors import Actor, ActorSystem  # type: ignore[import-not-found]


class Counter(Actor):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def receiveMessage(self, message: object, sender: object) -> None:
        if isinstance(message, int):
            self.count += 1
            self.send(sender, self.count)


def main() -> None:
    system = ActorSystem("simpleSystemBase")
    actor = system.createActor(Counter)
    operations, actors = 20_000, 2_000
    began = time.perf_counter()
    for number in range(operations):
        system.ask(actor, number)
    asked_s = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(actors):
        system.ask(system.createActor(Counter), 0)
    spawned_s = time.perf_counter() - began
    system.shutdown()
    per_s = {"ask-1": operations / asked_s, "spawn": actors / spawned_s}
    print(json.dumps({"version": version("thespian"), "per_s": per_s}))


if __name__ == "__main__":
    main()
