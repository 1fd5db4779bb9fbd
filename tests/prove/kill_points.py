"""SIGKILL of a server under reporting sessions, at random moments and at every named point of commit, snapshot, compaction,
seal and both moves: nothing acknowledged is lost or doubled, and every session ends complete in exactly one tier.

Sessions begin, report, end and are followed by others all the while, under settings that hand over and archive within
seconds. What a reporter was told is written to its own log outside the server, and synced, before it goes on.
"""

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

from ..support.killing import POINTS
from ._reporting import SESSIONS, SETTLED_S, World, check, fingerprint, live, settle, start, tiers

PATIENCE_S = 6.0


def prove(rng: random.Random) -> dict[str, Any]:
    """KILLS kills (500)."""
    kills = int(os.environ.get("KILLS") or 500)
    folder = Path(tempfile.mkdtemp(prefix="sojourn-prove-"))
    found: dict[str, Any] = {"holds": False}
    try:
        found = asyncio.run(_prove(folder, kills, rng))
    finally:
        if found["holds"]:
            shutil.rmtree(folder)
        else:
            print(f"  what is left of it: {folder}", file=sys.stderr)
    return found


async def _prove(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    port = rng.randrange(20_000, 30_000)
    limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200)
    killed: Counter[str] = Counter()
    async with httpx2.AsyncClient(timeout=30.0, limits=limits) as client:
        world = World(f"http://127.0.0.1:{port}/api/v1", client, folder, folder / "data")
        reporting = [
            asyncio.create_task(live(world, number, random.Random(rng.random())))
            for number in range(SESSIONS)
        ]
        points = [*POINTS]
        rng.shuffle(points)
        while sum(killed.values()) < kills:
            at_point = rng.random() < 0.75
            point = points[sum(killed.values()) % len(points)] if at_point else None
            nth = rng.choice((1, 2, 3, 5, 10, 30)) if point is not None else 0
            server = await start(world, port, *([point, str(nth)] if point is not None else []))
            moment = rng.uniform(0.2, 1.5) if point is None else PATIENCE_S
            by_itself = False
            until = time.monotonic() + moment
            while time.monotonic() < until:
                await asyncio.sleep(0.005)
                for task in reporting:
                    if task.done():
                        task.result()
                if server.poll() is not None:
                    by_itself = True
                    break
            in_flight = world.in_flight
            world.up.clear()
            if not by_itself:
                server.send_signal(signal.SIGKILL)
            await asyncio.to_thread(server.wait)
            if by_itself and server.returncode != -signal.SIGKILL:
                raise AssertionError((folder / "server.log").read_text()[-4000:])
            if in_flight:
                killed[point if by_itself and point is not None else "random"] += 1
                if sum(killed.values()) % 25 == 0:
                    print(
                        f"  kill {sum(killed.values())}/{kills}, {len(world.told)} sessions, "
                        f"{world.acknowledged} acknowledged",
                        file=sys.stderr,
                    )
        world.stopping = True
        server = await start(world, port)
        await asyncio.wait_for(asyncio.gather(*reporting), SETTLED_S)
        settled_s = await settle(world)
        checked = [await check(world, session_id) for session_id in sorted(world.told)]
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait)
        places = tiers(folder / "data", world.told)
        before = fingerprint(folder / "data")
        server = await start(world, port)
        await asyncio.sleep(3)
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait)
        after = fingerprint(folder / "data")
    bad = {name: sum(one[name] for one in checked) for name in ("lost", "doubled", "misplaced", "seq_gaps")}
    bad |= places
    bad["changed_by_a_second_run"] = len(before.items() ^ after.items())
    figures = {
        "kills": sum(killed.values()),
        "kills_by_point": dict(sorted(killed.items())),
        "points_hit": len([point for point in POINTS if killed[point]]),
        "points": len(POINTS),
        "sessions": len(world.told),
        "acknowledged": world.acknowledged,
        "sent_again": world.sent_again,
        "settled_s": round(settled_s, 1),
        **bad,
    }
    return {"holds": not any(bad.values()), "figures": figures}
