"""Objects as files in a folder.

A write goes to a temporary file beside its place, is synced, and is then linked (create-only) or renamed there; the
folder is synced last, because without that 25 of 25 such files were gone after a power cut.

Small files and flat folders, which is what a session that comes back to memory needs, are read by one thread for all who
wait (`GatheringThread`); what may take longer than that goes to a pool, and holds none of them up.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from ...actors.errors import ObjectExists, ObjectMissing, StorageFull, StoreError, StoreUnavailable
from ..gathering import GatheringThread
from ..verified import differs
from .folders import make_folders, sync_folder
from .object_names import TEMPORARY, check_name, check_prefix

T = TypeVar("T")

# Making an inode is what costs, and more threads do not make it cheaper: 1.9 k/s with one, 2.4 k/s with eight.
_THREADS_MAX = 4
_ROOM = (errno.ENOSPC, errno.EDQUOT)
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# Larger ones take longer to decode than the way to the pool does.
SMALL_BYTES_MAX = 64 * 1024
SMALL_FILES_MAX = 1_000
NAMES_AT_ONCE = 200  # of a long list


class FolderObjects:
    """`Objects` below the folder `root`, which is made with the first object. Runs on asyncio and on trio.

    Emptied folders go with their last object. A writer that is cancelled waits until what it began is done; a reader goes at
    once.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._limiter = anyio.CapacityLimiter(_THREADS_MAX)
        self._reader: GatheringThread | None = None

    async def close(self) -> None:
        """Ends the reading thread, once what waits for it is read; the next read would begin another."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    async def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        await self._run(lambda: self._put(self._root / check_name(name), data, create_only))

    async def put_all(self, objects: Sequence[tuple[str, bytes]]) -> None:
        paths = [(self._root / check_name(name), data) for name, data in objects]
        await self._run(lambda: self._put_all(paths))

    async def get(self, name: str) -> bytes:
        check_name(name)
        data = await self._read(self._small, name)
        return data if data is not None else await self._run(lambda: self._get(name))

    async def list(self, prefix: str) -> AsyncIterator[str]:
        start = check_prefix(prefix)
        flat = await self._read(self._flat, start)
        if flat is not None:
            for name in flat:
                yield name
            return
        names = self._names(start)
        while some := await self._run(lambda: list(islice(names, NAMES_AT_ONCE))):
            for name in some:
                yield name

    async def delete(self, name: str) -> None:
        await self._run(lambda: self._delete(self._root / check_name(name)))

    async def sweep(self, prefix: str = "") -> int:
        """Removes what broken writes and deletions left behind below `prefix`, temporary files and empty folders, and says
        how many files. Only while nobody writes there."""
        start = check_prefix(prefix)
        return await self._run(lambda: self._sweep(f"{self._root}/{start}")[0])

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise self._translated(error) from error

    async def _read(self, work: Callable[..., T], *args: str) -> T:
        if self._reader is None:
            self._reader = GatheringThread("sojourn objects")
        try:
            return await self._reader.run(work, *args)
        except OSError as error:
            raise self._translated(error) from error

    def _put_all(self, objects: Sequence[tuple[Path, bytes]]) -> None:
        """One way to a thread for all of them, and one sync for the names of a folder: for small ones that is most of it."""
        before, last = objects[:-1], objects[-1:]
        for some in (before, last):
            new = [(path, data) for path, data in some if not _holds(path, data)]
            for path, data in new:
                self._write(path, data, create_only=False)
            for folder in {path.parent for path, _ in some}:
                sync_folder(folder)
            for path, data in new:
                if not _holds(path, data):
                    raise differs(self._name(path))

    def _put(self, path: Path, data: bytes, create_only: bool) -> None:
        self._write(path, data, create_only)
        sync_folder(path.parent)

    def _write(self, path: Path, data: bytes, create_only: bool) -> None:
        """Its content is durable, its name not yet."""
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        descriptor = self._create(temporary)
        is_left = True
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
                is_left = False
        except FileExistsError as error:
            raise ObjectExists(
                f"there is an object {self._name(path)} already; nothing was written"
            ) from error
        finally:
            if is_left:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()

    def _create(self, temporary: Path) -> int:
        """A new file, and its folders with it; `_delete` may take an emptied folder away in between."""
        while True:
            try:
                return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                make_folders(temporary.parent)

    def _get(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except _MISSING as error:
            raise self._missing(name) from error

    def _small(self, name: str) -> bytes | None:
        """What `get` gives; None for a file that is not small. As few system calls as will do: around each the thread gives
        the interpreter up, and may wait for it."""
        try:
            descriptor = os.open(f"{self._root}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.read(descriptor, SMALL_BYTES_MAX + 1)
            finally:
                os.close(descriptor)
        except _MISSING as error:
            raise self._missing(name) from error
        return data if len(data) <= SMALL_BYTES_MAX else None

    def _missing(self, name: str) -> ObjectMissing:
        return ObjectMissing(f"there is no object {name} in {self._root}")

    def _flat(self, start: str) -> Sequence[str] | None:
        """What `list` gives; None where there are folders, or very many files. As few steps as will do, as for `_small`."""
        names: list[str] = []
        try:
            with os.scandir(f"{self._root}/{start}") as entries:
                for entry in entries:
                    if entry.is_dir() or len(names) >= SMALL_FILES_MAX:
                        return None
                    if not entry.name.startswith(TEMPORARY):
                        names.append(start + entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(names)

    def _names(self, start: str) -> Iterator[str]:
        """In the order of `list`, folder by folder as they are asked for."""
        for name in self._entries(start):
            if name.endswith("/"):
                yield from self._names(name)
            else:
                yield name

    def _entries(self, start: str) -> Sequence[str]:
        """What is in a folder, sorted; folders end with a slash, and links to folders are left out."""
        with _folder(f"{self._root}/{start}") as entries:
            return sorted(
                f"{start}{entry.name}/" if entry.is_dir() else start + entry.name
                for entry in entries
                if not entry.name.startswith(TEMPORARY) and not (entry.is_symlink() and entry.is_dir())
            )

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

    def _sweep(self, folder: str) -> tuple[int, bool]:
        """How many files went, and whether nothing is left there."""
        swept, is_empty = 0, True
        with _folder(folder) as entries:
            for entry in tuple(entries):
                if entry.is_dir(follow_symlinks=False):
                    more, emptied = self._sweep(entry.path)
                    swept += more
                    if emptied:
                        os.rmdir(entry.path)
                    else:
                        is_empty = False
                elif entry.name.startswith(TEMPORARY):
                    os.unlink(entry.path)
                    swept += 1
                else:
                    is_empty = False
        return swept, is_empty

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _translated(self, error: OSError) -> StoreError:
        if error.errno in _ROOM:
            return StorageFull(
                f"no room in {self._root} ({error.strerror}); nothing was written, free some space"
            )
        return StoreUnavailable(f"the object store {self._root} failed ({error})")


def _holds(path: Path, data: bytes) -> bool:
    """Whether that stands there. In half the steps of `Path.read_bytes`, for what `_small` says."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except _MISSING:
        return False
    try:
        found = os.read(descriptor, len(data) + 1)
        while len(found) < len(data) and (more := os.read(descriptor, len(data) + 1 - len(found))):
            found += more
    except _MISSING:
        return False
    finally:
        os.close(descriptor)
    return found == data


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextlib.contextmanager
def _folder(path: str) -> Iterator[Iterator["os.DirEntry[str]"]]:
    """What is in it; nothing, where there is no such folder."""
    try:
        entries = os.scandir(path)
    except (FileNotFoundError, NotADirectoryError):
        yield iter(())
        return
    with entries:
        yield entries
