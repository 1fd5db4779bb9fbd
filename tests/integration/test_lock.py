"""Who owns a data folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sojourn.actors.errors import FolderInUse, UnusableFolder
from sojourn.runtime.stores.lock import FolderLock, owner_pid
from tests.support.stores import ROOT, traced

HOLD = """
import sys, pathlib
from sojourn.runtime.stores.lock import FolderLock
lock = FolderLock.acquire(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_new_folders_files_hold_what_they_say_before_anything_relies_on_them(tmp_path: Path) -> None:
    """A file that is renamed or mapped and was not synced before is there after a power cut and is empty."""
    _, calls = traced(["-e", "trace=fsync,rename"], "own", tmp_path)
    steps = [re.findall(r"^\w+|ROOT[-./\w]*", call.replace(str(tmp_path), "ROOT")) for call in calls]
    assert steps[:3] == [
        ["fsync", "ROOT/.tmp-format"],
        ["rename", "ROOT/.tmp-format", "ROOT/format"],
        ["fsync", "ROOT"],
    ]
    assert ["fsync", "ROOT/journal.db-mark"] in steps


def test_a_folder_is_made_with_its_parents_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    lock = FolderLock.acquire(folder)
    assert (folder / "format").read_text() == "1\n"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert owner_pid(folder) == os.getpid()
    lock.release()


def test_a_second_owner_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    lock = FolderLock.acquire(tmp_path)
    with pytest.raises(FolderInUse, match=f"pid {os.getpid()}") as caught:
        FolderLock.acquire(tmp_path)
    assert caught.value.pid == os.getpid()
    assert owner_pid(tmp_path) == os.getpid()
    lock.release()


def test_a_released_folder_can_be_taken_again(tmp_path: Path) -> None:
    lock = FolderLock.acquire(tmp_path)
    lock.release()
    lock.release()
    assert owner_pid(tmp_path) is None
    FolderLock.acquire(tmp_path).release()


def test_an_owner_in_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert owner_pid(tmp_path) == process.pid
        with pytest.raises(FolderInUse) as caught:
            FolderLock.acquire(tmp_path)
        assert caught.value.pid == process.pid
        process.kill()
    assert owner_pid(tmp_path) is None
    FolderLock.acquire(tmp_path).release()


def test_asking_for_the_owner_takes_nothing_and_makes_nothing(tmp_path: Path) -> None:
    assert owner_pid(tmp_path) is None
    assert owner_pid(tmp_path / "nowhere") is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("9\n")
    with pytest.raises(UnusableFolder, match=r"format 9.*formats up to 1.*newer Sojourn"):
        FolderLock.acquire(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["format"]


@pytest.mark.parametrize("content", [b"", b"one", b"\xff\xfe", b"-1"])
def test_a_format_that_is_no_number_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "format").write_bytes(content)
    with pytest.raises(UnusableFolder, match="no data folder of Sojourn"):
        FolderLock.acquire(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named_with_cause_and_remedy(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnusableFolder, match=r"cannot be used \(.+\); name another folder with --data"):
        FolderLock.acquire(tmp_path / place)
