"""Data folders with sessions in them, made by a real runtime; also one whose owner was killed.

Run as a program, `python -m tests.support.owner FOLDER`, it fills the folder, prints its session ids and kills itself:
the lock is left, the catalog is behind, nothing was closed.
"""

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from subprocess import run
from typing import Any

import anyio

from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


async def create(runtime: Runtime, **fields: Any) -> str:
    """A session that runs; its id."""
    record, _ = await runtime.create(read_create(fields))
    session_id: str = record["session_id"]
    await ask(runtime, session_id, type="session.start")
    return session_id


async def ask(runtime: Runtime, session_id: str, **command: Any) -> None:
    """One command, durable on return."""
    await runtime.ask(session_id, read_command(command))


async def record_cases(runtime: Runtime, session_id: str, cases: Iterable[tuple[str, str, float]]) -> None:
    """Results of (case id, outcome, seconds)."""
    for case_id, outcome, duration_s in cases:
        message = "assert 1 == 2" if outcome in ("failed", "error") else None
        await ask(
            runtime,
            session_id,
            type="result.record",
            case_id=case_id,
            outcome=outcome,
            duration_s=duration_s,
            message=message,
        )


async def fill(runtime: Runtime) -> list[str]:
    """Three sessions: two of plan `nightly` that have ended, the second worse, and one of plan `smoke` that runs."""
    first = await create(
        runtime, plan="nightly", title="first", environment={"python": "3.11"}, user_id="ann"
    )
    await record_cases(
        runtime, first, [("t::a", "passed", 0.1), ("t::b", "failed", 0.1), ("t::gone", "passed", 0.0)]
    )
    await ask(runtime, first, type="log.append", stream="stdout", text="\x1b[31mred\x1b[0m and \x1b[2Jwiped")
    await ask(runtime, first, type="session.complete", outcome="failed", exit_code=1)
    second = await create(runtime, plan="nightly", title="second", environment={"python": "3.13"})
    await record_cases(
        runtime, second, [("t::a", "failed", 0.1), ("t::b", "passed", 0.1), ("t::new", "skipped", 0.0)]
    )
    await ask(runtime, second, type="session.complete", outcome="failed", exit_code=1)
    third = await create(runtime, plan="smoke", title="third\nof\tthem")
    await ask(runtime, third, type="log.append", stream="stdout", text="still \u2028 running")
    return [first, second, third]


def killed_owner(folder: Path) -> list[str]:
    """Fill a folder and leave it as a SIGKILL leaves it; the session ids of `fill`."""
    done = run(
        [sys.executable, "-m", "tests.support.owner", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.split()


async def _main(folder: Path) -> None:
    async with Runtime.open(Settings(data_dir=folder, mirror="none")) as runtime:
        print(*await fill(runtime), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    anyio.run(_main, Path(sys.argv[1]))
