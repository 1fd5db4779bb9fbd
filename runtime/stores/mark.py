"""How far a database has come, in a small file beside it.

SQLite drops the damaged tail of a log without a word, and a database that is an older copy looks whole. So its owner
notes after each commit what was committed, in memory that is mapped to this file: that costs no system call, and outlives
the process however it ends. Only its making is synced: after a power cut the mark may be behind the database, never ahead
and never without its checksum.
"""

import contextlib
import errno
import mmap
import os
import struct
from pathlib import Path
from zlib import crc32

from ...actors.errors import Damaged, StorageFull, UnusableFolder

_HEAD = struct.Struct("<4sI")  # magic, and the CRC-32 of the numbers
_NUMBERS = struct.Struct("<3Q")
_MAGIC = b"\xffSM1"
_SIZE = _HEAD.size + _NUMBERS.size
_READS = 3  # the owner may write while a reader reads


def mark_path(path: Path) -> Path:
    """Of the database at `path`."""
    return path.with_name(f"{path.name}-mark")


def read_mark(path: Path) -> tuple[int, int, int] | None:
    """The numbers noted last beside the database at `path`; None where none were.

    Raises:
        Damaged: the mark does not carry its checksum.
    """
    for _ in range(_READS):
        try:
            data = mark_path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        numbers = data[_HEAD.size : _SIZE]
        if len(data) >= _SIZE and _HEAD.pack(_MAGIC, crc32(numbers)) == data[: _HEAD.size]:
            return _NUMBERS.unpack(numbers)
    raise Damaged(
        f"{mark_path(path)} does not carry its checksum, so whether {path} is whole cannot be told by it"
    )


class Mark:
    """The owner's hand on it. Opened where nothing is noted yet, it is made with the first note."""

    def __init__(self, path: Path) -> None:
        self._path = mark_path(path)
        self._memory: mmap.mmap | None = None

    def note(self, first: int, second: int = 0, third: int = 0) -> None:
        """Numbers of 0 to 2**64 - 1, which are there from here on.

        Raises:
            StorageFull, UnusableFolder: there is no such file yet, and it cannot be made.
        """
        if self._memory is None:
            self._memory = self._map()
        self._memory[:_SIZE] = _encode(first, second, third)

    def close(self) -> None:
        """Again: nothing happens."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    def _map(self) -> mmap.mmap:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.closing(os.fdopen(descriptor, "r+b", buffering=0)) as file:
                if os.fstat(descriptor).st_size < mmap.PAGESIZE:
                    # Written and not only sized: where the disk has no room, this says so and no memory fault.
                    # Synced, because a power cut would leave an empty file, which is a damaged one.
                    os.pwrite(descriptor, _encode(0, 0, 0).ljust(mmap.PAGESIZE, b"\0"), 0)
                    os.fsync(descriptor)
                return mmap.mmap(file.fileno(), mmap.PAGESIZE)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"no room for {self._path}; nothing was written, free some space"
                ) from error
            raise UnusableFolder(
                f"{self._path} cannot be made ({error.strerror}); check that its folder can be written, or name another "
                "folder with --data"
            ) from error


def _encode(*numbers: int) -> bytes:
    packed = _NUMBERS.pack(*numbers)
    return _HEAD.pack(_MAGIC, crc32(packed)) + packed
