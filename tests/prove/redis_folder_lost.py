"""The data folder is deleted after a SIGKILL of `serve`: the next one, with the same settings, has the sessions again from
the mirror, says of each what is missing, and goes on; nothing that was acknowledged `mirrored` is missing from the state.

Each reporter asks `durable` and `mirrored` in turn, and records one case a command, so what a session must still know can be
read in its state.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from attrs import define, field

from ..support.redis import Server, serving
from ..support.serve import Serve, serve
from ..support.wait import await_until

SESSIONS = 20
DEADLINE_S = 30.0
BACK_S_MAX = 5.0


@define(eq=False)
class Reporter:
    """One session. `kept` are the cases whose result was acknowledged `mirrored`, at which seq; `source` is another after
    each loss."""

    session_id: str
    rng: random.Random
    kept: dict[str, int] = field(factory=dict)
    durable_only: int = 0
    refused: int = 0
    round: int = 0
    n: int = 0
    in_flight: bool = False

    async def report(self, world: "World") -> None:
        """Until the server goes away."""
        while True:
            self.n += 1
            case_id, mirrored = f"c{self.round}-{self.n}", self.n % 2 == 0
            body = {
                "type": "result.record",
                "case_id": case_id,
                "outcome": "passed",
                "duration_s": 0.1,
                "details": "x" * self.rng.randrange(400),
                "source": f"prove-{self.round}",
                "n": self.n,
            }
            self.in_flight = True
            try:
                answer = await world.client.post(
                    f"{world.url}/sessions/{self.session_id}/commands?ack={'mirrored' if mirrored else 'durable'}",
                    json=body,
                )
            except httpx2.TransportError:
                return
            finally:
                self.in_flight = False
            if answer.status_code == 503 and answer.json()["code"] == "durability_unavailable":
                self.refused += 1
                continue
            assert answer.status_code == 200, answer.text
            if mirrored:
                self.kept[case_id] = answer.json()["seq"]
            else:
                self.durable_only += 1


@define(eq=False)
class World:
    url: str
    client: httpx2.AsyncClient

    async def has(self, path: str) -> bool:
        try:
            return (await self.client.get(f"{self.url}{path}")).status_code == 200
        except httpx2.TransportError:
            return False

    async def get(self, path: str) -> Any:
        answer = await self.client.get(f"{self.url}{path}")
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        return answer.json()


def prove(rng: random.Random) -> dict[str, Any]:
    """KILLS losses of the folder (20); SERVER is valkey (default) or redis."""
    kills, name = int(os.environ.get("KILLS") or 20), os.environ.get("SERVER") or "valkey"
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as folder, serving(name) as server:
        found = asyncio.run(lose(Path(folder), server, SESSIONS, kills, rng))
    found["figures"]["server"] = name
    return found


def _start(stack: ExitStack, folder: Path, port: int, mirror: Server) -> Serve:
    """A server that listens."""
    settings = {
        "SOJOURN_MIRROR": mirror.unix,
        # So that what stands before a snapshot, and is therefore in no mirror, is there too.
        "SOJOURN_SNAPSHOT_INTERVAL_S": "0.5",
        "SOJOURN_SNAPSHOT_JOURNAL_BYTES_MIN": "2048",
    }
    log = folder / "serve.log"
    server = stack.enter_context(serve(folder / "data", "--port", str(port), log=log, env=settings))
    assert server.listening, server.said
    return server


async def lose(folder: Path, mirror: Server, sessions: int, kills: int, rng: random.Random) -> dict[str, Any]:
    """The folder, so many times, under so many reporting sessions."""
    limits = httpx2.Limits(max_connections=100, max_keepalive_connections=100)
    back_s: list[float] = []
    wrong: list[str] = []
    lost_events = 0
    async with httpx2.AsyncClient(timeout=DEADLINE_S, limits=limits) as client:
        with ExitStack() as stack:
            server = await asyncio.to_thread(_start, stack, folder, 0, mirror)
            port = int(server.url.rsplit(":", 1)[1])
            world = World(f"{server.url}/api/v1", client)
            reporters = []
            for number in range(sessions):
                created = await client.post(
                    f"{world.url}/sessions", json={"plan": "prove", "title": str(number)}
                )
                session_id = created.json()["session_id"]
                started = await client.post(
                    f"{world.url}/sessions/{session_id}/commands", json={"type": "session.start"}
                )
                assert started.status_code == 200, started.text
                reporters.append(Reporter(session_id, random.Random(rng.random())))
            for round_ in range(kills):
                async with asyncio.TaskGroup() as tasks:
                    for reporter in reporters:
                        reporter.round, reporter.n = round_, 0
                        tasks.create_task(reporter.report(world))
                    await await_until(lambda: all(reporter.n > 10 for reporter in reporters), DEADLINE_S)
                    await asyncio.sleep(rng.uniform(0.0, 1.5))
                    await await_until(lambda: any(reporter.in_flight for reporter in reporters))
                    server.process.send_signal(signal.SIGKILL)
                    await asyncio.to_thread(server.process.wait)
                await asyncio.to_thread(shutil.rmtree, folder / "data")
                server = await asyncio.to_thread(_start, stack, folder, port, mirror)
                listening_s = time.monotonic()
                await _all_there(world, server, reporters)
                back_s.append(time.monotonic() - listening_s)
                for reporter in reporters:
                    found, lost = await _check(world, reporter)
                    wrong += found
                    lost_events += lost
                print(f"  loss {round_ + 1}/{kills}: {back_s[-1]:.2f} s, {len(wrong)} wrong", file=sys.stderr)
    figures = {
        "losses_of_the_folder": kills,
        "sessions": sessions,
        "acknowledged_mirrored": sum(len(reporter.kept) for reporter in reporters),
        "acknowledged_durable_only": sum(reporter.durable_only for reporter in reporters),
        "refused": sum(reporter.refused for reporter in reporters),
        "events_said_to_be_lost": lost_events,
        "listening_to_all_there_s_max": round(max(back_s), 2),
        "wrong": len(wrong),
        "wrong_first": wrong[:10],
    }
    return {"holds": not wrong and max(back_s) <= BACK_S_MAX, "figures": figures}


async def _all_there(world: World, server: Serve, reporters: list[Reporter]) -> None:
    """All sessions come, which are taken in one after the other while it serves."""

    async def there_or_ended(path: str) -> bool:
        return server.process.poll() is not None or await world.has(path)

    for reporter in reporters:
        await await_until(partial(there_or_ended, f"/sessions/{reporter.session_id}"), DEADLINE_S)
        assert server.process.poll() is None, server.said


async def _check(world: World, reporter: Reporter) -> tuple[list[str], int]:
    """What is wrong with a session that came back, and how many events it says are lost in all."""
    wrong = []
    path = f"/sessions/{reporter.session_id}"
    state, record = await world.get(f"{path}/state"), await world.get(path)
    missing = reporter.kept.keys() - state["results"].keys()
    if missing:
        wrong.append(
            f"{reporter.session_id}: {len(missing)} of {len(reporter.kept)} mirrored results, {sorted(missing)[:3]}"
        )
    if reporter.kept and state["seq"] < max(reporter.kept.values()):
        wrong.append(
            f"{reporter.session_id}: at {state['seq']}, mirrored up to {max(reporter.kept.values())}"
        )
    events = await _events(world, reporter.session_id)
    lost = {seq for loss in record["losses"] for seq in range(loss["first_seq"], loss["last_seq"] + 1)}
    there = {event["seq"] for event in events}
    if there | lost != set(range(1, state["seq"] + 1)):
        gone = sorted(set(range(1, state["seq"] + 1)) - there - lost)
        wrong.append(
            f"{reporter.session_id}: {len(gone)} events are neither there nor said to be lost: {gone[:5]}"
        )
    again = await world.client.post(
        f"{world.url}{path}/commands?ack=mirrored",
        json={"type": "log.append", "stream": "stdout", "text": "it goes on"},
    )
    if again.status_code != 200:
        wrong.append(f"{reporter.session_id} takes nothing: {again.text}")
    return wrong, len(lost)


async def _events(world: World, session_id: str) -> list[dict[str, Any]]:
    """The history, as far as it is there."""
    found: list[dict[str, Any]] = []
    while True:
        after = found[-1]["seq"] if found else 0
        answer = await world.client.get(
            f"{world.url}/sessions/{session_id}/events?limit=10000&after={after}",
            headers={"accept": "application/x-ndjson"},
        )
        assert answer.status_code == 200, answer.text
        page = [json.loads(line) for line in answer.text.splitlines()]
        found += page
        if len(page) < 10_000:
            return found
