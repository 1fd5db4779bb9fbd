"""Sessions that begin, report, end and are followed by others, at a server that ends and starts again all the while.

What a reporter was told is written to its own log, and synced, before it goes on.
"""

import asyncio
import hashlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
from attrs import define, field

from ..support.power import end_with_parent
from ..support.reporting import some_command

SESSIONS = 50
SETTLED_S = 180.0


@define(eq=False)
class World:
    """The server as it is now, and every session there ever was. Its data folder is `data`; what reporters were told and what
    the server said lie in `folder`."""

    url: str
    client: httpx2.AsyncClient
    folder: Path
    data: Path
    up: asyncio.Event = field(factory=asyncio.Event)
    stopping: bool = False
    told: dict[str, list[tuple[int, int, bool]]] = field(factory=dict)
    ended: set[str] = field(factory=set)
    acknowledged: int = 0
    in_flight: int = 0
    sent_again: int = 0

    async def post(self, path: str, body: bytes, kind: str = "application/json") -> httpx2.Response:
        """Until it is answered by something other than a server that is away or too busy."""
        first = True
        while True:
            await self.up.wait()
            try:
                self.in_flight += 1
                self.sent_again += not first
                answer = await self.client.post(
                    f"{self.url}{path}", content=body, headers={"content-type": kind}
                )
            except httpx2.TransportError:
                first = False
                continue
            finally:
                self.in_flight -= 1
            first = False
            if answer.status_code not in (429, 503, 507):
                return answer
            await asyncio.sleep(0.02)


async def live(world: World, number: int, rng: random.Random) -> None:
    """One reporter: a session after the other."""
    log = (world.folder / f"acknowledged-{number}.ndjson").open("a")
    round_ = 0
    while not world.stopping:
        round_ += 1
        create = {"plan": "prove", "title": f"{number}.{round_}", "command_id": f"create-{number}-{round_}"}
        answer = await world.post("/sessions", json.dumps(create).encode())
        assert answer.status_code == 201, answer.text
        session_id = answer.json()["session_id"]
        told = world.told[session_id] = []
        n = 0
        batches = [[{"type": "session.start"}]]
        batches += [
            [some_command(rng, 400) for _ in range(rng.choice((1, 1, 3, 20)))]
            for _ in range(rng.randrange(5, 60))
        ]
        batches.append([{"type": "session.complete", "outcome": "passed"}])
        if rng.random() < 0.5:
            batches.append([{"type": "session.seal"}])
        for batch in batches:
            lines = []
            for command in batch:
                n += 1
                lines.append(json.dumps({**command, "source": "prove", "n": n}))
            answer = await world.post(
                f"/sessions/{session_id}/commands", "\n".join(lines).encode(), "application/x-ndjson"
            )
            assert answer.status_code == 200, (session_id, answer.status_code, answer.text)
            for outcome in map(json.loads, answer.text.splitlines()):
                if not outcome["ok"]:
                    # The runtime seals by itself after a moment, and may have been quicker.
                    assert outcome["error"]["code"] == "sealed", outcome
                    assert "session.seal" in lines[0], outcome
                    continue
                told.append((outcome["n"], outcome["seq"], outcome["duplicate"]))
                log.write(json.dumps([session_id, outcome["n"], outcome["seq"]]) + "\n")
                world.acknowledged += 1
            log.flush()
            os.fsync(log.fileno())
        world.ended.add(session_id)
    log.close()


def spawn(world: World, port: int, *arguments: str) -> "subprocess.Popen[bytes]":
    with (world.folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.killing",
                str(world.data),
                str(port),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Here and not in the program, because this process may be gone before that has begun.
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
        )


async def start(world: World, port: int, *arguments: str) -> "subprocess.Popen[bytes]":
    """A server, once it answers or has been killed before that."""
    process = spawn(world, port, *arguments)
    await answering(world, process)
    return process


async def answering(world: World, process: "subprocess.Popen[bytes]") -> None:
    """Until it answers, or has been killed before that."""
    while process.poll() is None:
        try:
            if (await world.client.get(f"{world.url.removesuffix('/api/v1')}/healthz")).status_code == 200:
                world.up.set()
                break
        except httpx2.TransportError:
            await asyncio.sleep(0.02)


async def settle(world: World) -> float:
    """Waits until every session is archived."""
    began = time.monotonic()
    while True:
        left, cursor = 0, ""
        while True:
            answer = await world.client.get(f"{world.url}/sessions?limit=1000{cursor}")
            page = answer.json()
            left += sum(record["tier"] != "archive" for record in page["items"])
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        if not left:
            return time.monotonic() - began
        if time.monotonic() - began > SETTLED_S:
            raise AssertionError(f"{left} sessions are not archived after {SETTLED_S} s")
        await asyncio.sleep(0.5)


async def check(world: World, session_id: str) -> dict[str, int]:
    answer = await world.client.get(
        f"{world.url}/sessions/{session_id}/events?limit=10000", headers={"accept": "application/x-ndjson"}
    )
    assert answer.status_code == 200, (session_id, answer.text)
    events = [json.loads(line) for line in answer.text.splitlines()]
    held: dict[int, list[int]] = {}
    for found in events:
        if found["cause"] is not None and found["cause"].get("source") == "prove":
            held.setdefault(found["cause"]["n"], []).append(found["seq"])
    told = world.told[session_id]
    return {
        "lost": sum(n not in held for n, _, _ in told),
        "doubled": sum(len(seqs) > 1 for seqs in held.values()),
        # A repeated command is answered with its source's last seq, which is its own or a later one.
        "misplaced": sum(n in held and seq != held[n][0] and not duplicate for n, seq, duplicate in told),
        "seq_gaps": sum(found["seq"] != seq for seq, found in enumerate(events, 1))
        + (events[-1]["type"] != "session.sealed"),
    }


def tiers(data: Path, sessions: dict[str, Any]) -> dict[str, int]:
    """How many sessions are not in the archive alone, by its files and by the catalog."""
    recent = {path.name for path in (data / "sessions").glob("*/*")}
    archived = {path.parent.name for path in (data / "archive").glob("sessions/*/*/manifest.json")}
    with sqlite3.connect(f"file:{data / 'catalog.db'}?mode=ro", uri=True) as catalog:
        rows = dict(catalog.execute("SELECT session_id, tier FROM session").fetchall())
    catalog.close()
    for path in (data / "sessions").rglob("*"):
        if path.is_file():
            print(f"  left: {path.relative_to(data)}", file=sys.stderr)
    return {
        "not_archived": len(sessions.keys() - archived),
        "in_two_places": len(sessions.keys() & recent),
        "not_so_in_the_catalog": sum(rows.get(session_id) != "archive" for session_id in sessions),
    }


def fingerprint(data: Path) -> dict[str, str]:
    """Every file of sessions and archive, and every row of the catalog."""
    found = {
        path.relative_to(data).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("sessions", "archive")
        for path in (data / part).rglob("*")
        if path.is_file()
    }
    with sqlite3.connect(f"file:{data / 'catalog.db'}?mode=ro", uri=True) as catalog:
        for row in catalog.execute("SELECT * FROM session"):
            found[f"row {row[0]}"] = hashlib.sha256(repr(row).encode()).hexdigest()
    catalog.close()
    return found
