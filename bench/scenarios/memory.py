"""Live sessions with 20 events each in one process (10,000): `bytes_a_session` is the growth of resident memory, each
measured in a process of its own. The ceiling is the folded states alone, without kernel, journal index or catalog."""

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

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
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.telemetry import configure_logging
from sojourn.runtime.tuning import tune_process

from ..harness import Measured, Options, Stopwatch

UNIT = "events"
SESSIONS = 10_000
EVENTS = 20


async def measure(options: Options) -> Measured:
    return await _in_a_process("live", options)


async def ceiling(options: Options) -> Measured:
    return await _in_a_process("states", options)


async def _in_a_process(what: str, options: Options) -> Measured:
    sessions = options.sessions or SESSIONS
    done = subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
        [sys.executable, "-m", "bench.scenarios.memory", what, str(sessions)],
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)
    return Measured(
        operations=sessions * EVENTS,
        elapsed_s=found["elapsed_s"],
        cpu_s=found["cpu_s"],
        more={"sessions": sessions, "bytes_a_session": found["grown_bytes"] / sessions},
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
    with TemporaryDirectory(prefix="sojourn-bench-", dir=Path.cwd()) as folder:
        async with Runtime.open(
            Settings(data_dir=Path(folder), passivate_after_s=3600.0, mirror="none")
        ) as runtime:

            async def session(number: int) -> None:
                record, _ = await runtime.create(
                    Command("session.create", Create(plan="bench", title=f"s{number}"))
                )
                session_id = record["session_id"]
                await runtime.ask(session_id, Command("session.start", Start()))
                for n, command in enumerate(commands(number), 1):
                    command.source, command.n = "rec-0123456789abcdef", n
                    await runtime.ask(session_id, command)

            await session(0)
            before = _resident_bytes()
            with Stopwatch() as watch:
                for first in range(1, sessions + 1, 256):
                    await asyncio.gather(*[session(n) for n in range(first, min(first + 256, sessions + 1))])
            return {
                "grown_bytes": _resident_bytes() - before,
                "elapsed_s": watch.elapsed_s,
                "cpu_s": watch.cpu_s,
            }


async def _states(sessions: int) -> dict[str, float]:
    limits, now, kept = Limits(), datetime.now(UTC), []
    before = _resident_bytes()
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
    return {"grown_bytes": _resident_bytes() - before, "elapsed_s": watch.elapsed_s, "cpu_s": watch.cpu_s}


def _resident_bytes() -> int:
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's resident memory")


if __name__ == "__main__":
    configure_logging(level="warning")  # the answer alone goes to standard output
    tune_process()
    run = {"live": _live, "states": _states}[sys.argv[1]]
    print(json.dumps(asyncio.run(run(int(sys.argv[2])))))
