"""Memory of live sessions with 20 events each (10,000), by the growth of resident memory, in a process of its own:
`bytes_a_session` at rest in memory; `active_bytes` while each has an ask under way; `passivated_bytes` once all have left
memory beside as many that had left before, when the journal's index is what remains: of what the interpreter allocated
then, `passivated_index_bytes` are the index's and `passivated_beyond_bytes` all else's, by tracemalloc over 3,000 sessions;
the rest of the growth is memory that the allocator keeps. The ceiling is the folded states alone."""

import asyncio
import gc
import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import anyio

from sojourn.actors.session.commands import (
    AppendLog,
    Command,
    Create,
    RecordResult,
    ReportProgress,
    SampleResources,
    Start,
)
from sojourn.actors.session.core import apply, decide
from sojourn.actors.session.model import CaseOutcome, Limits, SessionState
from sojourn.runtime.telemetry import configure_logging
from sojourn.runtime.tuning import tune_process

from ..environment import ROOT
from ..harness import BrokenOff, Measured, Options, Stopwatch
from ..live import SOURCE, at_once, catalog_written, open_runtime, progress
from ..memory import resident_bytes

T = TypeVar("T")

UNIT = "events"
COMPARED = "bytes_a_session"
WARM_UP = False
SESSIONS = 10_000
EVENTS = 20
TRACED_SESSIONS = 3_000  # tracing takes three times as long
INDEX_FILES = (
    "journal_index.py",
    "journal_rows.py",
    "ids.py",
)  # the last one makes the session's name, its key there
# Longer than filling takes; then the runtime's own passivation is hurried.
PASSIVATE_AFTER_S = 600.0


async def measure(options: Options) -> Measured:
    measured = _in_a_process("live", options.sessions or SESSIONS)
    measured.more.update(_in_a_process("traced", min(options.sessions or SESSIONS, TRACED_SESSIONS)).more)
    measured.more["sessions"] = options.sessions or SESSIONS
    return measured


async def ceiling(options: Options) -> Measured:
    return _in_a_process("states", options.sessions or SESSIONS)


def _in_a_process(what: str, sessions: int) -> Measured:
    """Not async: nothing else runs meanwhile."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.scenarios.memory", what, str(sessions)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise BrokenOff(f"the measured process ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    found = json.loads(done.stdout)
    return Measured(
        operations=sessions * EVENTS,
        elapsed_s=found["elapsed_s"],
        cpu_s=found["cpu_s"],
        more={"sessions": sessions} | {name: found[name] / sessions for name in found if "bytes" in name},
    )


def commands(session: int) -> Iterator[Command]:
    """What a session of a test run is told: 18 events after its creation and start."""
    for n in range(1, EVENTS - 1):
        match n % 6:
            case 0 | 1 | 2:
                case_id = f"tests.test_module_{session % 97}::test_case_{n}"
                yield Command(
                    "result.record",
                    RecordResult(case_id=case_id, duration_s=0.01, outcome=CaseOutcome.PASSED),
                )
            case 3 | 4:
                yield Command("log.append", AppendLog(stream="stdout", text=f"session {session} line {n}"))
            case _ if n == 5:
                yield Command("progress.report", ReportProgress(done=n, total=EVENTS))
            case _:
                body = SampleResources(
                    cpu_s=1.0, processes=2, read_bytes=0, rss_bytes=1 << 20, written_bytes=0
                )
                yield Command("resource.sample", body)


async def _live(sessions: int) -> dict[str, float]:
    async with open_runtime(passivate_after_s=PASSIVATE_AFTER_S) as runtime:
        ids: list[str] = []

        async def session(number: int) -> None:
            record, _ = await runtime.create(
                Command("session.create", Create(plan="bench", title=f"s{number}"))
            )
            session_id = record["session_id"]
            await runtime.ask(session_id, Command("session.start", Start()))
            for n, command in enumerate(commands(number), 1):
                command.source, command.n = SOURCE, n
                await runtime.ask(session_id, command)
            ids.append(session_id)

        await session(0)
        ids.clear()
        before = resident_bytes()
        with Stopwatch() as watch:
            await at_once(session, sessions)
        resting = resident_bytes() - before
        asks = [asyncio.create_task(runtime.ask(session_id, progress(EVENTS - 1))) for session_id in ids]
        await asyncio.sleep(0)  # each has taken its place in a mailbox
        active = resident_bytes() - before
        await asyncio.gather(*asks)
        asks.clear()
    before, after = await _passivated(sessions, resident_bytes)
    return {
        "bytes_a_session": resting,
        "active_bytes": active,
        "passivated_bytes": after - before,
        "elapsed_s": watch.elapsed_s,
        "cpu_s": watch.cpu_s,
    }


async def _traced(sessions: int) -> dict[str, float]:
    """What the interpreter has allocated, and not freed, for sessions that have left memory."""
    tracemalloc.start()
    before, after = await _passivated(sessions, _allocated)
    index = sum(after[name] - before[name] for name in INDEX_FILES)
    beyond = after.total() - before.total() - index
    return {
        "passivated_index_bytes": index,
        "passivated_beyond_bytes": beyond,
        "elapsed_s": 0.0,
        "cpu_s": 0.0,
    }


def _allocated() -> Counter[str]:
    """By name of the file that allocated it."""
    gc.collect()
    found = Counter[str]()
    for one in tracemalloc.take_snapshot().statistics("filename"):
        found[Path(one.traceback[0].filename).name] += one.size
    return found


async def _passivated(sessions: int, look: Callable[[], T]) -> tuple[T, T]:
    """Filled as before, in a runtime that lets sessions go at once: what is seen when `sessions` have left memory, and when as
    many again have. What is taken once, and not for each, is there by then: tasks that wait, the room of tables."""
    async with open_runtime(passivate_after_s=0.5) as runtime:

        async def session(number: int) -> None:
            record, _ = await runtime.create(
                Command("session.create", Create(plan="bench", title=f"s{number}"))
            )
            await runtime.ask(record["session_id"], Command("session.start", Start()))
            lines = list(commands(number))
            for n, command in enumerate(lines, 1):
                command.source, command.n = SOURCE, n
            await runtime.ask_batch(record["session_id"], lines)

        async def fill() -> T:
            await at_once(session, sessions)
            tiering_alone = 1
            while runtime.statistics().kernel.actors > tiering_alone:
                await anyio.sleep(0.1)
            # Until then the public records of those who left are kept for the one, and their names for the other.
            await catalog_written(runtime)
            await runtime._snapshotter.write_due()  # within 30 s it would come by itself
            return look()

        return await fill(), await fill()


async def _states(sessions: int) -> dict[str, float]:
    limits, now, kept = Limits(), datetime.now(UTC), []
    before = resident_bytes()
    with Stopwatch() as watch:
        for number in range(sessions):
            state = SessionState(session_id=f"sess_{number:032x}")
            first = (
                Command("session.create", Create(plan="bench", title=f"s{number}")),
                Command("session.start", Start()),
            )
            for command in (*first, *commands(number)):
                for event in decide(state, command, now=now, limits=limits):
                    apply(state, event, limits=limits)
            kept.append(state)
    return {
        "bytes_a_session": resident_bytes() - before,
        "elapsed_s": watch.elapsed_s,
        "cpu_s": watch.cpu_s,
    }


if __name__ == "__main__":
    configure_logging(level="warning")  # the answer alone goes to standard output
    tune_process()
    run = {"live": _live, "states": _states, "traced": _traced}[sys.argv[1]]
    print(json.dumps(asyncio.run(run(int(sys.argv[2])))))
