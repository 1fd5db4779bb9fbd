"""Power cuts under a server with reporting sessions: nothing acknowledged is lost or doubled, no seq is missing, and every
session goes on and ends complete in exactly one tier.

The data folder lies on an ext4 file system in a file. At a random moment, while the server starts, or at a named point of
commit, snapshot, compaction, seal and both moves, the file system forgets all that was not synced (`tests.support.power`)
and the server is killed: at once, or a moment later, in which it must acknowledge nothing that it cannot keep. Then the
file system is mounted again and the next server serves what is left. What reporters were told is kept on another file
system. Every ten cuts begin with a new data folder, so that its making is cut, too.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from attrs import define, field

from ..support.killing import POINTS
from ..support.power import CannotCutPower, Disk, cut_power, small_disk
from ._prerequisite import Missing
from ._reporting import SETTLED_S, World, answering, check, live, settle, spawn, tiers

DISK_BYTES = 1024 * 1024 * 1024
SESSIONS = 20
CUTS_A_FOLDER = 10
PATIENCE_S = 6.0  # a point that is not met by then is a cut at random
START_S = 2.0  # within which a start is cut
LINGERS_S = 0.05  # how long a server may live on after the cut
# What a server says that found less than it had, or something else. Never, as long as its disk is there.
NOT_WHOLE = frozenset(
    f"{part}.damaged"
    for part in ("journal", "catalog", "session", "segment", "snapshot", "manifest", "facts")
) | {"session.set_aside", "catalog.row_damaged"}


@define
class Tally:
    """What came of the cuts."""

    cuts: Counter[str] = field(factory=Counter)
    remembered: int = 0
    sessions: int = 0
    acknowledged: int = 0
    in_flight: int = 0
    sent_again: int = 0
    settled_s: float = 0.0
    said: Counter[str] = field(factory=Counter)
    said_after_cuts: Counter[str] = field(factory=Counter)
    bad: Counter[str] = field(factory=Counter)


def prove(rng: random.Random) -> dict[str, Any]:
    """CUTS cuts (100). Raises Missing where this machine has no file system whose power can be cut."""
    cuts = int(os.environ.get("CUTS") or 100)
    folder = Path(tempfile.mkdtemp(prefix="sojourn-prove-"))
    found: dict[str, Any] = {"holds": False}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it clears up, too
    try:
        with small_disk(folder, DISK_BYTES) as disk:
            found = asyncio.run(_prove(folder, disk, cuts, rng))
    except CannotCutPower as error:
        shutil.rmtree(folder)
        raise Missing(str(error)) from error
    finally:
        if found["holds"]:
            shutil.rmtree(folder)
        elif folder.exists():
            print(f"  what is left of it: {folder}", file=sys.stderr)
    return found


async def _prove(folder: Path, disk: Disk, cuts: int, rng: random.Random) -> dict[str, Any]:
    tally = Tally()
    points = [*POINTS]
    rng.shuffle(points)
    while tally.cuts.total() < cuts:
        place = folder / f"round-{tally.cuts.total()}"
        place.mkdir()
        await _round(place, disk, min(cuts, tally.cuts.total() + CUTS_A_FOLDER), points, rng, tally)
    tally.bad["said_to_be_damaged"] = sum(tally.said[name] for name in NOT_WHOLE)
    bad = dict(sorted(tally.bad.items()))
    figures = {
        "cuts": tally.cuts.total(),
        "cuts_by_point": dict(sorted(tally.cuts.items())),
        "points_hit": len([point for point in POINTS if tally.cuts[point]]),
        "points": len(POINTS),
        "sessions": tally.sessions,
        "acknowledged": tally.acknowledged,
        "in_flight_at_cuts": tally.in_flight,
        "sent_again": tally.sent_again,
        "settled_s": round(tally.settled_s, 1),
        "said": dict(sorted(tally.said.items())),
        "said_after_cuts": dict(sorted(tally.said_after_cuts.items())),
        "cuts_that_forgot_nothing": tally.remembered,
        **bad,
    }
    return {"holds": not any(bad.values()) and not tally.remembered, "figures": figures}


async def _round(
    folder: Path, disk: Disk, until: int, points: list[str], rng: random.Random, tally: Tally
) -> None:
    """A new data folder, cut until there were `until` cuts, and then read back."""
    # The name is new, too: what was deleted before and not synced comes back with the first cut.
    data = disk.place / folder.name
    limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200)
    async with httpx2.AsyncClient(timeout=30.0, limits=limits) as client:
        port = rng.randrange(20_000, 30_000)
        world = World(f"http://127.0.0.1:{port}/api/v1", client, folder, data)
        reporting = [
            asyncio.create_task(live(world, number, random.Random(rng.random())))
            for number in range(SESSIONS)
        ]
        try:
            kinds: tuple[str, ...] = ("start", "random")
            while tally.cuts.total() < until:
                kind = rng.choice(kinds)
                point = points[tally.cuts.total() % len(points)] if kind == "point" else None
                await _cut(world, port, disk, kind, point, reporting, rng, tally)
                kinds = ("start", "random", *["point"] * 4)
            world.stopping = True
            began = _bytes_said(world)
            async with _served(world, port) as server:
                await answering(world, server)
                await asyncio.wait_for(asyncio.gather(*reporting), SETTLED_S)
                tally.settled_s = max(tally.settled_s, await settle(world))
                checked = [await check(world, session_id) for session_id in sorted(world.told)]
                server.send_signal(signal.SIGTERM)
                await asyncio.to_thread(server.wait)
            tally.said.update(_said(world, began, None))
        finally:
            for task in reporting:
                task.cancel()
            await asyncio.wait(reporting)
    for name in ("lost", "doubled", "misplaced", "seq_gaps"):
        tally.bad[name] += sum(one[name] for one in checked)
    tally.bad.update(tiers(data, world.told))
    tally.sessions += len(world.told)
    tally.acknowledged += world.acknowledged
    tally.sent_again += world.sent_again
    shutil.rmtree(data)


@asynccontextmanager
async def _served(world: World, port: int, *arguments: str) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """A server that is gone on exit, whatever comes."""
    server = spawn(world, port, *arguments)
    try:
        yield server
    finally:
        server.kill()
        await asyncio.to_thread(server.wait)


async def _cut(
    world: World,
    port: int,
    disk: Disk,
    kind: str,
    point: str | None,
    reporting: list["asyncio.Task[None]"],
    rng: random.Random,
    tally: Tally,
) -> None:
    """One server, from its start to the cut; then the file system is mounted again."""
    nth = rng.choice((1, 2, 3, 5, 10, 30))
    fuse = [point, str(nth), str(disk.place)] if point is not None else []
    began = _bytes_said(world)
    async with _served(world, port, *fuse) as server:
        answers = asyncio.create_task(answering(world, server))
        if kind != "start":
            await answers
        moments = {"start": rng.uniform(0.3, START_S), "random": rng.uniform(0.0, 1.5), "point": PATIENCE_S}
        until = time.monotonic() + moments[kind]
        while time.monotonic() < until and server.poll() is None:
            await asyncio.sleep(0.005)
            for task in reporting:
                if task.done():
                    task.result()
        tally.in_flight += world.in_flight
        by_itself = server.poll() is not None
        if by_itself and (point is None or server.returncode != -signal.SIGKILL):
            raise AssertionError((world.folder / "server.log").read_text()[-4000:])
        ended = _bytes_said(world)
        if not by_itself:
            cut_power(disk.place)
            await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, LINGERS_S))))
    await answers
    world.up.clear()
    tally.said.update(_said(world, began, ended))
    tally.said_after_cuts.update(_said(world, ended, None))
    await asyncio.to_thread(disk.unmount)
    disk.mount()
    tally.remembered += not disk.forgot()
    tally.cuts[point if by_itself and point is not None else "start" if kind == "start" else "random"] += 1
    if tally.cuts.total() % 10 == 0:
        print(f"  cut {tally.cuts.total()}, {len(world.told)} sessions here", file=sys.stderr)


def _bytes_said(world: World) -> int:
    log = world.folder / "server.log"
    return log.stat().st_size if log.exists() else 0


def _said(world: World, begin: int, end: int | None) -> list[str]:
    """The events of what a server logged as a warning or worse, in these bytes of the log."""
    found = []
    for line in (world.folder / "server.log").read_bytes()[begin:end].splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a traceback, or a line that the kill cut short
            continue
        if entry.get("level") in ("warning", "error", "critical"):
            found.append(entry["event"])
            if entry["event"] in NOT_WHOLE:
                print(f"  {line.decode()}", file=sys.stderr)
    return found
