"""`sojourn serve` as people and `record` use it: a process, its sockets, its messages and exit codes."""

import importlib.util
import os
import signal
import socket
import stat
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import httpx2
import pytest

from sojourn.cli.serve import is_loopback
from sojourn.http.server import bind_tcp
from sojourn.runtime.paths import api_socket_path
from tests.support import redis
from tests.support.serve import DEADLINE_S, serve


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "serve.log"


def test_it_says_where_it_listens_and_answers_there(data: Path, log: Path) -> None:
    with serve(data, "--port", "0", log=log) as server:
        said = server.listening
        assert said["data"] == str(data)
        assert said["socket"] == str(data / "api.sock")
        assert (said["epoch"], said["version"]) == (1, version("sojourn"))
        assert httpx2.get(f"{server.url}/api/v1/readyz", trust_env=False).status_code == 200
        with server.client() as client:
            assert client.post("/sessions", json={}).status_code == 201


def test_it_says_which_mirror_there_is(data: Path, log: Path) -> None:
    with serve(data, "--no-tcp", log=log) as server:
        assert server.listening["mirror"] == "none"
    with redis.serving("valkey", tcp=True) as named:
        named.run("CONFIG", "SET", "requirepass", "secret")
        url = named.tcp.replace("://", "://:secret@")
        with serve(data, "--no-tcp", "--mirror", url, log=log) as server:
            assert f"127.0.0.1:{named.port}" in server.listening["mirror"]
            assert "secret" not in server.said
    with tempfile.TemporaryDirectory(prefix="sj-", dir="/tmp") as base:
        private = {"SOJOURN_MIRROR": "", "XDG_RUNTIME_DIR": base}
        with serve(data, "--no-tcp", log=log, env=private) as server:
            assert "private" in server.listening["mirror"]
            assert server.stop() == 0


def test_the_event_loop_may_be_chosen_and_is_said(data: Path, log: Path) -> None:
    there = importlib.util.find_spec("uvloop") is not None
    with serve(data, "--no-tcp", log=log) as server:
        assert server.listening["loop"] == ("uvloop" if there else "asyncio")
    with serve(data, "--no-tcp", "--loop", "asyncio", log=log) as server:
        assert server.listening["loop"] == "asyncio"
        with server.client() as client:
            assert client.post("/sessions", json={}).status_code == 201


def test_its_socket_is_for_its_owner_only(data: Path, log: Path) -> None:
    with serve(data, "--no-tcp", log=log) as server:
        mode = api_socket_path(data).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert server.listening["url"] is None


def test_a_data_folder_with_a_long_path_gets_a_socket_with_a_short_one(tmp_path: Path, log: Path) -> None:
    data = tmp_path / ("d" * 120)
    with serve(data, "--no-tcp", log=log, env={"XDG_RUNTIME_DIR": str(tmp_path)}) as server:
        path = Path(server.listening["socket"])
        assert path.parent == tmp_path / "sojourn"
        transport = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(transport=transport, base_url="http://x") as client:
            assert client.get("/healthz").status_code == 200
        assert server.stop() == 0
        assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_in_order_and_leaves_no_socket(data: Path, log: Path, number: int) -> None:
    with serve(data, "--port", "0", log=log) as server:
        with server.client() as client:
            client.post("/sessions", json={"title": "kept"})
        assert server.stop(number) == 0
        assert "Traceback" not in server.said
        assert not api_socket_path(data).exists()
    with serve(data, "--no-tcp", log=log) as server, server.client() as client:
        assert [item["title"] for item in client.get("/sessions").json()["items"]] == ["kept"]
        assert server.listening["epoch"] == 2


def test_a_stream_that_is_open_ends_when_the_server_stops(data: Path, log: Path) -> None:
    with serve(data, "--no-tcp", log=log) as server, server.client(timeout=DEADLINE_S) as client:
        session_id = client.post("/sessions", json={}).json()["session_id"]
        with client.stream("GET", f"/sessions/{session_id}/stream") as response:
            lines = response.iter_lines()
            assert next(line for line in lines if line.startswith("event: ")) == "event: snapshot"
            assert server.stop() == 0
            assert not [line for line in lines if line.startswith("event: ")]
        assert "Traceback" not in server.said


