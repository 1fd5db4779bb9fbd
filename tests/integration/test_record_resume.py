"""`--resume`: a session whose recorder is gone goes on."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.facade import UNKNOWN_ID
from tests.support.recording import PYTHON, Data, end_server, record, recording, session_id_of
from tests.support.serve import serve
from tests.support.wait import wait_until

SUITE = """
import pathlib, time
import pytest

def test_passes(): pass
def test_fails(): assert 0, "as ever"
def test_breaks_off():
    pathlib.Path("started").touch()
    while not pathlib.Path("go").exists(): time.sleep(0.01)
@pytest.mark.parametrize("n", [1, 2])
def test_comes_later(n): pass
"""
CASES = {
    "test_it::test_passes": "passed",
    "test_it::test_fails": "failed",
    "test_it::test_breaks_off": "passed",
    "test_it::test_comes_later[1]": "passed",
    "test_it::test_comes_later[2]": "passed",
}
PATIENCE_S = 60.0  # a server and a pytest start, and there may be no other core
PYTEST = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Data]:
    yield Data(tmp_path / "data")
    end_server(tmp_path / "data")


def broken_off(data: Data, folder: Path, command: list[str], *options: str, results: int = 0) -> str:
    """The id of a session whose recorder was killed once `started` was there and so many results had reached it, and its
    command after it."""
    process = recording(data.folder, *options, "--", *command, cwd=folder)
    wait_until((folder / "started").exists, PATIENCE_S)

    def told() -> int:
        return sum(p.read_text().count("result.record") for p in data.folder.glob("spool/*/outbox.ndjson"))

    wait_until(lambda: told() >= results, PATIENCE_S)
    wait_until(lambda: not list(data.folder.glob("spool/*/create*")), PATIENCE_S)
    process.kill()
    process.communicate()
    (spool,) = data.spooled
    os.killpg(int((spool / "command").read_text().split()[0]), signal.SIGKILL)
    return spool.name


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_resumed_pytest_runs_the_cases_without_a_result_and_no_other(
    data: Data, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    command = [*PYTEST, *arguments]
    session_id = broken_off(data, tmp_path, command, results=0 if arguments else 2)
    (tmp_path / "go").touch()
    done = record(data.folder, "--resume", session_id, "--json", "r.json", "--", *command, cwd=tmp_path)
    assert session_id_of(done.stderr) == session_id
    results = [one["data"] for one in data.events(session_id) if one["type"] == "result.recorded"]
    assert {one["case_id"]: one["outcome"] for one in results} == CASES
    assert len(results) == len(CASES)
    kept = data.get(f"/sessions/{session_id}")
    # Where the failure stands from the first attempt, pytest knows of none, and the session has failed all the same.
    assert (kept["status"], kept["outcome"]) == ("completed", "failed")
    assert kept["exit_code"] == done.returncode
    assert (kept["progress"]["done"], kept["progress"]["total"]) == (5, 5)
    types = [one["type"] for one in data.events(session_id)]
    assert [name for name in types if name.startswith("session.")][:4] == [
        "session.created", "session.started", "session.paused", "session.resumed",
    ]  # fmt: skip
    (said,) = data.logged(session_id, "sojourn")
    assert said.startswith("attempt 2: ")
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["attempt"], told["plan"], told["results"]) == (2, kept["plan"], kept["results"])
    assert not data.spooled


def test_with_nothing_left_to_run_the_session_ends_as_its_results_say(data: Data, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_passes(): pass\n")
    (tmp_path / "conftest.py").write_text(
        "import pathlib, time\n"
        "def pytest_unconfigure():\n"
        "    pathlib.Path('started').touch()\n"
        "    while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
    )
    session_id = broken_off(data, tmp_path, PYTEST, results=1)
    (tmp_path / "go").touch()
    done = record(data.folder, "--resume", session_id, "--", *PYTEST, cwd=tmp_path)
    assert done.returncode == 5  # pytest's own: no test was collected
    kept = data.get(f"/sessions/{session_id}")
    assert (kept["outcome"], kept["reason"]) == ("passed", "every case had a result")


def test_another_command_runs_whole_and_a_server_by_its_address_will_do(data: Data, tmp_path: Path) -> None:
    with serve(tmp_path / "elsewhere", "--port", "0", log=tmp_path / "log") as server:
        script = "echo hello; [ -e started ] && exit 0; touch started; sleep 60"
        command = ["sh", "-c", script]
        session_id = broken_off(data, tmp_path, command, "--server", server.url)
        done = record(
            data.folder, "--server", server.url, "--resume", session_id, "--", *command, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        elsewhere = Data(tmp_path / "elsewhere")
        assert elsewhere.logged(session_id) == ["hello", "hello"]
        assert elsewhere.get(f"/sessions/{session_id}")["outcome"] == "passed"
        again = record(data.folder, "--server", server.url, "--resume", session_id, "--", "touch", "ran")
        assert again.returncode == 125
        assert "has ended (completed, passed)" in again.stderr


def test_a_session_goes_on_though_its_server_has_ended_too(data: Data, tmp_path: Path) -> None:
    script = "import pathlib, time; pathlib.Path('started').touch(); time.sleep(60)"
    session_id = broken_off(data, tmp_path, [PYTHON, "-c", script])
    end_server(data.folder)
    done = record(data.folder, "--resume", session_id, "--", "true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert data.get(f"/sessions/{session_id}")["status"] == "completed"


def test_what_may_not_go_on_is_refused_and_nothing_is_run(data: Data, tmp_path: Path) -> None:
    process = recording(data.folder, "--", "sh", "-c", "touch started; sleep 60", cwd=tmp_path)
    wait_until((tmp_path / "started").exists)
    (live,) = data.spooled
    refused = {
        live.name: "is being recorded now",
        UNKNOWN_ID: f"there is no session {UNKNOWN_ID}",
    }
    for session_id, why in refused.items():
        done = record(data.folder, "--resume", session_id, "--", "touch", "ran", cwd=tmp_path)
        assert done.returncode == 125
        assert why in done.stderr
        assert "The command was not run" in done.stderr
    process.kill()
    process.communicate()
    pid = int((live / "command").read_text().split()[0])
    done = record(data.folder, "--resume", live.name, "--", "touch", "ran", cwd=tmp_path)
    assert done.returncode == 125
    assert f"still runs (pid {pid})" in done.stderr
    os.killpg(pid, signal.SIGKILL)
    assert not (tmp_path / "ran").exists()


def test_a_session_that_another_machine_may_report_to_is_left_alone(data: Data, tmp_path: Path) -> None:
    with serve(tmp_path / "data", "--no-tcp", log=tmp_path / "log") as server, server.client() as client:
        session_id = client.post("/sessions", json={"plan": "p"}).json()["session_id"]
        client.post(f"/sessions/{session_id}/commands", json={"type": "session.start"})
        done = record(data.folder, "--resume", session_id, "--", "touch", "ran", cwd=tmp_path)
        assert done.returncode == 125
        assert "something reports to" in done.stderr
        client.post(f"/sessions/{session_id}/commands", json={"type": "session.pause"})
        done = record(data.folder, "--resume", session_id, "--", "touch", "ran", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert data.get(f"/sessions/{session_id}")["outcome"] == "passed"


def test_files_of_another_runner_become_results_while_they_are_written(data: Data, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.xml").write_text('<t><testcase classname="C" name="old"/></t>')
    script = """
        echo '<t><testcase classname="C" name="a" time="1"/></t>' > out/a.xml
        while [ ! -e go ]; do sleep 0.02; done
        printf '<t><testcase classname="C" name="b"><failure message="no"/></testcase><testcase' > out/b.xml
        exit 1
    """
    process = recording(data.folder, "--junit", "out/*.xml", "--", "sh", "-c", script, cwd=tmp_path)
    wait_until(data.has_sessions)
    wait_until(lambda: data.session()["results"]["passed"] == 1)
    (tmp_path / "go").touch()
    _, stderr = process.communicate()
    assert process.returncode == 1
    session_id = session_id_of(stderr)
    results = [one["data"] for one in data.events(session_id) if one["type"] == "result.recorded"]
    assert [(one["case_id"], one["outcome"]) for one in results] == [("C.a", "passed"), ("C.b", "failed")]
    (said,) = data.logged(session_id, "sojourn")
    assert "out/b.xml could be read in part only: it ends in the middle" in said
    assert said in stderr
