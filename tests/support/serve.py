"""`sojourn serve` as a process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from attrs import define

from sojourn.runtime.paths import api_socket_path

from .wait import wait_until

DEADLINE_S = 20.0


@define
class Serve:
    """A server that runs (or ran). `listening` is what it said when it was ready; empty where it never was."""

    process: "subprocess.Popen[bytes]"
    log: Path
    data_dir: Path
    listening: dict[str, Any]

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def url(self) -> str:
        url: str = self.listening["url"]
        return url

    def client(self, **options: Any) -> httpx2.Client:
        """Over the data folder's socket."""
        transport = httpx2.HTTPTransport(uds=str(api_socket_path(self.data_dir)))
        return httpx2.Client(transport=transport, base_url="http://sojourn/api/v1", **options)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@contextmanager
def serve(data_dir: Path, *arguments: str, log: Path, env: dict[str, str] | None = None) -> Iterator[Serve]:
    """A server, once it listens or has ended; killed on exit where it still runs."""
    environment = {name: value for name, value in os.environ.items() if name != "SOJOURN_TOKEN"} | (env or {})
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "sojourn", "serve", "--data", str(data_dir), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env=environment,
        )
    try:
        yield Serve(process, log, data_dir, _listening(process, log))
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def _listening(process: "subprocess.Popen[bytes]", log: Path) -> dict[str, Any]:
    """What the server said when it was ready; empty where it ended without."""
    found: list[dict[str, Any]] = []

    def said_or_ended() -> bool:
        ended = process.poll() is not None
        found.extend(json.loads(line) for line in log.read_text().splitlines() if '"serve.listening"' in line)
        return ended or bool(found)

    wait_until(said_or_ended, DEADLINE_S)
    return found[0] if found else {}
