"""Room on the disk that is held so that what was begun can be finished once everything else is full.

SQLite's log is written back into the database file, which grows by what the log holds. On a full disk that needs room,
and would take what is freed there until it is as much as the log holds. A start needs a little room too. So a file of
our own holds as much as both need: it goes when the disk is full, the log is written back and cut off, which frees what
the file had taken or more, and the file is made again. What is freed from then on is there for commits.
"""

import os
from contextlib import suppress
from pathlib import Path

RESERVE_BYTES = 4 * 1024 * 1024
OPENING_BYTES = 512 * 1024  # what a start needs: the shared memory of two logs, the owner's epoch and pid


def free_bytes(folder: Path) -> int:
    """What may still be written there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class Reserve:
    """The file. It is best effort: where it cannot be made there is none, and `log_bytes_max` says what follows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._given_up_bytes = 0
        self.size_bytes = 0
        with suppress(FileNotFoundError):
            self.size_bytes = path.stat().st_size

    @property
    def log_bytes_max(self) -> int:
        """How much of a log can be written back for certain: a quarter is for what cannot be told exactly."""
        return self.size_bytes * 3 // 4

    def make(self) -> None:
        """What was given up for a start, and else the whole, where there is room for twice of what is missing."""
        if self._given_up_bytes:
            self.take_back()
        missing = RESERVE_BYTES - self.size_bytes
        if missing > 0 and free_bytes(self._path.parent) >= 2 * missing:
            self._allocate(RESERVE_BYTES)

    def give_up_to_open(self) -> None:
        """Give it up where there is too little room for a start."""
        if free_bytes(self._path.parent) < OPENING_BYTES:
            self.give_up()

    def give_up(self) -> None:
        """Its room is there for others, until `take_back`."""
        self._given_up_bytes = max(self._given_up_bytes, self.size_bytes)
        with suppress(FileNotFoundError):
            self._path.unlink()
        self.size_bytes = 0

    def take_back(self) -> None:
        """What was given up, or as much of it as is there."""
        size_bytes, self._given_up_bytes = self._given_up_bytes, 0
        self._allocate(min(size_bytes, free_bytes(self._path.parent)))

    def _allocate(self, size_bytes: int) -> None:
        if size_bytes <= self.size_bytes:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size_bytes)
            finally:
                os.close(descriptor)
            self.size_bytes = size_bytes
        except OSError:
            # Somebody else was quicker, or the disk fails. Half a reserve would be taken for a whole one.
            with suppress(OSError):
                self.give_up()
                self._given_up_bytes = 0
