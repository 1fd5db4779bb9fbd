"""Followers of mirrored sessions in a process of their own, whose connections are shut at random.

`python -m tests.support.followers` reads one JSON object from its input: `url`, `sessions` (ids), `subscribers` (how many,
session after session), `seed`, `cut_every_s` (0: none is cut). It prints `ready` once all follow, and at the end, when every
session has moved away, what each saw, as one line of JSON.
"""

import asyncio
import json
import os
import random
import resource
import socket
import sys
import zlib
from typing import Any

from attrs import define, field

from sojourn.runtime.mirror_reader import LiveEvent, LiveGap, LiveRewound, MirrorReader, MovedAway


@define(eq=False)
class Subscriber:
    """What one of them saw. `disorder` counts news that did not begin where the last ended."""

    session_id: str
    events: int = 0
    last_seq: int = 0
    disorder: int = 0
    altered: int = 0
    gaps: list[tuple[int, int]] = field(factory=list)
    moved_at: int | None = None

    async def follow(self, reader: MirrorReader, told: dict[int, int]) -> None:
        """`told` is what any follower of this session saw of each event: they have to see the same."""
        async for news in reader.follow(self.session_id):
            match news:
                case LiveEvent():
                    self.disorder += news.seq != self.last_seq + 1
                    self.altered += told.setdefault(news.seq, zlib.crc32(news.event)) != zlib.crc32(
                        news.event
                    )
                    self.events += 1
                    self.last_seq = news.seq
                case LiveGap():
                    self.disorder += news.first_seq != self.last_seq + 1
                    self.gaps.append((news.first_seq, news.last_seq))
                    self.last_seq = news.last_seq
                case LiveRewound():
                    self.disorder += 1
                case MovedAway():
                    self.moved_at = news.seq


async def follow(plan: dict[str, Any]) -> dict[str, Any]:
    rng = random.Random(plan["seed"])
    sessions: list[str] = plan["sessions"]
    told: dict[str, dict[int, int]] = {session_id: {} for session_id in sessions}
    subscribers = [Subscriber(sessions[n % len(sessions)]) for n in range(plan["subscribers"])]
    reader = await MirrorReader.open(plan["url"])
    cuts = 0
    try:
        async with asyncio.TaskGroup() as tasks:
            following = [
                tasks.create_task(subscriber.follow(reader, told[subscriber.session_id]))
                for subscriber in subscribers
            ]
            while not all(subscriber.events for subscriber in subscribers):
                await asyncio.sleep(0.05)
            print("ready", flush=True)
            while not all(task.done() for task in following):
                await asyncio.sleep(plan["cut_every_s"] or 0.2)
                if plan["cut_every_s"]:
                    cuts += cut_one(rng)
    finally:
        await reader.close()
    return {
        "cuts": cuts,
        "subscribers": [
            [one.session_id, one.events, one.last_seq, one.disorder, one.altered, one.moved_at, one.gaps]
            for one in subscribers
        ],
        "told": {session_id: sorted(seen.items()) for session_id, seen in told.items()},
    }


def cut_one(rng: random.Random) -> int:
    """Shuts one connection of this process, whichever it is; 0 where there was none to shut."""
    number = int(rng.choice(os.listdir("/proc/self/fd")))
    try:
        if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
            return 0
        with socket.socket(fileno=os.dup(number)) as connection:
            connection.getpeername()
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return 0  # it has gone meanwhile, or is the event loop's own pair
    return 1


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(asyncio.run(follow(json.loads(sys.stdin.readline())))), flush=True)
