"""From SIGKILL of `sojourn serve` to the first answer of its successor (a session's state, read from the journal), with
10,000 live sessions and 20 events each. The ceiling is the same start with a single session: interpreter, imports, locks."""

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sojourn.actors.ports import Record
from sojourn.actors.session.codec import encode_events
from sojourn.actors.session.commands import KIND_BY_COMMAND, Create, Event, Start
from sojourn.actors.session.ids import new_session_id
from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from sojourn.runtime.stores.lock import FolderLock

from ..harness import Measured, Options, execute
from ..live import record_of, told, work_folder
from ..processes import Server, sojourn_serve

UNIT = "starts"
COMPARED = "elapsed_s"
WARM_UP = False
SESSIONS = 10_000
EVENTS = 18
ROW_RECORDS = 200


@contextmanager
def prepare(options: Options, loop: str) -> Iterator[Path]:
    """Two data folders, the catalog of each level with its journal."""
    with work_folder() as folder:
        for name, sessions in (("one", 1), ("many", options.sessions or SESSIONS)):

            async def fill(
                options: Options, data: Path = folder / name / "data", count: int = sessions
            ) -> None:
                await _fill(data, count)

            execute(fill, options, loop)
            with sojourn_serve(folder / name) as server:
                # A list is answered once everything that was durable before it is in the catalog.
                _get(server, "/sessions?limit=1")
        yield folder


async def _fill(data: Path, sessions: int) -> None:
    """Straight through the journal, in rows of 200 records."""
    FolderLock.acquire(data).release()
    journal = await SqliteJournal.open(data / "journal.db")
    now = datetime.now(UTC)
    ids = [new_session_id(now, number.to_bytes(10, "big")) for number in range(sessions)]
    for first in range(0, sessions, ROW_RECORDS):
        some = ids[first : first + ROW_RECORDS]
        beginning = [
            Event(now, None, Create(plan="bench", title="bench"), 1, "session.created"),
            Event(now, None, Start(), 2, "session.started"),
        ]
        await journal.append([Record(one, 1, 2, 1, encode_events(beginning)) for one in some])
    for n in range(1, EVENTS + 1):
        kind = KIND_BY_COMMAND[told(n).type].event
        for first in range(0, sessions, ROW_RECORDS):
            some = ids[first : first + ROW_RECORDS]
            await journal.append([record_of(one, n + 2, [told(n)], kind) for one in some])
    await journal.close()


def _get(server: Server, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/api/v1{path}", timeout=300) as answer:
        body: bytes = answer.read()
    return body


async def measure(options: Options) -> Measured:
    return start(options, "many", options.sessions or SESSIONS)


async def ceiling(options: Options) -> Measured:
    return start(options, "one", 1)


def start(options: Options, name: str, sessions: int) -> Measured:
    """Not async: nothing else runs meanwhile."""
    assert options.folder is not None
    folder = options.folder / name
    with sojourn_serve(folder) as killed:
        session_id = _some_session(killed)
        killed.kill()
        killed_at = time.perf_counter()
    with sojourn_serve(folder) as successor:
        listening_s = time.perf_counter() - killed_at
        _get(successor, f"/sessions/{session_id}/state")
        elapsed_s = time.perf_counter() - killed_at
        cpu_s = successor.cpu_s()
        rss_bytes = successor.rss_bytes()
    return Measured(
        operations=1,
        elapsed_s=elapsed_s,
        cpu_s=cpu_s,
        latencies_us=[elapsed_s * 1e6],
        processes_cpu_s={"server": cpu_s},
        more={"sessions": sessions, "listening_s": listening_s, "server_rss_bytes": rss_bytes},
    )


def _some_session(server: Server) -> str:
    """The newest: nothing of it is in memory after the kill."""
    session_id: str = json.loads(_get(server, "/sessions?limit=1"))["items"][0]["session_id"]
    return session_id
