"""Ray: an actor is a process."""

import json
import time
from importlib.metadata import version

import ray  # type: ignore[import-not-found]


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def receive(self, message: int) -> int:
        self.count += 1
        return self.count


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    remote = ray.remote(Counter)
    actor = remote.remote()
    ray.get(actor.receive.remote(0))
    operations, actors = 1_000, 4
    began = time.perf_counter()
    for number in range(operations):
        ray.get(actor.receive.remote(number))
    asked_s = time.perf_counter() - began
    began = time.perf_counter()
    for first in range(0, operations, 64):
        ray.get([actor.receive.remote(number) for number in range(first, first + 64)])
    pipelined_s = time.perf_counter() - began
    began = time.perf_counter()
    ray.get([remote.options(num_cpus=0).remote().receive.remote(0) for _ in range(actors)])
    spawned_s = time.perf_counter() - began
    ray.shutdown()
    per_s = {"ask-1": operations / asked_s, "ask-64": operations / pipelined_s, "spawn": actors / spawned_s}
    print(json.dumps({"version": version("ray"), "per_s": per_s}))


if __name__ == "__main__":
    main()
