"""SIGKILL of `serve` at random moments under reporting sessions: nothing acknowledged is lost or doubled, and a watcher
that reconnects by `Last-Event-ID` sees every event once, in order.

What a reporter was told is written to its own log outside the server before it goes on, and compared at the end with
what the server holds. A kill counts only when commands were in flight.
"""

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
from attrs import define, field

from ..support.serve import Serve, serve

SESSIONS = 20
WATCHERS = 5
DEADLINE_S = 30.0


@define(eq=False)
class Reporter:
    """One session's reporter: batches of one source, sent again until they are answered."""

    number: int
    session_id: str
    log: Path
    rng: random.Random
    n: int = 0
    acknowledged: int = 0
    in_flight: bool = False
    retried: int = 0

    @property
    def source(self) -> str:
        return f"prove-{self.number}"

    def next_batch(self) -> list[dict[str, Any]]:
        batch = []
        for _ in range(self.rng.choice((1, 1, 3, 20))):
            self.n += 1
            body: dict[str, Any] = self.rng.choice(
                (
                    {
                        "type": "log.append",
                        "stream": "stdout",
                        "text": f"line {self.n} " + "x" * self.rng.randrange(200),
                    },
                    {"type": "progress.report", "done": self.n},
                    {
                        "type": "result.record",
                        "case_id": f"c{self.n % 50}",
                        "outcome": "passed",
                        "duration_s": 0.1,
                    },
                )
            )
            batch.append({**body, "source": self.source, "n": self.n})
        return batch

    async def report(self, world: "World") -> None:
        with self.log.open("a") as log:
            while not world.stopping:
                batch = self.next_batch()
                for outcome in await self.deliver(world, batch):
                    if not outcome["ok"]:
                        raise AssertionError(f"{self.session_id} refused {outcome}")
                    log.write(json.dumps([outcome["n"], outcome["seq"], outcome["duplicate"]]) + "\n")
                    self.acknowledged += 1
                log.flush()
                os.fsync(log.fileno())

    async def deliver(self, world: "World", batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        body = "\n".join(map(json.dumps, batch)).encode()
        while True:
            try:
                self.in_flight = True
                answer = await world.client.post(
                    f"{world.url}/sessions/{self.session_id}/commands",
                    content=body,
                    headers={"content-type": "application/x-ndjson"},
                )
                if answer.status_code == 200:
                    return [json.loads(line) for line in answer.text.splitlines()]
                if answer.status_code not in (429, 503):
                    raise AssertionError(f"{answer.status_code}: {answer.text}")
            except httpx2.TransportError:
                self.retried += 1
            finally:
                self.in_flight = False
            await world.up.wait()


@define(eq=False)
class Watcher:
    """An SSE client of one session, with what it saw."""

    session_id: str
    seen: list[int] = field(factory=list)
    last_id: str = "0.0"
    reconnects: int = 0

    async def watch(self, world: "World") -> None:
        while True:
            try:
                async with world.client.stream(
                    "GET",
                    f"{world.url}/sessions/{self.session_id}/stream?until=end",
                    headers={"last-event-id": self.last_id},
                ) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("id:"):
                            self.last_id = line[3:].strip()
                        elif line.startswith("event:"):
                            kind = line[6:].strip()
                            if kind == "rewound":
                                raise AssertionError(f"{self.session_id} was rewound")
                        elif line.startswith("data:"):
                            self.seen.append(json.loads(line[5:])["seq"])
                            if kind == "session.completed":
                                return
            except httpx2.TransportError:
                self.reconnects += 1
            await world.up.wait()


@define(eq=False)
class World:
    url: str
    client: httpx2.AsyncClient
    up: asyncio.Event = field(factory=asyncio.Event)
    stopping: bool = False


def prove(rng: random.Random) -> dict[str, Any]:
    """KILLS kills (20)."""
    kills = int(os.environ.get("KILLS") or 20)
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as folder:
        return asyncio.run(_prove(Path(folder), kills, rng))


def _start(stack: ExitStack, folder: Path, port: int) -> Serve:
    server = stack.enter_context(serve(folder / "data", "--port", str(port), log=folder / "serve.log"))
    assert server.listening, server.said
    return server


async def _prove(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    limits = httpx2.Limits(max_connections=100, max_keepalive_connections=100)
    async with httpx2.AsyncClient(timeout=httpx2.Timeout(DEADLINE_S, read=None), limits=limits) as client:
        with ExitStack() as stack:
            server = await asyncio.to_thread(_start, stack, folder, 0)
            port = int(server.url.rsplit(":", 1)[1])
            world = World(f"{server.url}/api/v1", client)
            world.up.set()
            reporters = []
            for number in range(SESSIONS):
                created = await client.post(
                    f"{world.url}/sessions", json={"plan": "prove", "title": str(number)}
                )
                session_id = created.json()["session_id"]
                await client.post(
                    f"{world.url}/sessions/{session_id}/commands", json={"type": "session.start"}
                )
                log = folder / f"acknowledged-{number}.ndjson"
                reporters.append(Reporter(number, session_id, log, random.Random(rng.random())))
            watchers = [Watcher(reporter.session_id) for reporter in reporters[:WATCHERS]]
            watching = [asyncio.create_task(watcher.watch(world)) for watcher in watchers]
            reporting = [asyncio.create_task(reporter.report(world)) for reporter in reporters]
            done = 0
            while done < kills:
                before = sum(reporter.acknowledged for reporter in reporters)
                while sum(reporter.acknowledged for reporter in reporters) < before + SESSIONS:
                    await asyncio.sleep(0.01)
                    _raise_ended(reporting)
                await asyncio.sleep(rng.uniform(0.0, 0.7))
                if not any(reporter.in_flight for reporter in reporters):
                    continue
                world.up.clear()
                server.process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(server.process.wait)
                done += 1
                print(f"  kill {done}/{kills}", file=sys.stderr)
                server = await asyncio.to_thread(_start, stack, folder, port)
                world.up.set()
            world.stopping = True
            await asyncio.wait_for(asyncio.gather(*reporting), DEADLINE_S)
            for reporter in reporters:
                complete = {"type": "session.complete", "outcome": "passed"}
                await client.post(f"{world.url}/sessions/{reporter.session_id}/commands", json=complete)
            await asyncio.wait_for(asyncio.gather(*watching), DEADLINE_S)
            checked = [await check(world, reporter) for reporter in reporters]
    figures = {
        "kills": done,
        "sessions": SESSIONS,
        "acknowledged": sum(reporter.acknowledged for reporter in reporters),
        "sent_again": sum(reporter.retried for reporter in reporters),
        "lost": sum(one["lost"] for one in checked),
        "doubled": sum(one["doubled"] for one in checked),
        "misplaced": sum(one["misplaced"] for one in checked),
        "seq_gaps": sum(one["seq_gaps"] for one in checked),
        "watchers": WATCHERS,
        "watcher_reconnects": sum(watcher.reconnects for watcher in watchers),
        "watched_events": sum(len(watcher.seen) for watcher in watchers),
        "watchers_out_of_order_or_gapped": sum(
            watcher.seen != list(range(1, one["events"] + 1))
            for watcher, one in zip(watchers, checked, strict=False)
        ),
    }
    bad = ("lost", "doubled", "misplaced", "seq_gaps", "watchers_out_of_order_or_gapped")
    return {"holds": not any(figures[name] for name in bad) and done == kills, "figures": figures}


def _raise_ended(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def check(world: World, reporter: Reporter) -> dict[str, int]:
    """What the server holds of a session, against what its reporter was told."""
    answer = await world.client.get(
        f"{world.url}/sessions/{reporter.session_id}/events?limit=10000",
        headers={"accept": "application/x-ndjson"},
    )
    events = [json.loads(line) for line in answer.text.splitlines()]
    while len(events) and len(events) % 10_000 == 0:
        more = await world.client.get(
            f"{world.url}/sessions/{reporter.session_id}/events?limit=10000&after={events[-1]['seq']}",
            headers={"accept": "application/x-ndjson"},
        )
        if not more.text:
            break
        events += [json.loads(line) for line in more.text.splitlines()]
    held: dict[int, list[int]] = {}
    for event in events:
        if event["cause"] is not None and event["cause"].get("source") == reporter.source:
            held.setdefault(event["cause"]["n"], []).append(event["seq"])
    told = [json.loads(line) for line in reporter.log.read_text().splitlines()]
    return {
        "events": len(events),
        "lost": sum(n not in held for n, _, _ in told),
        "doubled": sum(len(seqs) > 1 for seqs in held.values()),
        # A repeated command is answered with its source's last seq, which is its own or a later one.
        "misplaced": sum(n in held and seq != held[n][0] and not duplicate for n, seq, duplicate in told),
        "seq_gaps": sum(event["seq"] != seq for seq, event in enumerate(events, 1)),
    }
