"""Asks answered once their event is synced to the journal, one client a session (256), against a skeleton of the same
envelope, codec, futures and group commits into the same journal, without kernel, session state or deduplication."""

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from sojourn.actors.kernel.envelope import Envelope
from sojourn.actors.kernel.park import Gate, parking
from sojourn.actors.ports import Record
from sojourn.actors.session.codec import encode_events
from sojourn.actors.session.commands import Command, Create, Event, ReportProgress, SourceCause, Start
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.journal_sqlite import SqliteJournal

from ..harness import Measured, Options, Stopwatch

UNIT = "asks"
OPERATIONS = 100_000
SESSIONS = 256


def progress(n: int) -> Command:
    """What every client asks: a progress report, safe to send again."""
    return Command("progress.report", ReportProgress(done=n, total=1_000_000), None, "", "bench", n)


async def measure(options: Options) -> Measured:
    sessions = options.sessions or SESSIONS
    each = max(1, (options.operations or OPERATIONS) // sessions)
    latencies: list[float] = []
    with TemporaryDirectory(prefix="sojourn-bench-", dir=Path.cwd()) as folder:
        async with Runtime.open(Settings(data_dir=Path(folder), mirror="none")) as runtime:
            ids = [await new_session(runtime) for _ in range(sessions)]

            async def client(session_id: str) -> None:
                ask = runtime.ask
                for n in range(1, each + 1):
                    began = time.perf_counter()
                    await ask(session_id, progress(n))
                    latencies.append((time.perf_counter() - began) * 1e6)

            before = runtime.statistics().commit
            with Stopwatch() as watch:
                await asyncio.gather(*[client(session_id) for session_id in ids])
            commit = runtime.statistics().commit
    return Measured(
        operations=each * sessions,
        elapsed_s=watch.elapsed_s,
        cpu_s=watch.cpu_s,
        latencies_us=latencies,
        more={"events_per_commit": (commit.events - before.events) / (commit.commits - before.commits)},
    )


async def new_session(runtime: Runtime) -> str:
    """A running session's id."""
    record, _ = await runtime.create(Command("session.create", Create(plan="bench", title="bench")))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, Command("session.start", Start()))
    return session_id


async def ceiling(options: Options) -> Measured:
    sessions = options.sessions or SESSIONS
    each = max(1, (options.operations or OPERATIONS) // sessions)
    latencies: list[float] = []
    park, gate, queue = parking(), Gate(), deque[tuple[str, int, Envelope]]()
    with TemporaryDirectory(prefix="sojourn-bench-", dir=Path.cwd()) as folder:
        journal = await SqliteJournal.open(Path(folder) / "journal.db")

        async def writer() -> None:
            while True:
                await gate.wait()
                while queue:
                    group = list(queue)
                    queue.clear()
                    now = datetime.now(UTC)
                    records = []
                    for session_id, seq, envelope in group:
                        command: Command = envelope.message
                        cause = SourceCause(1, command.n, "bench")
                        event = Event(now, cause, command.body, seq, "progress.reported")
                        records.append(Record(session_id, seq, 1, 1, encode_events([event])))
                    await journal.append(records)
                    for _, seq, envelope in group:
                        assert envelope.reply is not None
                        envelope.reply.set_result(seq)

        async def client(session_id: str) -> None:
            for n in range(1, each + 1):
                began = time.perf_counter()
                reply = park()
                queue.append((session_id, n, Envelope(progress(n), 256, reply, False, False)))
                gate.wake()
                await reply
                latencies.append((time.perf_counter() - began) * 1e6)

        writing = asyncio.create_task(writer())
        with Stopwatch() as watch:
            await asyncio.gather(*[client(f"sess_{number:032x}") for number in range(sessions)])
        writing.cancel()
        await journal.close()
    return Measured(
        operations=each * sessions, elapsed_s=watch.elapsed_s, cpu_s=watch.cpu_s, latencies_us=latencies
    )
