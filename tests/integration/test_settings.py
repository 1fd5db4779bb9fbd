"""Settings as the commands take them: file, variables and flags, and nothing started where one of them is wrong."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sojourn.runtime.stores.lock import owner_pid
from tests.support import owner
from tests.support.serve import serve
from tests.support.wait import wait_until

DEADLINE_S = 60
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("SOJOURN_", "XDG_"))}
ENVIRONMENT |= {"PYTHONWARNINGS": "error"}


def sojourn(*arguments: str | Path, cwd: Path, code: int = 0, **variables: str) -> str:
    """What the command wrote to a pipe; for another exit code than 0, what it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "sojourn", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT | {"HOME": str(cwd)} | variables,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def test_settings_shows_each_value_with_its_unit_and_source_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "sojourn.toml").write_text('token = "s3cret"\njournal_bytes_max = 2097152\n')
    said = sojourn("settings", cwd=tmp_path, SOJOURN_SERVER="http://ann:s3cret@host:1", SOJOURN_PORT="9")
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines()}
    assert rows["SETTING"] == ["VALUE", "UNIT", "FROM"]
    assert rows["journal_bytes_max"] == ["2,097,152", "bytes", "sojourn.toml"]
    assert rows["seal_after_s"] == ["30.0", "s", "default"]
    assert rows["port"] == ["9", "-", "SOJOURN_PORT"]
    assert rows["token"] == ["***", "-", "sojourn.toml"]
    assert rows["server"] == ["http://ann:***@host:1", "-", "SOJOURN_SERVER"]
    assert "s3cret" not in said
    document = json.loads(sojourn("settings", "--json", cwd=tmp_path))
    assert document["file"] == "sojourn.toml"
    port = next(entry for entry in document["settings"] if entry["name"] == "port")
    assert port == {"name": "port", "value": 8765, "unit": "", "source": "default"}


@pytest.mark.parametrize("command", [["settings"], ["ls"], ["show", "last"], ["serve", "--no-tcp"]])
def test_a_mistake_in_the_settings_starts_nothing(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "sojourn.toml").write_text('data_dir = "data"\nprot = 8765\n')
    said = sojourn(*command, cwd=tmp_path, code=2)
    assert said == (
        "sojourn: sojourn.toml: there is no setting 'prot' (did you mean port?); `sojourn settings` lists them\n"
    )
    assert not (tmp_path / "data").exists()


def test_the_reading_commands_find_folder_and_server_by_the_settings(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first, _, _ = owner.killed_owner(data)
    file = tmp_path / "mine.toml"
    file.write_text('data_dir = "data"\n')
    assert first in sojourn("ls", "--config", file, cwd=tmp_path)
    assert first in sojourn("ls", cwd=tmp_path, SOJOURN_CONFIG=str(file))
    assert first in sojourn("ls", cwd=tmp_path, SOJOURN_DATA=str(data))
    nowhere: Any = {"SOJOURN_SERVER": "http://127.0.0.1:1"}
    assert "no server answers at http://127.0.0.1:1" in sojourn("ls", cwd=tmp_path, code=2, **nowhere)
    # A folder that is named here goes before a server that is named elsewhere.
    assert first in sojourn("ls", "--data", data, cwd=tmp_path, **nowhere)
    both = sojourn("ls", "--data", data, "--server", "http://127.0.0.1:1", cwd=tmp_path, code=2)
    assert "--data and --server exclude each other" in both


def test_serve_takes_its_host_port_and_token_from_the_file_and_its_log_level_from_the_flag(
    tmp_path: Path,
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('host = "0.0.0.0"\nport = 0\ntoken = "s3cret"\nlog_level = "error"\n')
    log = tmp_path / "log"
    # It would not say that it listens: the flag goes before the file.
    with serve(tmp_path / "data", "--config", str(file), "--log-level", "info", log=log) as server:
        assert server.url.startswith("http://0.0.0.0:")
        with server.client() as client:
            assert client.get("/sessions").status_code == 401
            assert client.get("/sessions", headers={"authorization": "Bearer s3cret"}).status_code == 200
        assert server.stop() == 0
        stopped = json.loads(server.said.splitlines()[-1])
        assert (stopped["event"], stopped["epoch"]) == ("serve.stopped", 1)


def test_a_server_that_record_starts_reads_the_same_file_and_asks_for_no_token_of_it(tmp_path: Path) -> None:
    (tmp_path / "sojourn.toml").write_text('data_dir = "data"\ntoken = "s3cret"\n')
    sojourn("record", "--", sys.executable, "-c", "print('recorded')", cwd=tmp_path)
    pid = owner_pid(tmp_path / "data")
    assert pid is not None
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        assert words[words.index("--config") + 1] == str(tmp_path / "sojourn.toml")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        assert "passed" in sojourn("ls", "--data", tmp_path / "data", cwd=elsewhere)
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: owner_pid(tmp_path / "data") is None)


def test_a_recording_is_refused_where_the_settings_are_wrong(tmp_path: Path) -> None:
    said = sojourn("record", "--", "touch", "ran", cwd=tmp_path, code=125, SOJOURN_DATAA="x")
    assert said == (
        "sojourn: error: SOJOURN_DATAA: there is no such setting (did you mean SOJOURN_DATA?); unset it. "
        "The command was not run\n"
    )
    assert list(tmp_path.iterdir()) == []
