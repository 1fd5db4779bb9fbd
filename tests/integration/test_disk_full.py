"""A full disk under the whole runtime: a small sample of the proof `disk_faults`."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sojourn.runtime.stores import reserve as reserves
from sojourn.runtime.stores.reserve import RESERVE_BYTES, Reserve

from ..prove.disk_faults import faults_of, spawn

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """What came of one job on a small disk, emptied before."""
    probe = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "true"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"this machine gives no private mounts: {probe.stderr}")
        pytest.skip(f"this machine gives no private mounts: {probe.stderr}")
    with spawn(tmp_path_factory.mktemp("disk")) as watcher:
        stdin, stdout = watcher.stdin, watcher.stdout
        assert stdin is not None
        assert stdout is not None

        def run(**job: Any) -> dict[str, Any]:
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
            result: dict[str, Any] = json.loads(stdout.readline())
            return result

        yield run
        stdin.close()


def what_failed(result: dict[str, Any]) -> dict[str, Any]:
    bad = {name: count for name, count in faults_of(result).items() if count}
    return {"faults": bad, "said": result["said"]} if bad else {}


def test_a_full_disk_refuses_changes_serves_reads_and_everything_moves_again(run: Run) -> None:
    """I1, I2, I24. Nothing that was acknowledged is lost or doubled, and every session is archived in the end."""
    result = run(kind="fills", seed=3, leave=[0], sessions=4)
    assert what_failed(result) == {}
    assert all(one["refused"] for one in result["said"]["filled"])
    assert result["acknowledged"] > 100


def test_a_start_on_a_full_disk_takes_its_room_from_the_reserve_and_serves(run: Run) -> None:
    """Reads are served, changes wait for room; after an ordered end and after a kill."""
    result = run(kind="starts", seed=2, leave=[64 << 20, 0, 4_096])
    assert what_failed(result) == {}
    assert result["code"] == 0
    assert all(result["said"]["reserve"][1:])
    assert all(did["served"] for did in result["said"]["did"])


def test_a_new_folder_on_a_full_disk_is_refused_and_the_reason_said(run: Run) -> None:
    result = run(kind="starts", seed=2, leave=[0])
    (said,) = result["said"]["not_opened"]
    assert "StorageFull" in said
    assert "free some space" in said


@pytest.mark.parametrize(("reserved", "again"), [(True, 3), (False, 1)])
def test_with_a_reserve_little_room_is_enough_to_go_on(run: Run, reserved: bool, again: int) -> None:
    """Without it the log, written back, takes the room that was freed."""
    result = run(kind="small_room", room=65_536, reserved=reserved)
    (did,) = result["said"]["did"]
    assert did["found"] == did["acknowledged"]
    assert did["again"] == again


def test_a_folder_on_a_full_disk_is_read_without_an_owner(run: Run) -> None:
    """SQLite finds no room for the log's shared memory there, and a copy elsewhere is read."""
    assert run(kind="looks")["said"]["did"] == [True]


def test_a_failed_sync_of_the_log_costs_no_acknowledged_event(run: Run) -> None:
    if shutil.which("strace") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("strace is not installed")
        pytest.skip("strace is not installed")
    inject = "fdatasync:error=EIO:when=25..27"
    result = run(kind="reports", seed=4, rounds=1, for_s=1.0, sessions=4, inject=inject)
    assert what_failed(result) == {}
    assert any("journal" in call for call in result["injected"])


def test_a_reserve_that_was_given_up_is_taken_back_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    reserve = Reserve(path)
    assert reserve.log_bytes_max == 0
    reserve.make()
    assert path.stat().st_blocks * 512 >= RESERVE_BYTES == reserve.size_bytes
    assert Reserve(path).size_bytes == RESERVE_BYTES
    reserve.give_up()
    reserve.give_up()
    assert not path.exists()
    assert reserve.log_bytes_max == 0
    reserve.take_back()
    assert path.stat().st_size == RESERVE_BYTES
    reserve.give_up_to_open()  # there is room enough here
    assert path.exists()
    assert reserves.free_bytes(tmp_path) > 0
