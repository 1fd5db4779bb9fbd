"""SIGKILL of `serve` with a mirror at random moments under reporting sessions: nothing acknowledged is lost or doubled, the
mirror says what the journal says within 5 s of the next start, and what the killed process may still send is refused.

After every second kill the reporters wait until the mirror has been compared, byte by byte; after the others they go on at
once, and the mirror has to catch up under them.
"""

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from sojourn.actors.ports import MirrorAnswer, MirrorHead, MirrorUpdate
from sojourn.runtime.reader import Reader
from sojourn.runtime.stores.mirror_redis import RedisMirror

from ..support.fleet import Shadow, difference
from ..support.redis import Server, serving
from ..support.serve import Serve, serve
from ..support.wait import await_until
from .kill_serve import Reporter, World, check

SESSIONS = 50
STALE = 5  # sessions to which the killed process is made to send, a kill
DEADLINE_S = 30.0
LEVEL_S_MAX = 5.0


def prove(rng: random.Random) -> dict[str, Any]:
    """KILLS kills (50); SERVER is valkey (default) or redis."""
    kills, name = int(os.environ.get("KILLS") or 50), os.environ.get("SERVER") or "valkey"
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as folder, serving(name) as server:
        found = asyncio.run(_prove(Path(folder), server, kills, rng))
    found["figures"]["server"] = name
    return found


def _start(stack: ExitStack, folder: Path, port: int, mirror: Server) -> Serve:
    server = stack.enter_context(
        serve(
            folder / "data",
            "--port",
            str(port),
            log=folder / "serve.log",
            env={"SOJOURN_MIRROR": mirror.unix},
        )
    )
    assert server.listening, server.said
    return server


async def _prove(folder: Path, mirror_server: Server, kills: int, rng: random.Random) -> dict[str, Any]:
    limits = httpx2.Limits(max_connections=100, max_keepalive_connections=100)
    mirror = await RedisMirror.open(mirror_server.unix)
    equal_s: list[float] = []
    caught_up_s: list[float] = []
    fenced = not_fenced = 0
    differences: list[str] = []
    async with httpx2.AsyncClient(timeout=DEADLINE_S, limits=limits) as client:
        with ExitStack() as stack:
            server = await asyncio.to_thread(_start, stack, folder, 0, mirror_server)
            port = int(server.url.rsplit(":", 1)[1])
            world = World(f"{server.url}/api/v1", client)
            world.up.set()
            reporters = [await _reporter(world, folder, number, rng) for number in range(SESSIONS)]
            shadows = {reporter.session_id: Shadow(reporter.session_id) for reporter in reporters}
            async with asyncio.TaskGroup() as tasks:
                for reporter in reporters:
                    tasks.create_task(reporter.report(world))
                done = 0
                while done < kills:
                    enough = sum(reporter.acknowledged for reporter in reporters) + SESSIONS
                    await await_until(partial(_have_told, reporters, enough), DEADLINE_S)
                    await asyncio.sleep(rng.uniform(0.0, 0.7))
                    if not any(reporter.in_flight for reporter in reporters):
                        continue
                    world.up.clear()
                    server.process.send_signal(signal.SIGKILL)
                    await asyncio.to_thread(server.process.wait)
                    done += 1
                    old = {
                        session_id: head
                        for session_id, head in (await mirror.heads()).items()
                        if session_id in shadows
                    }
                    server = await asyncio.to_thread(_start, stack, folder, port, mirror_server)
                    started_s = time.monotonic()
                    if done % 2:
                        differences += await _equal(folder / "data", mirror, shadows)
                        equal_s.append(time.monotonic() - started_s)
                        world.up.set()
                    else:
                        world.up.set()
                        await _taken_over(mirror, old)
                        caught_up_s.append(time.monotonic() - started_s)
                    answers = await _late(mirror, old, rng)
                    fenced += answers.count(MirrorAnswer.FENCED)
                    not_fenced += len(answers) - answers.count(MirrorAnswer.FENCED)
                    took = (equal_s if done % 2 else caught_up_s)[-1]
                    print(f"  kill {done}/{kills}: {took:.2f} s", file=sys.stderr)
                world.stopping = True
            differences += await _equal(folder / "data", mirror, shadows)
            checked = [await check(world, reporter) for reporter in reporters]
    await mirror.close()
    bad = {name: sum(one[name] for one in checked) for name in ("lost", "doubled", "misplaced", "seq_gaps")}
    bad |= {"mirror_differs": len(differences), "late_not_fenced": not_fenced}
    figures = {
        "kills": done,
        "sessions": SESSIONS,
        "acknowledged": sum(reporter.acknowledged for reporter in reporters),
        "sent_again": sum(reporter.retried for reporter in reporters),
        "start_to_equal_s_max": round(max(equal_s), 2),
        "start_to_taken_over_under_load_s_max": round(max(caught_up_s, default=0.0), 2),
        "late_fenced": fenced,
        "differences": differences[:10],
        **bad,
    }
    holds = not any(bad.values()) and max(equal_s + caught_up_s) <= LEVEL_S_MAX
    return {"holds": holds, "figures": figures}


def _have_told(reporters: list[Reporter], enough: int) -> bool:
    return sum(reporter.acknowledged for reporter in reporters) >= enough


async def _reporter(world: World, folder: Path, number: int, rng: random.Random) -> Reporter:
    created = await world.client.post(f"{world.url}/sessions", json={"plan": "prove", "title": str(number)})
    session_id = created.json()["session_id"]
    await world.client.post(f"{world.url}/sessions/{session_id}/commands", json={"type": "session.start"})
    return Reporter(number, session_id, folder / f"acknowledged-{number}.ndjson", random.Random(rng.random()))


async def _equal(data: Path, mirror: RedisMirror, shadows: dict[str, Shadow]) -> list[str]:
    """What the mirror still says otherwise than the folder, after the deadline; nobody reports."""
    deadline_s = time.monotonic() + DEADLINE_S
    async with Reader.open(data) as reader:
        for shadow in shadows.values():
            await shadow.catch_up(reader)
        left = list(shadows)
        while True:
            found = {}
            for session_id in left:
                told = await difference(reader, mirror, shadows[session_id].state, epoch=None)
                if told is not None:
                    found[session_id] = told
            left = list(found)
            if not found or time.monotonic() > deadline_s:
                return [f"{session_id}: {told}" for session_id, told in found.items()]
            await asyncio.sleep(0.02)


async def _taken_over(mirror: RedisMirror, old: dict[str, MirrorHead]) -> None:
    """The next process has written every session that stood there, and as far at least. All are asked about at once: the
    reporters sync their logs on this loop, and between two questions all of them may."""

    async def written() -> bool:
        heads = await mirror.heads()
        return all(
            session_id in heads and heads[session_id].epoch > was.epoch and heads[session_id].seq >= was.seq
            for session_id, was in old.items()
        )

    await await_until(written, DEADLINE_S)


async def _late(mirror: RedisMirror, old: dict[str, MirrorHead], rng: random.Random) -> list[MirrorAnswer]:
    """What the mirror answers to a batch of the killed process that comes now."""
    batch = []
    for session_id in rng.sample(sorted(old), min(STALE, len(old))):
        head = await mirror.head(session_id)
        assert head is not None
        batch += [
            MirrorUpdate(
                session_id=session_id,
                epoch=old[session_id].epoch,
                first_seq=head.seq + 1,
                last_seq=head.seq + 1,
                events=(b"late",),
                documents={"progress": b"late"},
                whole=whole,
            )
            for whole in (False, True)
        ]
    return await mirror.apply(batch)
