"""Objects in a folder: what only files can do and suffer."""

import errno
import os
import re
import threading
from pathlib import Path

import pytest

from sojourn.actors.errors import StorageFull, StoreUnavailable
from sojourn.runtime.stores import folders, objects_folder
from sojourn.runtime.stores.objects_folder import SMALL_BYTES_MAX, SMALL_FILES_MAX, FolderObjects
from tests.support import stores

pytestmark = pytest.mark.anyio


async def names(objects: FolderObjects) -> list[str]:
    return [name async for name in objects.list("")]


async def test_leftovers_of_broken_writes_are_not_listed_and_are_swept(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    assert await objects.sweep() == 0
    await objects.put("a/b", b"x")
    for place in (".tmp-0", "a/.tmp-1"):
        (tmp_path / place).write_bytes(b"half")
    assert await names(objects) == ["a/b"]
    assert await objects.sweep() == 2
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")) == ["a", "a/b"]


async def test_folders_that_a_killed_process_had_emptied_are_swept_and_no_others(tmp_path: Path) -> None:
    for folder in ("sessions/ab/gone", "sessions/cd/kept", "spool/begun"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sessions/cd/kept/facts.json").write_bytes(b"{}")
    await FolderObjects(tmp_path).sweep("sessions")
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir()}
    assert left == {"sessions", "sessions/cd", "sessions/cd/kept", "spool", "spool/begun"}


async def test_nothing_but_the_object_is_left_after_a_put(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path / "objects")
    await objects.put("a/b", b"x", create_only=True)
    await objects.put("a/b", b"y")
    assert [file.name for file in (tmp_path / "objects" / "a").iterdir()] == ["b"]


async def test_the_last_of_those_put_together_is_written_once_the_others_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace, sync = os.replace, folders.sync_folder

    def renamed(source: Path, target: Path) -> None:
        done.append(target.name)
        replace(source, target)

    def synced(folder: Path) -> None:
        done.append(f"sync {folder.name}")
        sync(folder)

    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(objects_folder, "sync_folder", synced)
    objects = FolderObjects(tmp_path)
    (tmp_path / "a").mkdir()
    await objects.put_all([("a/b", b"b"), ("a/c", b"c"), ("a/manifest", b"m")])
    assert done == ["b", "c", "sync a", "manifest", "sync a"]
    done.clear()
    await objects.put_all([("a/b", b"b"), ("a/c", b"another"), ("a/manifest", b"m")])
    assert done == ["c", "sync a", "sync a"]  # what stands may not have been synced where it broke off


async def test_what_does_not_read_back_ends_those_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_folder, "_write_all", lambda descriptor, data: os.write(descriptor, data[1:]))
    with pytest.raises(StoreUnavailable, match="a/b does not read back as it was written"):
        await FolderObjects(tmp_path).put_all([("a/b", b"xy"), ("a/manifest", b"m")])
    assert not (tmp_path / "a" / "manifest").exists()


async def test_folders_go_with_their_last_object(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    await objects.put("a/b/c", b"x")
    await objects.put("a/d", b"x")
    await objects.delete("a/b/c")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a", "d"]
    await objects.delete("a/d")
    assert list(tmp_path.iterdir()) == []


async def test_a_put_over_a_folder_fails_and_leaves_nothing(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    await objects.put("a/b", b"x")
    with pytest.raises(StoreUnavailable, match="directory"):
        await objects.put("a", b"x")
    assert await names(objects) == ["a/b"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a"]


async def test_a_store_in_the_place_of_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    objects = FolderObjects(tmp_path / "file")
    with pytest.raises(StoreUnavailable, match="file"):
        await objects.put("a", b"x")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    said = stores.run_mounted('mount -t tmpfs -o size=64k tmpfs "$1"', "full_objects", tmp_path)
    assert said == {"refused": True, "left": ["small"]}


def test_a_file_is_synced_before_it_has_its_name_and_each_folder_after_it_changed(tmp_path: Path) -> None:
    _, calls = stores.traced(["-e", "trace=mkdir,fsync,rename"], "put_object", tmp_path)
    steps = [re.sub(r"\.tmp-\w+", "TEMPORARY", call).replace(str(tmp_path), "ROOT") for call in calls]
    assert [re.findall(r"^\w+|ROOT[/\w]*", step) for step in steps] == [
        ["mkdir", "ROOT/a"],
        ["fsync", "ROOT"],
        ["fsync", "ROOT/a/TEMPORARY"],
        ["rename", "ROOT/a/TEMPORARY", "ROOT/a/b"],
        ["fsync", "ROOT/a"],
    ]


def test_the_error_of_a_quota_is_a_full_store() -> None:
    error = FolderObjects(Path("x"))._translated(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert isinstance(error, StorageFull)


@pytest.mark.parametrize("size", [SMALL_BYTES_MAX - 1, SMALL_BYTES_MAX, SMALL_BYTES_MAX + 1])
async def test_an_object_is_read_whole_however_it_is_read(tmp_path: Path, size: int) -> None:
    objects = FolderObjects(tmp_path)
    await objects.put("a/b", b"x" * size)
    assert await objects.get("a/b") == b"x" * size
    await objects.close()


async def test_a_long_folder_is_listed_whole(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    expected = [f"{n:05}" for n in range(SMALL_FILES_MAX + 1)]
    for name in expected:
        (tmp_path / name).touch()
    assert await names(objects) == expected
    await objects.close()


async def test_a_closed_store_has_no_thread_and_reads_on(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    await objects.put("a/b", b"x")
    for _ in range(2):
        before = set(threading.enumerate())
        assert await objects.get("a/b") == b"x"
        (reader,) = [thread for thread in set(threading.enumerate()) - before if "objects" in thread.name]
        await objects.close()
        assert not reader.is_alive()


async def test_a_file_that_may_not_be_read_is_unavailable_and_not_missing(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StoreUnavailable, match="loop"):
        await objects.get("loop")
    await objects.close()
