"""`sojourn record` as a process, and what a data folder then holds."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
from attrs import define

from sojourn.launch import is_listening
from sojourn.runtime.paths import api_socket_path
from sojourn.runtime.stores.lock import owner_pid

from .wait import wait_until

DEADLINE_S = 60.0
PYTHON = sys.executable


@define
class Data:
    """A data folder, and whatever server owns it."""

    folder: Path

    def get(self, path: str) -> Any:
        transport = httpx2.HTTPTransport(uds=str(api_socket_path(self.folder)))
        with httpx2.Client(transport=transport, base_url="http://sojourn/api/v1") as client:
            response = client.get(path)
            assert response.status_code == 200, response.text
            return response.json()

    def sessions(self) -> list[dict[str, Any]]:
        return list(self.get("/sessions")["items"])

    def session(self) -> dict[str, Any]:
        (record,) = self.sessions()
        return record

    def events(self, session_id: str) -> list[dict[str, Any]]:
        return list(self.get(f"/sessions/{session_id}/events?limit=10000")["items"])

    def logged(self, session_id: str, stream: str = "stdout") -> list[str]:
        events = [event["data"] for event in self.events(session_id) if event["type"] == "log.appended"]
        return [data["text"] for data in events if data["stream"] == stream]

    @property
    def spooled(self) -> list[Path]:
        return list((self.folder / "spool").glob("*"))

    def has_sessions(self) -> bool:
        """Also while no server answers."""
        return is_listening(api_socket_path(self.folder)) and bool(self.sessions())

    def kill_server(self) -> None:
        pid = owner_pid(self.folder)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: owner_pid(self.folder) is None)


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("SOJOURN_", "PYTEST_"))}


def command_line(folder: Path, *arguments: str) -> list[str]:
    return [PYTHON, "-m", "sojourn", "record", "--data", str(folder), *arguments]


def record(folder: Path, *arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command_line(folder, *arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
    )
    # Decoded here: subprocess would turn carriage returns into line feeds.
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def recording(folder: Path, *arguments: str, cwd: Path | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command_line(folder, *arguments),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def session_id_of(stderr: str) -> str:
    found = re.search(r"recording (sess_[0-9a-f]{32})", stderr)
    assert found, stderr
    return found[1]


def end_server(folder: Path) -> None:
    """The server that a recording has started, where there is one."""
    if (pid := owner_pid(folder)) is not None:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: owner_pid(folder) is None)
