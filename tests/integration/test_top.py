"""`sojourn top` and `GET /statistics`, on a real server: in a pipe, on a terminal, as JSON, and interrupted."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from sojourn.client import ServerClient
from sojourn.runtime.paths import api_socket_path
from tests.integration.test_look import DEADLINE_S, ENVIRONMENT, command, sojourn
from tests.support.facade import facade, new_session
from tests.support.serve import serve
from tests.support.wait import wait_until


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A data folder with a running server and three running sessions."""
    folder = tmp_path_factory.mktemp("top")

    async def report() -> list[str]:
        async with ServerClient(socket_path=api_socket_path(folder)) as client:
            ids = []
            for _ in range(3):
                record = await client.create_session({"plan": "p"})
                ids.append(record["session_id"])
                await client.request(
                    "POST", f"/sessions/{record['session_id']}/commands", json={"type": "session.start"}
                )
            return ids

    with serve(folder, "--no-tcp", log=folder / "serve.log"):
        yield folder, anyio.run(report)


def test_one_look_in_a_pipe_is_plain_text(served: tuple[Path, list[str]]) -> None:
    folder, ids = served
    text = sojourn("top", "--once", "--data", folder)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith(str(folder))
    parts = {words[0]: words[1:3] for words in map(str.split, lines) if words}
    for name in ("commit", "kernel", "catalog", "snapshots", "compaction", "passivation"):
        assert parts[name] == ["running", "0"]
    for session_id in ids:
        (row,) = [line.split() for line in lines if line.startswith(session_id)]
        assert (row[1], row[2], row[-1]) == ("idle", "0", "2")


def test_so_many_sessions_are_shown_and_the_rest_counted(served: tuple[Path, list[str]]) -> None:
    text = sojourn("top", "--once", "--limit", "1", "--data", served[0])
    assert text.count("sess_") == 1
    assert "... and 2 more in memory" in text


def test_one_look_as_json_is_what_the_server_says(served: tuple[Path, list[str]]) -> None:
    folder, ids = served
    document = json.loads(sojourn("top", "--once", "--json", "--data", folder))
    assert document["sessions_total"] == 3
    assert sorted(session["session_id"] for session in document["sessions"]) == sorted(ids)
    statistics = document["statistics"]
    assert statistics["kernel"]["crashes"] == 0
    assert statistics["memory"]["sessions"] == 3
    assert statistics["stalls"].keys() == {"total", "longest_s", "recent"}


def test_in_a_pipe_looks_follow_each_other_until_the_reader_goes(served: tuple[Path, list[str]]) -> None:
    process = subprocess.Popen(
        command("top", "--json", "--interval", "0.1", "--data", served[0]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    looks = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert looks[0]["at"] < looks[1]["at"] < looks[2]["at"]
    process.stdout.close()
    assert process.wait(DEADLINE_S) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_on_a_terminal_it_fills_the_screen_and_ctrl_c_gives_it_back(served: tuple[Path, list[str]]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("top", "--interval", "0.1", "--data", served[0]),
        stdout=theirs,
        stderr=theirs,
        env=ENVIRONMENT | {"TERM": "xterm", "LINES": "50"},
    )
    os.close(theirs)
    written = b""

    def read() -> bool:
        nonlocal written
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # EIO: the last writer has closed (pty(7) on Linux)
            return True
        written += chunk
        return not chunk

    wait_until(lambda: read() or (b"commit" in written and served[1][0][-8:].encode() in written))
    process.send_signal(signal.SIGINT)
    wait_until(read)
    os.close(ours)
    assert process.wait(DEADLINE_S) == 0
    assert b"Traceback" not in written
    entered, left = written.find(b"\x1b[?1049h"), written.rfind(b"\x1b[?1049l")
    assert 0 <= entered < left


def test_a_folder_that_nobody_serves_is_told(tmp_path: Path) -> None:
    with serve(tmp_path, "--no-tcp", log=tmp_path / "serve.log"):
        pass
    assert "no server runs on" in sojourn("top", "--once", "--data", tmp_path, code=2)


@pytest.mark.anyio
async def test_the_statistics_are_guarded_and_their_parameter_is_checked(tmp_path: Path) -> None:
    async with facade(tmp_path / "a", token="t0ps3cret") as client:
        assert (await client.get("/statistics")).status_code == 401
    async with facade(tmp_path / "b") as client:
        for _ in range(3):
            await new_session(client)
        answer = await client.get("/statistics", params={"limit": 2})
        document: dict[str, Any] = answer.json()
        assert (len(document["sessions"]), document["sessions_total"]) == (2, 3)
        assert [child["child_id"] for child in document["statistics"]["children"]][:2] == ["commit", "kernel"]
        refused = await client.get("/statistics", params={"limit": 1_001})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_field")
        assert (await client.post("/statistics")).status_code == 405
