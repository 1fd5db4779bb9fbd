"""Runtimes and sessions for scenarios: what all of them open, create and ask in the same way."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sojourn.actors.ports import Record
from sojourn.actors.session.codec import encode_events
from sojourn.actors.session.commands import (
    AppendLog,
    Command,
    Complete,
    Create,
    Event,
    RecordResult,
    ReportProgress,
    SampleResources,
    SourceCause,
    Start,
)
from sojourn.actors.session.model import Ack, CaseOutcome, Outcome
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

SOURCE = "rec-0123456789abcdef"
AT_ONCE = 256


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for one measurement, here and not below /tmp: that may be memory, and a sync there costs nothing."""
    with TemporaryDirectory(prefix="sojourn-bench-", dir=Path.cwd()) as folder:
        yield Path(folder)


def settings(folder: Path, **changed: Any) -> Settings:
    """The defaults, without a mirror unless the scenario is about one."""
    return Settings(data_dir=folder, **({"mirror": "none"} | changed))


@asynccontextmanager
async def open_runtime(**changed: Any) -> AsyncIterator[Runtime]:
    """A runtime over a folder of its own. `changed`: settings that differ from the defaults."""
    with work_folder() as folder:
        async with Runtime.open(settings(folder, **changed)) as runtime:
            yield runtime


async def at_once(do: Callable[[int], Awaitable[None]], count: int, clients: int = AT_ONCE) -> None:
    """`do(0)` ... `do(count - 1)`, `clients` of them under way. The first error ends them all."""
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await do(number)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(clients, count)):
            tasks.create_task(client())


async def for_so_long(do: Callable[[int], Awaitable[int]], clients: int, duration_s: float) -> int:
    """`do(client)` by each client, again and again until so much time has passed; the sum of what they return. What is under way
    then is finished. The first error ends them all."""
    end, done = time.perf_counter() + duration_s, 0

    async def client(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            more = await do(number)
            done += more

    async with asyncio.TaskGroup() as tasks:
        for number in range(clients):
            tasks.create_task(client(number))
    return done


async def new_session(runtime: Runtime) -> str:
    """A running session's id."""
    record, _ = await runtime.create(Command("session.create", Create(plan="bench", title="bench")))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, Command("session.start", Start()))
    return session_id


async def new_sessions(runtime: Runtime, count: int) -> list[str]:
    """Ids of running sessions."""
    ids: list[str] = []

    async def one(number: int) -> None:
        ids.append(await new_session(runtime))

    await at_once(one, count)
    return ids


async def catalog_written(runtime: Runtime) -> None:
    """Returns once the catalog shows all sessions: what their creation still costs is none of what follows."""
    await runtime._projector.flush()  # within 5 s it would come by itself, in the midst of the measurement


def progress(n: int) -> Command:
    """A progress report, safe to send again."""
    return Command("progress.report", ReportProgress(done=n, total=1_000_000), None, "", SOURCE, n)


def told(n: int) -> Command:
    """The n-th thing that a reporter says of a test run: of twelve, five log lines, five results, a progress report
    and a resource sample."""
    match n % 12:
        case 0:
            return progress(n)
        case 1:
            body = SampleResources(
                cpu_s=n / 10, processes=2, read_bytes=n, rss_bytes=1 << 20, written_bytes=0
            )
            return Command("resource.sample", body, None, "", SOURCE, n)
        case 2 | 4 | 6 | 8 | 10:
            line = AppendLog(stream="stdout", text=f"tests/test_module.py::test_case_{n} PASSED in 0.01 s")
            return Command("log.append", line, None, "", SOURCE, n)
        case _:
            case_id = f"tests.test_module::test_case_{n}"
            result = RecordResult(case_id=case_id, duration_s=0.01, outcome=CaseOutcome.PASSED)
            return Command("result.record", result, None, "", SOURCE, n)


def completed(n: int) -> Command:
    """The end of a session."""
    return Command("session.complete", Complete(outcome=Outcome.PASSED), None, "", SOURCE, n)


def record_of(session_id: str, first_seq: int, commands: list[Command], event_type: str) -> Record:
    """What a slot of these commands becomes, without kernel or state: an encoded record for a journal."""
    now = datetime.now(UTC)
    events = [
        Event(now, SourceCause(1, command.n, SOURCE), command.body, seq, event_type)
        for seq, command in enumerate(commands, first_seq)
    ]
    return Record(session_id, first_seq, len(events), 1, encode_events(events))


async def closed_loop(runtime: Runtime, ids: list[str], each: int, *, ack: Ack = Ack.DURABLE) -> None:
    """One client a session, each `each` progress reports, one after the other."""

    async def client(number: int) -> None:
        session_id = ids[number]
        for n in range(1, each + 1):
            await runtime.ask(session_id, progress(n), ack=ack)

    await at_once(client, len(ids), clients=len(ids))


def numbers() -> Callable[[], int]:
    """Counts from 1."""
    return itertools.count(1).__next__
