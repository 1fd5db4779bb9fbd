"""`ls`, `show`, `tail` and `compare`, as programs: on the files of a folder whose owner was killed, and on a server."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from sojourn.client import ServerClient
from sojourn.runtime.paths import api_socket_path
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from tests.support import owner
from tests.support.serve import serve

DEADLINE_S = 60
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SOJOURN_")}
ENVIRONMENT |= {"COLUMNS": "100", "PYTHONWARNINGS": "error"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("killed")
    return folder, owner.killed_owner(folder)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sojourn", *map(str, arguments)]


def sojourn(*arguments: str | Path, code: int = 0) -> str:
    """What a command wrote to a pipe; for another exit code than 0, what it wrote to stderr."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=DEADLINE_S, env=ENVIRONMENT, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code in (0, 1) else done.stderr


def on_terminal(*arguments: str | Path) -> str:
    """What a command wrote to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(*arguments), stdout=theirs, stderr=theirs, env=ENVIRONMENT)
    os.close(theirs)
    written = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # EIO: the last writer has closed (pty(7) on Linux)
            break
        if not chunk:
            break
        written += chunk
    os.close(ours)
    assert process.wait(DEADLINE_S) == 0
    return written.decode()


def test_a_list_in_a_pipe_has_full_ids_and_no_control_codes(killed: tuple[Path, list[str]]) -> None:
    folder, (first, second, third) = killed
    heads, *rows = sojourn("ls", "--data", folder).splitlines()
    assert heads.split() == [
        "ID",
        "STATUS",
        "OUTCOME",
        "CASES",
        "FAILED",
        "STARTED",
        "DURATION_S",
        "PLAN",
        "TITLE",
    ]
    assert [row.split()[0] for row in rows] == [third, second, first]
    assert rows[0].split()[1:5] == ["lost", "-", "0", "0"]
    assert rows[0].endswith("smoke    third of them")
    assert rows[2].split()[1:5] == ["completed", "failed", "3", "1"]


def test_a_list_on_a_terminal_has_colours_and_ids_that_the_other_commands_take(
    killed: tuple[Path, list[str]],
) -> None:
    folder, (_, _, third) = killed
    shown = on_terminal("ls", "--data", folder)
    assert "\x1b[31mlost" in shown
    assert third[-8:] in shown
    assert third not in shown
    assert (
        json.loads(sojourn("show", third[-8:], "--json", "--data", folder))["record"]["session_id"] == third
    )


@pytest.mark.parametrize(
    ("filters", "titles"),
    [
        (["--plan", "nightly"], ["second", "first"]),
        (["--status", "lost"], ["third\nof\tthem"]),
        (["--status", "running"], []),
        (["--status", "completed", "--status", "lost", "--limit", "2"], ["third\nof\tthem", "second"]),
    ],
)
def test_a_list_can_be_filtered_by_plan_and_by_the_status_that_is_shown(
    killed: tuple[Path, list[str]], filters: list[str], titles: list[str]
) -> None:
    listed = json.loads(sojourn("ls", "--json", "--data", killed[0], *filters))
    assert [record["title"] for record in listed["items"]] == titles


def test_a_session_is_shown_with_its_failed_cases_and_where_it_lies(killed: tuple[Path, list[str]]) -> None:
    folder, (first, _, _) = killed
    shown = sojourn("show", "last~2", "--data", folder)
    assert shown.startswith("first\ncompleted: failed (exit code 1)\n")
    assert first in shown
    assert "2 passed, 1 failed" in shown
    assert "failed cases (1)\n  failed   t::b  100 ms\n           assert 1 == 2\n" in shown
    assert str(folder) in shown


def test_a_session_whose_owner_was_killed_is_shown_as_lost(killed: tuple[Path, list[str]]) -> None:
    assert "\nlost\n  no sign of life, and no end was recorded; it was running\n" in sojourn(
        "show", "last", "--data", killed[0]
    )


def test_a_tail_in_a_pipe_gives_log_text_as_it_was_recorded(killed: tuple[Path, list[str]]) -> None:
    lines = sojourn("tail", "last~2", "--data", killed[0]).splitlines()
    assert lines == [
        "-- session created",
        "-- session started",
        "-- passed t::a (100 ms)",
        "-- failed t::b (100 ms): assert 1 == 2",
        "-- passed t::gone (0 ms)",
        "\x1b[31mred\x1b[0m and \x1b[2Jwiped",
        "-- session completed: outcome failed, exit code 1",
    ]


def test_a_tail_on_a_terminal_keeps_colours_and_nothing_else(killed: tuple[Path, list[str]]) -> None:
    shown = on_terminal("tail", "last~2", "--lines", "2", "--data", killed[0])
    assert shown.splitlines()[0] == "\x1b[31mred\x1b[0m and wiped\x1b[0m"


def test_a_tail_in_json_is_the_stored_events_the_last_ones(killed: tuple[Path, list[str]]) -> None:
    lines = sojourn("tail", "last~2", "--json", "-n", "3", "--data", killed[0]).splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [5, 6, 7]
    everything = sojourn("tail", "last~2", "--json", "-n", "0", "--data", killed[0]).splitlines()
    assert [json.loads(line)["seq"] for line in everything] == [1, 2, 3, 4, 5, 6, 7]


def test_a_comparison_ends_with_the_verdict_and_its_exit_code(killed: tuple[Path, list[str]]) -> None:
    folder = killed[0]
    shown = sojourn("compare", "last~2", "last~1", "--data", folder, code=1)
    assert shown.splitlines()[-1] == "verdict: worse: 1 case regressed"
    assert "environment python: 3.11 -> 3.13" in shown
    assert "regressed (1)\n  t::a  passed -> failed\n      assert 1 == 2\n" in shown
    document = json.loads(sojourn("compare", "last~2", "last~1", "--json", "--data", folder, code=1))
    assert {case["case_id"]: case["class"] for case in document["cases"]} == {
        "t::a": "regressed",
        "t::b": "fixed",
        "t::gone": "removed",
        "t::new": "new",
    }
    assert (
        sojourn("compare", "last~1", "last~1", "--data", folder).splitlines()[-1].startswith("verdict: same")
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nix"], "there is no session 'nix'; `sojourn ls` shows those there are"),
        (["show", "last~9"], "there is no session 'last~9'"),
        (["show", "sess_01"], "fits 3 sessions"),
        (["show", "sess_" + "0" * 32], "there is no session"),
        (["compare", "last", "last~1"], "is lost, and only sessions that have ended can be compared"),
        (["ls", "--server", "http://127.0.0.1:8765"], "--data and --server exclude each other"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy_and_exit_code_2(
    killed: tuple[Path, list[str]], arguments: list[str], said: str
) -> None:
    written = sojourn(*arguments, "--data", killed[0], code=2)
    assert written.startswith("sojourn: ")
    assert said in written
    assert written.count("\n") == 1


def test_a_folder_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    written = sojourn("ls", "--data", tmp_path / "none", code=2)
    assert written == (
        f"sojourn: there is no data folder {tmp_path / 'none'}; record one with `sojourn record -- COMMAND`, "
        "or name another folder with --data\n"
    )
    assert not (tmp_path / "none").exists()


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    written = sojourn("ls", "--server", "http://127.0.0.1:1", code=2)
    assert "no server answers at http://127.0.0.1:1" in written
    assert written.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code"), [(["tail", "last~2"], 0), (["compare", "last~2", "last~1"], 1)]
)
def test_a_reader_that_goes_away_is_no_error_and_the_exit_code_stands(
    killed: tuple[Path, list[str]], arguments: list[str], code: int
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)  # `| head` that has seen enough
    done = subprocess.run(
        command(*arguments, "--data", killed[0]),
        stdout=theirs,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_S,
        env=ENVIRONMENT,
        check=False,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (code, b"")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """A folder that `sojourn serve` owns."""
    with serve(tmp_path / "data", "--no-tcp", log=tmp_path / "serve.txt") as process:
        assert process.listening, process.said
        yield tmp_path / "data"


def test_following_a_session_on_a_server_shows_what_comes_until_its_end(server: Path) -> None:
    async def scenario() -> None:
        async with ServerClient(socket_path=api_socket_path(server)) as client:
            record = await client.create_session({"plan": "live", "title": "followed"})
            session_id = record["session_id"]
            await client.command(session_id, {"type": "session.start"})
            follower = await anyio.open_process(
                command("tail", "last", "--follow", "--data", server),
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
            )
            output = Lines(follower.stdout)
            with anyio.fail_after(DEADLINE_S):
                assert await output.line() == "-- session created"
                assert await output.line() == "-- session started"
                text = "one \u2028 line \x85 only"
                await client.command(session_id, {"type": "log.append", "stream": "stdout", "text": text})
                assert await output.line() == text
                await client.command(session_id, {"type": "session.complete", "outcome": "passed"})
                assert await output.line() == "-- session completed: outcome passed"
                assert await follower.wait() == 0
            await follower.aclose()

    anyio.run(scenario)
    shown = sojourn("ls", "--data", server)
    assert "completed  passed" in shown
    assert (
        json.loads(sojourn("show", "last", "--json", "--data", server))["record"]["last_sign_at"] is not None
    )


def test_a_token_that_is_missing_is_asked_for_by_the_name_of_its_option(tmp_path: Path) -> None:
    log = tmp_path / "serve.txt"
    with serve(tmp_path / "data", "--no-tcp", log=log, env={"SOJOURN_TOKEN": "secret"}) as process:
        assert process.listening, process.said
        assert "give a token with --token or SOJOURN_TOKEN" in sojourn(
            "ls", "--data", tmp_path / "data", code=2
        )
        assert sojourn("ls", "--data", tmp_path / "data", "--token", "secret") == ""


def test_following_a_session_in_files_shows_what_comes_until_its_end(tmp_path: Path) -> None:
    """An embedded runtime owns the folder and has no socket: the files themselves are followed."""

    async def scenario() -> None:
        async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime:
            session_id = await owner.create(runtime, plan="embedded")
            follower = await anyio.open_process(
                command("tail", session_id, "-f", "-n", "1", "--data", tmp_path),
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
            )
            output = Lines(follower.stdout)
            with anyio.fail_after(DEADLINE_S):
                assert await output.line() == "-- session started"
                await owner.ask(runtime, session_id, type="log.append", stream="stdout", text="a line")
                assert await output.line() == "a line"
                await owner.ask(runtime, session_id, type="session.cancel", reason="enough\nof it")
                assert await output.line() == "-- session cancelled: outcome cancelled, enough of it"
                assert await follower.wait() == 0
            await follower.aclose()

    anyio.run(scenario)


class Lines:
    """The lines of a stream of bytes, as they come."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._held = b""

    async def line(self) -> str:
        while b"\n" not in self._held:
            self._held += await self._stream.receive()
        line, _, self._held = self._held.partition(b"\n")
        return line.decode()

    async def rest(self) -> str:
        """What is left up to its end."""
        rest, self._held = self._held, b""
        async for chunk in self._stream:
            rest += chunk
        return rest.decode()
