"""Objects as files in a folder.

A write goes to a temporary file beside its place, is synced, and is then linked (create-only) or renamed there; the
folder is synced last, because without that 25 of 25 such files were gone after a power cut.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from ...actors.errors import ObjectExists, ObjectMissing, StorageFull, StoreError, StoreUnavailable
from .folders import make_folders, sync_folder
from .object_names import TEMPORARY, check_name, check_prefix

T = TypeVar("T")

# Making an inode is what costs, and more threads do not make it cheaper: 1.9 k/s with one, 2.4 k/s with eight.
_THREADS_MAX = 4
_ROOM = (errno.ENOSPC, errno.EDQUOT)


class FolderObjects:
    """`Objects` below the folder `root`, which is made with the first object. Runs on asyncio and on trio.

    Emptied folders go with their last object. A caller that is cancelled waits until what it began is done.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._limiter = anyio.CapacityLimiter(_THREADS_MAX)

    async def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        await self._run(lambda: self._put(self._root / check_name(name), data, create_only))

    async def get(self, name: str) -> bytes:
        return await self._run(lambda: self._get(name))

    async def list(self, prefix: str) -> AsyncIterator[str]:
        start = check_prefix(prefix)
        for name in await self._run(lambda: sorted(self._names(start))):
            yield name

    async def delete(self, name: str) -> None:
        await self._run(lambda: self._delete(self._root / check_name(name)))

    async def sweep(self, prefix: str = "") -> int:
        """Removes what broken writes and deletions left behind below `prefix`, temporary files and empty folders, and says
        how many files. Only while nobody writes there."""
        start = check_prefix(prefix)
        return await self._run(lambda: self._sweep(self._root / start))

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise self._translated(error) from error

    def _put(self, path: Path, data: bytes, create_only: bool) -> None:
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        descriptor = self._create(temporary)
        try:
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if create_only:
                os.link(temporary, path)
            else:
                os.replace(temporary, path)
        except FileExistsError as error:
            raise ObjectExists(
                f"there is an object {self._name(path)} already; nothing was written"
            ) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        sync_folder(path.parent)

    def _create(self, temporary: Path) -> int:
        """A new file, and its folders with it; `_delete` may take an emptied folder away in between."""
        while True:
            make_folders(temporary.parent)
            with contextlib.suppress(FileNotFoundError):
                return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def _get(self, name: str) -> bytes:
        try:
            return (self._root / check_name(name)).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ObjectMissing(f"there is no object {name} in {self._root}") from error

    def _names(self, start: str) -> Iterator[str]:
        for folder, _, files in os.walk(self._root / start, onerror=_raise_unless_missing):
            for file in files:
                if not file.startswith(TEMPORARY):
                    yield self._name(Path(folder) / file)

    def _delete(self, path: Path) -> None:
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        folder = path.parent
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                    raise
                break
            folder = folder.parent
        with contextlib.suppress(FileNotFoundError):
            sync_folder(folder)

    def _sweep(self, start: Path) -> int:
        swept = 0
        for folder, _, files in os.walk(start, topdown=False, onerror=_raise_unless_missing):
            for file in files:
                if file.startswith(TEMPORARY):
                    (Path(folder) / file).unlink(missing_ok=True)
                    swept += 1
            if Path(folder) != start and not os.listdir(folder):
                Path(folder).rmdir()
        return swept

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _translated(self, error: OSError) -> StoreError:
        if error.errno in _ROOM:
            return StorageFull(
                f"no room in {self._root} ({error.strerror}); nothing was written, free some space"
            )
        return StoreUnavailable(f"the object store {self._root} failed ({error})")


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _raise_unless_missing(error: OSError) -> None:
    """For `os.walk`, which leaves out what it cannot read unless told otherwise."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