def test_a_request_that_is_under_way_is_answered_before_it_stops(data: Path, log: Path) -> None:
    with serve(data, "--no-tcp", log=log) as server:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(os.fspath(api_socket_path(data)))
            head = b"POST /api/v1/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            connection.sendall(head + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            assert connection.recv(1_000).startswith(b"HTTP/1.1 100 ")
            server.process.send_signal(signal.SIGTERM)
            connection.sendall(b"{}")
            assert connection.recv(1_000).startswith(b"HTTP/1.1 201 ")
        assert server.process.wait(DEADLINE_S) == 0


def test_a_port_in_use_is_named_with_the_remedy_and_the_folder_left_alone(data: Path, log: Path) -> None:
    with bind_tcp("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        with serve(data, "--port", port, log=log) as server:
            assert server.process.wait(DEADLINE_S) == 1
            assert server.said.count("\n") == 1
            assert port in server.said
            assert "--port" in server.said
            assert not data.exists()


def test_a_folder_in_use_names_its_owner(data: Path, log: Path, tmp_path: Path) -> None:
    with serve(data, "--no-tcp", log=log) as owner:
        with serve(data, "--port", "0", log=tmp_path / "second.log") as second:
            assert second.process.wait(DEADLINE_S) == 1
            assert second.said.count("\n") == 1
            assert f"pid {owner.process.pid}" in second.said
        with owner.client() as client:
            assert client.get("/healthz").status_code == 200


def test_a_folder_that_cannot_be_used_is_said_in_one_line(tmp_path: Path, log: Path) -> None:
    (tmp_path / "file").write_text("")
    with serve(tmp_path / "file" / "data", "--no-tcp", log=log) as server:
        assert server.process.wait(DEADLINE_S) == 1
        assert server.said.count("\n") == 1
        assert server.said.startswith("sojourn: ")


def test_the_socket_of_an_owner_that_was_killed_is_replaced(data: Path, log: Path) -> None:
    with serve(data, "--no-tcp", log=log) as server:
        server.process.kill()
        server.process.wait(DEADLINE_S)
    assert api_socket_path(data).exists()
    with serve(data, "--no-tcp", log=log) as server, server.client() as client:
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--host", "::"], ["--host", "example.org"]])
def test_another_host_than_loopback_needs_a_token(data: Path, log: Path, arguments: list[str]) -> None:
    with serve(data, *arguments, log=log) as server:
        assert server.process.wait(DEADLINE_S) == 2
        assert "--token" in server.said
        assert not data.exists()


@pytest.mark.parametrize(
    "arguments", [["--port", "65536"], ["--port", "x"], ["--exit-when-idle", "-1"], ["--nope"]]
)
def test_a_mistake_on_the_command_line_opens_nothing(data: Path, log: Path, arguments: list[str]) -> None:
    with serve(data, *arguments, log=log) as server:
        assert server.process.wait(DEADLINE_S) == 2
        assert not data.exists()


def test_a_token_from_the_environment_is_asked_for(data: Path, log: Path) -> None:
    with serve(data, "--host", "0.0.0.0", "--port", "0", log=log, env={"SOJOURN_TOKEN": "s3cret"}) as server:
        with server.client() as client:
            assert client.get("/sessions").status_code == 401
            allowed = {"authorization": "Bearer s3cret"}
            assert client.get("/sessions", headers=allowed).status_code == 200
        assert "s3cret" not in server.said


def test_an_empty_token_is_a_mistake(data: Path, log: Path) -> None:
    with serve(data, "--token", "", log=log) as server:
        assert server.process.wait(DEADLINE_S) == 2
        assert not data.exists()


def test_it_ends_when_it_was_idle_for_so_long(data: Path, log: Path) -> None:
    with serve(data, "--no-tcp", "--exit-when-idle", "0", log=log) as server:
        assert server.process.wait(DEADLINE_S) == 0
        assert not api_socket_path(data).exists()


def test_it_is_not_idle_while_a_stream_is_open(data: Path, log: Path) -> None:
    """The stream of an ended session: nothing else keeps the server alive."""
    with serve(data, "--no-tcp", "--exit-when-idle", "1", log=log) as server:
        with server.client(timeout=DEADLINE_S) as client:
            session_id = client.post("/sessions", json={}).json()["session_id"]
            commands = f"/sessions/{session_id}/commands"
            with client.stream("GET", f"/sessions/{session_id}/stream") as response:
                lines = response.iter_lines()
                next(line for line in lines if line.startswith("event: snapshot"))
                client.post(commands, json={"type": "session.cancel"})
                # Long enough for it to have looked twice.
                with pytest.raises(subprocess.TimeoutExpired):
                    server.process.wait(3.0)
        assert server.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_only_loopback_counts_as_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
