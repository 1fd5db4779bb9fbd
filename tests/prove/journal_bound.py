"""A journal at its bound and 10,000 live sessions: from SIGKILL of the server to the first answer of its successor.

The journal is filled through the store itself, at once; a server with twice the bound brings the catalog level, is killed,
and the next one, with the default bound, has to read the whole journal and to begin compaction while it answers.
"""

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from sojourn.actors.ports import Record
from sojourn.actors.session.codec import encode_events
from sojourn.actors.session.commands import AppendLog, Create, Event, SourceCause, Start
from sojourn.actors.session.ids import new_session_id
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from sojourn.runtime.stores.lock import FolderLock

from ..support.serve import Serve, serve

SESSIONS = 10_000
ROUNDS = 5
ANSWER_S_MAX = 2.0
LEVEL_S = 300.0


def prove(rng: random.Random) -> dict[str, Any]:
    """SESSIONS live sessions, ROUNDS kills; every round asks one session for its state and sends another a command."""
    with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as folder:
        return asyncio.run(_prove(Path(folder), rng))


async def _prove(folder: Path, rng: random.Random) -> dict[str, Any]:
    data, bound = folder / "data", Settings().journal_bytes_max
    FolderLock.acquire(data).release()
    ids, size = await _fill(data, bound, rng)
    state_s, command_s, open_s = [], [], []
    for _ in range(ROUNDS):
        with ExitStack() as stack:
            roomy = {"SOJOURN_JOURNAL_BYTES_MAX": str(4 * bound)}
            server = await asyncio.to_thread(_start, stack, folder, roomy)
            await _level(server)
            server.process.send_signal(signal.SIGKILL)
            killed_at = time.perf_counter()
            await asyncio.to_thread(server.process.wait)
            successor = await asyncio.to_thread(_start, stack, folder, {})
            open_s.append(time.perf_counter() - killed_at)
            async with httpx2.AsyncClient(base_url=f"{successor.url}/api/v1", timeout=30) as client:
                answer = await client.get(f"/sessions/{rng.choice(ids)}/state")
                assert answer.status_code == 200, answer.text
                state_s.append(time.perf_counter() - killed_at)
                began = time.perf_counter()
                answer = await client.post(
                    f"/sessions/{rng.choice(ids)}/commands",
                    json={"type": "log.append", "stream": "stdout", "text": "after"},
                )
                assert answer.status_code == 200, answer.text
                command_s.append(time.perf_counter() - began)
            os.kill(successor.process.pid, signal.SIGKILL)
            await asyncio.to_thread(successor.process.wait)
            size = (data / "journal.db").stat().st_size
    figures = {
        "sessions": SESSIONS,
        "journal_bytes": size,
        "journal_bytes_max": bound,
        "kill_to_listening_s": [round(value, 2) for value in open_s],
        "kill_to_first_state_s": [round(value, 2) for value in state_s],
        "first_command_s": [round(value, 3) for value in command_s],
    }
    return {"holds": max(state_s) <= ANSWER_S_MAX, "figures": figures}


async def _fill(data: Path, bound: int, rng: random.Random) -> tuple[list[str], int]:
    """Sessions of a few events each, and log lines until the journal holds `bound`, in rows of 200 records."""
    journal = await SqliteJournal.open(data / "journal.db")
    now = datetime.now(UTC)
    ids = [new_session_id(now, rng.randbytes(10)) for _ in range(SESSIONS)]
    heads = dict.fromkeys(ids, 0)

    def record(session_id: str, *events: Event) -> Record:
        first = heads[session_id] + 1
        heads[session_id] += len(events)
        return Record(session_id, first, len(events), 1, encode_events(events))

    for start in range(0, SESSIONS, 200):
        await journal.append(
            [
                record(
                    session_id,
                    Event(now, None, Create(plan="bound", title=session_id[-6:]), 1, "session.created"),
                    Event(now, None, Start(), 2, "session.started"),
                )
                for session_id in ids[start : start + 200]
            ]
        )
    n = 0
    while journal.size_bytes < bound:
        n += 1
        for start in range(0, SESSIONS, 200):
            await journal.append(
                [
                    record(
                        session_id,
                        Event(
                            now,
                            SourceCause(1, n, "prove"),
                            AppendLog(stream="stdout", text="x" * 100),
                            heads[session_id] + 1,
                            "log.appended",
                        ),
                    )
                    for session_id in ids[start : start + 200]
                ]
            )
            if journal.size_bytes >= bound:
                break
    size = journal.size_bytes
    await journal.close()
    return ids, size


def _start(stack: ExitStack, folder: Path, env: dict[str, str]) -> Serve:
    server = stack.enter_context(serve(folder / "data", "--port", "0", log=folder / "serve.log", env=env))
    assert server.listening, server.said
    return server


async def _level(server: Serve) -> None:
    """Waits until the catalog lists every session."""
    deadline = time.monotonic() + LEVEL_S
    async with httpx2.AsyncClient(base_url=f"{server.url}/api/v1", timeout=LEVEL_S) as client:
        answer = await client.get("/sessions?limit=1")
        assert answer.status_code == 200, answer.text
        while json.loads(answer.text)["next"] is None and time.monotonic() < deadline:
            answer = await client.get("/sessions?limit=1")
