"""A recording whose runtime is absent, stopped, gone for a while, or has a full disk: the command never notices, and what
was recorded is delivered later."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from tests.support.serve import serve
from tests.support.wait import wait_until

SUITE = """
import pytest
@pytest.mark.parametrize("n", range(20))
def test_many(n): print("said", n)
def test_fails(): assert 0, "no"
"""
PYTEST = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Data]:
    yield Data(tmp_path / "data")
    end_server(tmp_path / "data")


def test_a_stopped_server_is_not_waited_for_and_takes_all_when_it_goes_on(data: Data, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    with serve(data.folder, "--no-tcp", log=tmp_path / "log") as server:
        server.process.send_signal(signal.SIGSTOP)
        done = record(data.folder, "--json", "r.json", "--", *PYTEST, cwd=tmp_path)
        assert done.returncode == 1
        assert "1 failed, 20 passed" in done.stdout
        session_id = session_id_of(done.stderr)
        (left,) = data.spooled
        assert left.name == session_id
        assert f"they are kept in {left}" in done.stderr
        assert f"sojourn serve --data {data.folder}" in done.stderr
        told = json.loads((tmp_path / "r.json").read_text())
        assert (told["exit_code"], told["delivered"], told["spool"]) == (1, 0, str(left))
        assert told["undelivered"] > 21
        server.process.send_signal(signal.SIGCONT)
        assert record(data.folder, "--", "true").returncode == 0
        wait_until(lambda: not data.spooled)
        kept = data.get(f"/sessions/{session_id}")
        assert (kept["status"], kept["outcome"], kept["exit_code"]) == ("completed", "failed", 1)
        assert (kept["results"]["passed"], kept["results"]["failed"]) == (20, 1)
        results = [
            one["data"]["case_id"] for one in data.events(session_id) if one["type"] == "result.recorded"
        ]
        assert len(results) == len(set(results)) == 21


def test_a_server_that_cannot_be_reached_changes_nothing_for_the_command(data: Data, tmp_path: Path) -> None:
    done = record(data.folder, "--server", NOBODY, "--", "sh", "-c", "echo out; exit 7", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert "no server answers" in done.stderr
    assert f"`sojourn record --server {NOBODY} --data {data.folder}` delivers them" in done.stderr
    (left,) = data.spooled
    assert json.loads((left / "create.json").read_text())["plan"] == "sh -c"


def test_what_was_for_a_server_by_its_address_is_delivered_there(data: Data, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with serve(elsewhere, "--port", "0", log=tmp_path / "log") as server:
        url, port = server.url, server.url.rpartition(":")[2]
    done = record(data.folder, "--server", url, "--", "sh", "-c", "echo out; exit 7")
    assert done.returncode == 7
    with serve(elsewhere, "--port", port, log=tmp_path / "log2"):
        assert record(data.folder, "--server", url, "--", "true").returncode == 0
        wait_until(lambda: not data.spooled)
        assert Data(elsewhere).logged(session_id_of(done.stderr)) == ["out"]


def test_ctrl_c_ends_a_recording_whose_server_is_stopped(data: Data, tmp_path: Path) -> None:
    with serve(data.folder, "--no-tcp", log=tmp_path / "log") as server:
        server.process.send_signal(signal.SIGSTOP)
        # No shell: one that is told between forking and executing its child waits for the child, which has not heard it.
        waits = "import pathlib, time; pathlib.Path('started').touch(); time.sleep(60)"
        process = recording(data.folder, "--", sys.executable, "-c", waits, cwd=tmp_path)
        wait_until((tmp_path / "started").exists)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 130
        server.process.send_signal(signal.SIGCONT)
        assert record(data.folder, "--", "true").returncode == 0
        wait_until(lambda: not data.spooled)
        assert data.get(f"/sessions/{session_id_of(stderr)}")["status"] == "cancelled"


def test_a_signal_that_comes_at_once_reaches_the_command(data: Data, tmp_path: Path) -> None:
    """While the recorder is still being imported."""
    script = "trap 'echo got it; exit 0' TERM; kill -TERM $PPID; while :; do sleep 0.05; done"
    done = record(data.folder, "--server", NOBODY, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (143, "got it\n")


def full(
    folder: Path, arguments: list[str], *, size: str, fill: str = "true"
) -> "subprocess.CompletedProcess[str]":
    """A recording in a data folder that is a file system of its own, of so many bytes."""
    folder.mkdir()
    script = f'set -e; mount -t tmpfs -o size={size} tmpfs "$1"; cd "$1"; {fill}; cd /; shift; exec "$@"'
    private = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(folder)]
    probe = subprocess.run([*private, "true"], capture_output=True, text=True, timeout=60, check=False)
    if probe.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"this machine gives no private mounts: {probe.stderr}")
        pytest.skip(f"this machine gives no private mounts: {probe.stderr}")
    line = command_line(folder, "--server", NOBODY, *arguments)
    return subprocess.run(
        [*private, *line], env=environment(), capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )


def test_a_data_folder_that_is_full_is_no_obstacle(tmp_path: Path) -> None:
    done = full(
        tmp_path / "data",
        ["--", "sh", "-c", "echo out; exit 3"],
        size="64k",
        fill="mkdir spool; cat /dev/zero > full 2>/dev/null || true",
    )
    assert (done.returncode, done.stdout) == (3, "out\n"), done.stderr
    assert f"move that folder into {tmp_path / 'data' / 'spool'}" in done.stderr
    (kept,) = (
        word.rstrip(";") for word in done.stderr.split() if "sojourn-spool-" in word and word[-1] == ";"
    )
    assert b'"text":"out"' in (Path(kept) / "outbox.ndjson").read_bytes()


def test_a_data_folder_that_fills_up_costs_lines_of_output_and_says_so(tmp_path: Path) -> None:
    script = "for n in range(100_000): print(n, 'x' * 50)"
    done = full(tmp_path / "data", ["--", PYTHON, "-c", f"{script}\nraise SystemExit(3)"], size="256k")
    assert done.returncode == 3, done.stderr
    assert [int(line.split()[0]) for line in done.stdout.splitlines()] == list(range(100_000))
    assert "the spool takes no more" in done.stderr
    assert "lines of output" in done.stderr
    assert "there was no room for them to wait" in done.stderr
