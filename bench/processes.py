"""Servers and load as processes of their own, so that neither is measured as part of the other."""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from attrs import define, frozen

from .environment import ROOT
from .harness import BrokenOff

LISTEN_S = 60.0
LOOK_EVERY_S = 0.002
LOAD_S = 600.0
STOP_S = 20.0


@define
class Server:
    """A server that listens."""

    process: "subprocess.Popen[bytes]"
    log: Path
    port: int

    def cpu_s(self) -> float:
        """CPU time of its process so far; 0 once it has ended."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def descriptors(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())

    def kill(self) -> None:
        """SIGKILL, and gone on return."""
        self.process.kill()
        self.process.wait()


# Where the next servers write a profile to, or nothing; `sampled` sets it.
_profile_to: list[Path] = []


@contextmanager
def sampled(out: Path) -> Iterator[None]:
    """Every `sojourn_serve` within writes where its CPU went to `out`, once it has ended."""
    _profile_to.append(out)
    try:
        yield
    finally:
        _profile_to.pop()


@contextmanager
def sojourn_serve(folder: Path, **changed: str) -> Iterator[Server]:
    """`sojourn serve` on a free port of loopback. `changed`: SOJOURN_* of its environment, such as `MIRROR="none"`."""
    program = ["bench.sampling", str(_profile_to[-1])] if _profile_to else ["sojourn"]
    command = ["-m", *program, "serve", "--data", str(folder / "data"), "--port", "0"]
    with _server(command, folder, changed) as server:
        yield server


@contextmanager
def bare(kind: str, folder: Path) -> Iterator[Server]:
    """`bench.bare`: an ASGI callable under the settings that `sojourn serve` runs under."""
    with _server(["-m", "bench.bare", kind], folder, {}) as server:
        yield server


@contextmanager
def _server(arguments: list[str], folder: Path, changed: dict[str, str]) -> Iterator[Server]:
    # A server that compiles its modules at each start is not the one that a user has.
    left_out = ("SOJOURN_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    changed = {"MIRROR": "none"} | changed
    log = folder / f"{arguments[1]}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env=kept | {f"SOJOURN_{name}": value for name, value in changed.items()},
        )
    try:
        yield Server(process, log, _port(process, log))
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    deadline, ended = time.monotonic() + LISTEN_S, False
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        for line in log.read_text().splitlines():
            if '"serve.listening"' in line and line.endswith("}"):
                return int(json.loads(line)["url"].rpartition(":")[2])
        if ended:
            break
        time.sleep(LOOK_EVERY_S)
    words = log.read_text()[-500:].strip() or "nothing"
    ending = f"ended with {process.returncode}" if ended else f"did not listen within {LISTEN_S:g} s"
    raise BrokenOff(f"the server {ending}; its last words: {words}")


@frozen(kw_only=True)
class Loaded:
    """What a load process found. `error`: the first answer that was not as expected, or None."""

    operations: int
    elapsed_s: float
    cpu_s: float
    latencies_us: "array[float]"
    error: str | None
    more: dict[str, Any]


def load(kind: str, port: int, **job: Any) -> Loaded:
    """Run `bench.load` to its end: `kind` is one of its jobs, `job` what that takes.

    Raises:
        BrokenOff: it ended without a result, or the server answered otherwise than with success.
    """
    # Through a file: a result is longer than a pipe holds, and one came cut short from a busy machine.
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "bench.load"],
                cwd=ROOT,
                input=json.dumps({"kind": kind, "port": port, **job}).encode(),
                stdout=out,
                stderr=subprocess.PIPE,
                check=False,
                timeout=LOAD_S,
            )
        except subprocess.TimeoutExpired as error:
            raise BrokenOff(
                f"the load was not carried out within {LOAD_S:g} s; give fewer --operations"
            ) from error
        out.seek(0)
        found_json = out.read()
    if done.returncode:
        raise BrokenOff(f"the load process ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    try:
        found = json.loads(found_json)
    except ValueError as error:
        said = (found_json[-200:] + done.stderr[-300:]).decode(errors="replace")
        raise BrokenOff(
            f"the load process did not say what it found ({error}); it ended with: {said}"
        ) from error
    latencies: array[float] = array("d")
    latencies.frombytes(base64.b64decode(found["latencies_us"]))
    if found["error"] is not None:
        raise BrokenOff(f"the server answered: {found['error']}")
    return Loaded(
        operations=found["operations"],
        elapsed_s=found["elapsed_s"],
        cpu_s=found["cpu_s"],
        latencies_us=latencies,
        error=None,
        more=found["more"],
    )
