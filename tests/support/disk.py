"""A runtime under reporting sessions whose disk fills up, or fails: the program, and the process that watches it.

`python -m tests.support.disk FOLDER` reads jobs from its standard input, JSON, one a line, and prints a result for each.
The watcher keeps what reporters were told, where no fault reaches; the runtime and its reporters are a child of it that
tells by a socket, and so by none of the system calls that are made to fail. A second child, without faults, then goes on
where the reporters broke off, and reads everything back.
"""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import structlog
from attrs import define, field

from sojourn.runtime.mirror_place import MirrorPlace
from sojourn.runtime.rebuild import rebuild_catalog
from sojourn.runtime.stores.archive import open_archive

from .disk_programs import PROGRAMS
from .disk_reporters import Talk, drain
from .killing import METHODS

CHILD_S = 240.0
# What the runtime imports as late as it opens a folder: here, so that no import is among the calls that fail.
PRELOADED = (rebuild_catalog, open_archive, MirrorPlace)
POINTS = tuple(
    f"{store}.{method}" for store, methods in METHODS.items() for method in methods if "delete" not in method
)


@define(eq=False)
class Watched:
    """What a child has said, and what reporters were told by all of them."""

    asked: list[list[int]] = field(factory=list)
    began: dict[tuple[int, int], str] = field(factory=dict)
    told: dict[str, list[tuple[int, int, bool]]] = field(factory=dict)
    said: dict[str, list[Any]] = field(factory=dict)

    def take(self, line: bytes) -> None:
        kind, *rest = json.loads(line)
        if kind == "asked":
            self.asked.append(rest)
        elif kind == "told":
            session_id, n, seq, duplicate = rest
            self.told.setdefault(session_id, []).append((n, seq, duplicate))
        elif kind == "began":
            number, round_, session_id = rest
            self.began[number, round_] = session_id
        else:
            self.said.setdefault(kind, []).append(rest[0] if len(rest) == 1 else rest)

    @property
    def acknowledged(self) -> int:
        return sum(map(len, self.told.values()))


def run_child(
    watched: Watched,
    program: str,
    folder: Path,
    *,
    inject: str | None = None,
    **options: Any,
) -> tuple[int | None, list[str]]:
    """Runs a program in a child until it ends, and takes in what it says.

    Args:
        inject: `SYSCALL:error=...:when=...`, for strace, which counts by thread from before the folder is opened.

    Returns:
        Its exit code, negative for a signal, None where it took so long that it was killed; and the calls that were made to fail.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(PROGRAMS[program], Talk(theirs), folder, options)
    theirs.close()
    tracer, log = None, folder / "strace.log"
    if inject is not None:
        tracer = _trace(pid, inject, log)
    ours.sendall(b"go")
    deadline = time.monotonic() + CHILD_S
    rest = b""
    code: int | None = None
    while True:
        readable, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        data = ours.recv(1 << 20)
        if not data:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            watched.take(line)
    ours.close()
    if tracer is None:
        return code, []
    tracer.wait(10)
    return code, [line for line in log.read_text(errors="replace").splitlines() if "(INJECTED)" in line]


def _trace(pid: int, inject: str, log: Path) -> "subprocess.Popen[str]":
    strace = shutil.which("strace")
    assert strace is not None, "strace is not installed"
    syscall = inject.split(":")[0]
    tracer = subprocess.Popen(
        [
            strace,
            "-f",
            "-y",
            "-o",
            str(log),
            "-e",
            f"trace={syscall}",
            "-e",
            f"inject={inject}",
            "-p",
            str(pid),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    assert "attached" in line, line
    return tracer


def _child(
    program: Callable[..., Awaitable[None]], talk: Talk, folder: Path, options: dict[str, Any]
) -> None:
    logged: Counter[str] = Counter()

    def count(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        logged[event["event"]] += 1
        error = event.get("exc_info")
        if isinstance(error, BaseException) and level != "debug":
            talk.say("traceback", event["event"], "".join(traceback.format_exception(error))[-3000:])
        raise structlog.DropEvent

    code = 1
    try:
        structlog.configure(processors=[count])
        assert talk.end.recv(2) == b"go"

        async def main() -> None:
            await program(talk, folder, **options)

        anyio.run(main)
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, the watcher is told
        talk.say("crashed", "".join(traceback.format_exception(error))[-4000:])
    finally:
        with suppress(OSError):
            talk.say("logged", logged)
        os._exit(code)


def run_job(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """One job, in an emptied folder: `kind` names the program, `inject` a fault for strace, the rest are its options."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    watched = Watched()
    began = time.monotonic()
    options = {name: value for name, value in job.items() if name not in ("kind", "inject")}
    program = job["kind"]
    injected: list[str] = []
    code: int | None
    if program == "starts":
        code = 0
        for number, leave in enumerate(options.pop("leave")):
            ended, _ = run_child(watched, program, folder, leave=leave, number=number, **options)
            drain(folder)
            if ended != (-signal.SIGKILL if number % 3 == 0 else 0):
                code = ended
    else:
        code, injected = run_child(watched, program, folder, inject=job.get("inject"), **options)
    acknowledged = watched.acknowledged
    verified = 0 if "seed" not in job else _verify(watched, folder, job["seed"])
    return {
        "job": job,
        "code": code,
        "injected": [*_files(injected)],
        "verified_code": verified,
        "acknowledged": acknowledged,
        "sessions": len(watched.began),
        "took_s": round(time.monotonic() - began, 2),
        "said": watched.said,
    }


def _verify(watched: Watched, folder: Path, seed: int) -> int | None:
    began = [(*numbers, session_id) for numbers, session_id in watched.began.items()]
    code, _ = run_child(
        watched, "verifies", folder, seed=seed, asked=watched.asked, began=began, told=watched.told
    )
    return code


def _files(calls: list[str]) -> Iterator[str]:
    """For each call that was made to fail: `SYSCALL KIND`, where the kind is of the file it was about."""
    for call in calls:
        syscall = re.sub(r"^\d+\s+(<\.\.\. )?", "", call).split("(")[0].split()[0]
        yield f"{syscall} {_kind(call)}"


def _kind(call: str) -> str:
    for pattern, kind in _KINDS:
        if re.search(pattern, call):
            return kind
    return "other"


_KINDS = (
    (r"journal\.db-wal", "journal log"),
    (r"journal\.db-shm", "journal shm"),
    (r"journal\.db", "journal file"),
    (r"catalog\.db-wal", "catalog log"),
    (r"catalog\.db-shm", "catalog shm"),
    (r"catalog\.db", "catalog file"),
    (r"/reserve", "reserve"),
    (r"/archive/", "archive"),
    (r"snapshot-", "snapshot"),
    (r"events-", "segment"),
    (r"manifest", "manifest"),
    (r"facts", "facts"),
    (r"/sessions/[^\"]*\.tmp-", "object"),
    (r"/sessions", "objects folder"),
    (r"/lock|format", "lock and format"),
    (r"/data[\">]", "data folder"),
)


def main(folder: Path) -> None:
    anyio.run(anyio.sleep, 0)  # as PRELOADED: the event loop's parts
    for line in sys.stdin:
        print(json.dumps(run_job(folder, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
