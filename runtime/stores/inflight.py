"""Which command is being handled now, in memory that is mapped to a file.

A page that is mapped outlives the process however it ends, and writing to it costs no system call: 0.1 us a turn. It is
not synced, so after a power cut it may say what was true some seconds before; an attempt too many is all that can come
of it, and it takes two to set a command aside.
"""

import errno
import mmap
import os
import struct
from collections.abc import Callable, MutableSequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import cast

from ...actors.errors import StorageFull, UnusableFolder
from ...actors.ports import Identity, InFlight

# Session id, n, name; texts are filled up with zeros. An id that begins with one: nothing is being handled.
_SLOT = struct.Struct("<64sq256s")


class MappedInflight:
    """`Inflight` in a file. Opened by `open`.

    Attributes:
        note, page: see the port. A function in C over the mapped page, and the page: methods would double the cost.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._left = _read(memory[: _SLOT.size])
        self.note: Callable[[bytes, int, bytes], object] = partial(_SLOT.pack_into, memory, 0)
        self.page: MutableSequence[int] = cast(MutableSequence[int], memory)

    @classmethod
    def open(cls, path: Path) -> "MappedInflight":
        """Maps the file, which is made where there is none.

        Raises:
            StorageFull: there is no room for its page.
            UnusableFolder: it cannot be made or opened there.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with closing(os.fdopen(descriptor, "r+b", buffering=0)) as file:
                if os.fstat(descriptor).st_size < mmap.PAGESIZE:
                    # Written and not only sized: where the disk has no room, this says so and no memory fault.
                    os.pwrite(descriptor, bytes(mmap.PAGESIZE), 0)
                return cls(mmap.mmap(file.fileno(), mmap.PAGESIZE))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"no room for {path}; nothing was written, free some space") from error
            raise UnusableFolder(
                f"{path} cannot be made ({error.strerror}); check that its folder can be written, or name another folder "
                "with --data"
            ) from error

    def left(self) -> InFlight | None:
        return self._left

    def close(self) -> None:
        if not self._memory.closed:
            self._memory[0] = 0
            self._memory.close()


class MemoryInflight:
    """`Inflight` in memory: it ends with the process, so it never has anything left but what it is given."""

    def __init__(self, left: InFlight | None = None) -> None:
        self._left = left
        self._memory = bytearray(_SLOT.size)
        self.note: Callable[[bytes, int, bytes], object] = partial(_SLOT.pack_into, self._memory, 0)
        self.page: MutableSequence[int] = self._memory

    def left(self) -> InFlight | None:
        return self._left

    def close(self) -> None:
        self._memory[0] = 0


def _read(slot: bytes) -> InFlight | None:
    """None where nothing was being handled."""
    session_id, n, name = _SLOT.unpack(slot)
    if not session_id[0]:
        return None
    return InFlight(
        session_id=session_id.rstrip(b"\0").decode("utf-8", "replace"),
        kind=Identity.SOURCE if n > 0 else Identity.COMMAND_ID if n == 0 else Identity.DIGEST,
        n=max(n, 0),
        name=name.rstrip(b"\0").decode("utf-8", "replace"),
    )
