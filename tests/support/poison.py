"""Poison: results that crash their session, or its process, as long as a fuse is armed.

Run as a program, `python -m tests.support.poison FOLDER [armed]`, it owns the folder, makes the session of `command_id`
"victim" where there is none, and asks it to record a result as (source, n) = ("rep", 1), which kills the process while
the fuse is armed; else it prints what came of it.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
from attrs import evolve

from sojourn.actors.errors import CallerError
from sojourn.actors.session.commands import Command
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.telemetry import configure_logging


class Fuse(int):
    """A limit. While it is armed, comparing with it blows up: on results, `decide` does so for every new case; on the ids
    that are remembered, `apply` does for every event with an id."""

    armed = False
    deadly = False

    def __le__(self, other: int) -> bool:
        self._burn()
        return int(self) <= other

    def __lt__(self, other: int) -> bool:
        self._burn()
        return int(self) < other

    def _burn(self) -> None:
        if self.armed and self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.armed:
            raise RuntimeError("boom")


def with_fuse(settings: Settings, limit: str = "results_max") -> tuple[Settings, Fuse]:
    """Settings with a fuse as this limit, armed."""
    fuse = Fuse(1_000)
    fuse.armed = True
    return evolve(settings, limits=evolve(settings.limits, **{limit: fuse})), fuse


def result(case_id: str = "case", **identity: Any) -> Command:
    """A result; give `command_id`, or `source` and `n`, or neither."""
    return read_command(
        {"type": "result.record", "case_id": case_id, "outcome": "passed", "duration_s": 1.0, **identity}
    )


async def main(data_dir: Path, armed: bool) -> None:
    configure_logging()
    settings, fuse = with_fuse(Settings(data_dir=data_dir))
    fuse.armed, fuse.deadly = False, True
    async with Runtime.open(settings) as runtime:
        record, _ = await runtime.create(read_create({"command_id": "victim"}))
        if record["status"] == "created":
            await runtime.ask(record["session_id"], read_command({"type": "session.start"}))
        print(record["session_id"], flush=True)
        fuse.armed = armed
        try:
            print(await runtime.ask(record["session_id"], result(source="rep", n=1)), flush=True)
        except CallerError as error:
            print(error.code, flush=True)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), sys.argv[2:] == ["armed"])
