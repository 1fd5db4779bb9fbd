"""`sojourn record` as a process, against real servers: what a session then holds, and what survives what."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sojourn.runtime.stores.lock import owner_pid
from sojourn.runtime.valkey import private_place, running_pid, url_of
from tests.support import redis
from tests.support.facade import UNKNOWN_ID
from tests.support.recording import (
    DEADLINE_S,
    PYTHON,
    Data,
    command_line,
    end_server,
    environment,
    record,
    recording,
    session_id_of,
)
from tests.support.serve import Serve, serve
from tests.support.wait import wait_until


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Data]:
    """Without a server: the first recording starts it."""
    yield Data(tmp_path / "data")
    end_server(tmp_path / "data")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    folder = tmp_path_factory.mktemp("server")
    with serve(folder / "data", "--no-tcp", log=folder / "log") as running:
        yield running


def test_a_command_becomes_a_session_with_its_output_and_its_exit(server: Serve, tmp_path: Path) -> None:
    script = r"echo out; echo err >&2; printf '10%%\r99%%\n'; exit 7"
    options = ["--title", "a title", "--meta", "branch=main", "--meta", "n=1", "--user", "ann"]
    done = record(server.data_dir, *options, "--json", str(tmp_path / "r.json"), "--", "sh", "-c", script)
    assert done.returncode == 7
    assert done.stdout == "out\n10%\r99%\n"
    assert "err\n" in done.stderr
    data = Data(server.data_dir)
    session_id = session_id_of(done.stderr)
    kept = data.get(f"/sessions/{session_id}")
    assert (kept["status"], kept["outcome"], kept["exit_code"]) == ("completed", "failed", 7)
    assert (kept["title"], kept["plan"], kept["user_id"]) == ("a title", "sh -c", "ann")
    assert kept["metadata"]["branch"] == "main"
    assert kept["environment"]["cwd"] == os.getcwd()
    assert data.logged(session_id) == ["out", "99%"]
    assert data.logged(session_id, "stderr") == ["err"]
    assert kept["resources"]["samples"] >= 1
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["session_id"] == session_id
    assert (document["status"], document["outcome"], document["exit_code"]) == ("completed", "failed", 7)
    assert (document["undelivered"], document["refused"], document["lost"], document["spool"]) == (
        0,
        0,
        0,
        None,
    )
    # The first event is the creation and the last the seal, and neither is one of the commands in the spool.
    assert [event["type"] for event in data.events(session_id)][:: len(data.events(session_id)) - 1] == [
        "session.created",
        "session.sealed",
    ]
    assert document["delivered"] == len(data.events(session_id)) - 2
    assert not list((server.data_dir / "spool").glob("sess_*"))


def test_a_command_over_its_time_limit_is_ended_and_its_session_has_failed(server: Serve) -> None:
    script = "echo begun; trap 'echo told; exit 0' TERM; sleep 60 & wait"
    done = record(server.data_dir, "--time-limit", "0.5s", "--", "sh", "-c", script)
    assert done.returncode == 124
    assert "the command is over its time limit of 0.5 s, and is ended" in done.stderr
    data = Data(server.data_dir)
    session_id = session_id_of(done.stderr)
    kept = data.get(f"/sessions/{session_id}")
    assert (kept["status"], kept["outcome"]) == ("failed", "error")
    assert (kept["reason"], kept["exit_code"]) == ("over its time limit of 0.5 s", 0)
    assert data.logged(session_id) == ["begun", "told"]
    types = [event["type"] for event in data.events(session_id)]
    assert types[:3] == ["session.created", "session.started", "timer.set"]
    assert "timer.fired" not in types


def test_a_command_that_ends_in_time_leaves_no_timer(server: Serve) -> None:
    done = record(server.data_dir, "--time-limit", "8h", "--", "true")
    assert done.returncode == 0
    kept = Data(server.data_dir).get(f"/sessions/{session_id_of(done.stderr)}")
    assert (kept["status"], kept["next_due_at"]) == ("completed", None)


def test_pytest_is_recorded_test_by_test(server: Serve, tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0, 'no'\ndef test_c(): pytest.skip('later')\n"
    )
    done = record(
        server.data_dir,
        "--json",
        "r.json",
        "--",
        PYTHON,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    session_id = session_id_of(done.stderr)
    kept = Data(server.data_dir).get(f"/sessions/{session_id}")
    assert kept["results"] == {"passed": 1, "failed": 1, "error": 0, "skipped": 1, "xfailed": 0, "xpassed": 0}
    assert (kept["progress"]["done"], kept["progress"]["total"]) == (3, 3)
    assert json.loads((tmp_path / "r.json").read_text())["results"] == kept["results"]
    assert "test_three::test_b: AssertionError: no" in done.stderr
    assert "test_three" in done.stdout


def test_what_is_ours_goes_to_stderr_without_control_characters(server: Serve) -> None:
    done = record(server.data_dir, "--", "sh", "-c", "printf 'no newline'")
    assert done.stdout == "no newline"
    assert "\x1b" not in done.stderr
    assert "sojourn tail" in done.stderr
    assert all(line.startswith("sojourn: ") for line in done.stderr.splitlines())


def test_the_end_says_how_to_compare_with_the_session_before(server: Serve) -> None:
    first = session_id_of(record(server.data_dir, "--plan", "twice", "--", "true").stderr)
    done = record(server.data_dir, "--plan", "twice", "--", "true")
    assert f"sojourn compare {first} {session_id_of(done.stderr)} --data {server.data_dir}" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_recording_that_is_stopped_stops_its_command_and_is_cancelled(
    server: Serve, tmp_path: Path, number: int, code: int
) -> None:
    script = f"trap 'echo got {number}; exit 0' {number}; touch started; while :; do sleep 0.05; done"
    process = recording(server.data_dir, "--", "sh", "-c", script, cwd=tmp_path)
    wait_until((tmp_path / "started").exists)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code
    assert stdout == f"got {number}\n"
    kept = Data(server.data_dir).get(f"/sessions/{session_id_of(stderr)}")
    assert (kept["status"], kept["outcome"], kept["exit_code"]) == ("cancelled", "cancelled", 0)


def test_a_second_ctrl_c_kills_a_command_that_ignores_the_first(server: Serve, tmp_path: Path) -> None:
    script = "trap 'touch first' 2; touch started; while :; do sleep 0.05; done"
    process = recording(server.data_dir, "--", "sh", "-c", script, cwd=tmp_path)
    wait_until((tmp_path / "started").exists)
    process.send_signal(signal.SIGINT)
    wait_until((tmp_path / "first").exists)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130


def test_a_command_that_a_signal_ended_ends_record_with_128_and_its_number(server: Serve) -> None:
    done = record(server.data_dir, "--", "sh", "-c", "kill -9 $$")
    assert done.returncode == 137
    kept = Data(server.data_dir).get(f"/sessions/{session_id_of(done.stderr)}")
    assert (kept["status"], kept["outcome"], kept["reason"]) == ("failed", "error", "ended by SIGKILL")


def test_a_reader_that_goes_away_does_not_end_the_command(server: Serve, tmp_path: Path) -> None:
    script = "for n in 1 2 3 4 5 6 7 8 9; do echo $n; sleep 0.05; done; touch finished"
    line = " ".join(command_line(server.data_dir, "--", "sh", "-c", f"'{script}'"))
    done = subprocess.run(
        f"set -o pipefail; {line} | head -1", shell=True, executable="/bin/bash", cwd=tmp_path, env=environment(),
        capture_output=True, text=True, check=False, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "finished").exists()
    assert len(Data(server.data_dir).logged(session_id_of(done.stderr))) == 9


# -- failures of ours before the command runs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--server", "nonsense", "--", "touch", "ran"], 125, "no server address"),
        (["--json", "missing/r.json", "--", "touch", "ran"], 125, "cannot be written"),
        (["--data", "file/data", "--", "touch", "ran"], 125, "cannot be used"),
        (["--", "no-such-command"], 127, "there is no command no-such-command"),
        (["--", "./file"], 126, "cannot be executed"),
        (["--meta", "novalue", "--", "touch", "ran"], 125, "is no key=value"),
        (["--resume", "sess_1", "--", "touch", "ran"], 125, "is no session id"),
        (["--resume", UNKNOWN_ID, "--plan", "p", "--", "touch", "ran"], 125, "does not go with --resume"),
        ([], 125, "no command is given"),
    ],
)
def test_what_fails_before_the_command_runs_is_said_with_its_remedy(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "file").write_text("")
    line = [PYTHON, "-m", "sojourn", "record", *arguments]
    done = subprocess.run(
        line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "The command was not run" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "ran").exists()


def test_a_failure_is_in_the_json_document_too(tmp_path: Path) -> None:
    done = record(tmp_path, "--json", str(tmp_path / "r.json"), "--server", "nonsense", "--", "true")
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["exit_code"] == done.returncode == 125
    assert "no server address" in document["error"]["detail"]


# -- servers that are not there, go, and come back ------------------------------------------------------------------


def test_without_a_server_one_is_started_and_the_next_recording_finds_it(data: Data) -> None:
    assert record(data.folder, "--", "true").returncode == 0
    pid = owner_pid(data.folder)
    assert record(data.folder, "--", "true").returncode == 0
    assert owner_pid(data.folder) == pid
    assert [session["outcome"] for session in data.sessions()] == ["passed", "passed"]


def test_recordings_that_start_at_once_share_one_server(data: Data) -> None:
    processes = [recording(data.folder, "--", "true") for _ in range(3)]
    for process in processes:
        _, stderr = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, stderr
    assert len(data.sessions()) == 3


def test_a_server_that_is_killed_in_between_loses_nothing(data: Data, tmp_path: Path) -> None:
    script = "echo before; touch started; while [ ! -e go ]; do sleep 0.02; done; echo after"
    process = recording(data.folder, "--", "sh", "-c", script, cwd=tmp_path)
    wait_until((tmp_path / "started").exists)
    wait_until(data.has_sessions)
    data.kill_server()
    (tmp_path / "go").touch()
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    session = data.session()
    assert (session["status"], session["outcome"]) == ("completed", "passed")
    assert data.logged(session["session_id"]) == ["before", "after"]
    assert not data.spooled


def test_a_private_valkey_that_is_killed_in_between_costs_the_recording_nothing(
    data: Data, tmp_path: Path
) -> None:
    """As in the demo: the server starts it again, and the mirror says what the session says."""
    redis.binary("valkey")
    script = "echo before; touch started; while [ ! -e go ]; do sleep 0.02; done; echo after"
    document = tmp_path / "r.json"
    process = recording(data.folder, "--json", str(document), "--", "sh", "-c", script, cwd=tmp_path)
    wait_until((tmp_path / "started").exists)
    wait_until(data.has_sessions)
    place = private_place(data.folder)
    pid = running_pid(place)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: running_pid(place) not in (None, pid))
    session_id = data.session()["session_id"]
    show = [PYTHON, "-m", "sojourn", "show", session_id, "--redis", url_of(place)]
    wait_until(
        lambda: not subprocess.run(show, env=environment(), capture_output=True, check=False).returncode
    )
    (tmp_path / "go").touch()
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    recorded = json.loads(document.read_text())
    assert (recorded["undelivered"], recorded["refused"], recorded["lost"]) == (0, 0, 0)
    session = data.session()
    assert (session["status"], session["outcome"]) == ("completed", "passed")
    assert data.logged(session_id) == ["before", "after"]


def test_a_killed_recorder_leaves_the_command_running_and_the_next_one_delivers(
    data: Data, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pathlib, time\n"
        "def test_before(): pass\n"
        "def test_waits():\n"
        "    pathlib.Path('started').touch()\n"
        "    while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
        "def test_after(): pathlib.Path('finished').touch()\n"
    )
    process = recording(
        data.folder,
        "--",
        PYTHON,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--durations=3",
        cwd=tmp_path,
    )
    wait_until((tmp_path / "started").exists)
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    (spool,) = data.spooled
    pid = int((spool / "command").read_text().split()[0])
    assert record(data.folder, "--", "true").returncode == 0
    assert spool.exists()  # its pytest has something to say yet
    (tmp_path / "go").touch()
    wait_until((tmp_path / "finished").exists)
    with suppress(ProcessLookupError):
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert record(data.folder, "--", "true").returncode == 0
    wait_until(lambda: not spool.exists())
    lost = data.get(f"/sessions/{spool.name}")
    assert lost["status"] == "running"
    assert lost["results"]["passed"] == 3


def test_a_folder_that_another_owner_holds_without_a_socket_delays_the_delivery(
    data: Data, tmp_path: Path
) -> None:
    from sojourn.runtime.stores.lock import FolderLock

    lock = FolderLock.acquire(data.folder)
    try:
        done = record(data.folder, "--", "touch", "ran", cwd=tmp_path)
    finally:
        lock.release()
    assert done.returncode == 0
    assert (tmp_path / "ran").exists()
    assert f"in use by pid {os.getpid()}" in done.stderr
    assert "--server" in done.stderr
    (left,) = data.spooled
    assert str(left) in done.stderr
    assert record(data.folder, "--", "true").returncode == 0
    wait_until(lambda: {one["session_id"] for one in data.sessions()} > {left.name})


def test_on_a_terminal_there_is_a_bar_below_the_output_and_nothing_is_left_of_it(server: Serve) -> None:
    near, far = os.openpty()
    try:
        import termios

        termios.tcsetwinsize(far, (24, 100))
        script = "import sys; print(sys.stdout.isatty(), sys.stderr.isatty())"
        process = subprocess.Popen(
            command_line(server.data_dir, "--", PYTHON, "-c", script),
            stdin=far,
            stdout=far,
            stderr=far,
            env={**environment(), "TERM": "xterm"},
        )
        said = b""
        os.set_blocking(near, False)

        def ended() -> bool:
            nonlocal said
            with suppress(BlockingIOError):
                said += os.read(near, 65536)
            return process.poll() is not None

        wait_until(ended, DEADLINE_S)
        ended()
    finally:
        os.close(near)
        os.close(far)
    assert process.returncode == 0
    assert b"True True" in said
    assert b"\x1b[1;23r" in said  # the region above the bar
    assert said.rindex(b"\x1b[r") > said.index(b"True True")  # and the whole screen again
    assert b"sojourn: passed" in said
