"""Where a recording keeps what it has to deliver, so that neither a dead server nor a dead recorder loses it.

    DATA/spool/sess_.../   outbox.ndjson    the commands, in order, as they go over the wire
                           acknowledged     how much of it the server has taken, as a decimal
                           target           the server's address, empty for the folder's own
                   command          the recorded process
                           reporter.spill   what pytest could not hand over
                           stdout stderr    the command's output, until it has been read
    DATA/spool/refused-sess_....ndjson      what the server refused, with its reasons

A recorder holds a lock on its outbox while it lives (`flock`), so the files of a live one are never touched. Appending
is one `write`: it survives the recorder's death, though not a power cut.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec
import psutil
from attrs import frozen

# The wire's limits for a batch (docs/protocol.md).
BATCH_LINES_MAX = 1_000
BATCH_BYTES_MAX = 1024 * 1024
# How much is given back to the file system at once: a system call for each batch would be too many.
_RELEASE_BYTES = 1024 * 1024

_TEMPORARY = "sojourn-spool-"

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@frozen
class Batch:
    """Lines to deliver, and the offset to acknowledge once they are."""

    lines: list[bytes]
    end: int


@frozen(kw_only=True)
class OutboxStatistics:
    """Counts of lines since the outbox was made or adopted."""

    appended: int
    acknowledged: int


class Outbox:
    """An ordered file of commands: appended at its end, acknowledged from its beginning. Memory does not grow with it."""

    def __init__(self, folder: Path, fd: int, target: str, source: str) -> None:
        self.folder = folder
        self.session_id = folder.name
        self.target = target
        self.source = source
        self._fd = fd
        self._n = 0
        self._end = os.fstat(fd).st_size
        self._acknowledged = 0
        self._released = 0
        self._offset_fd = os.open(folder / "acknowledged", os.O_RDWR | os.O_CREAT, 0o600)
        self._appended_lines = 0
        self._acknowledged_lines = 0

    @classmethod
    def create(cls, spool: Path, session_id: str, target: str) -> Self:
        """A new outbox below `spool`; a folder that cannot be written is replaced by a temporary one. Raises OSError."""
        source = "rec-" + os.urandom(8).hex()
        try:
            folder = spool / session_id
            folder.mkdir(parents=True, mode=0o700)
        except OSError:
            folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY)) / session_id
            folder.mkdir()
        (folder / "target").write_text(target, "utf-8")
        fd = os.open(folder / "outbox.ndjson", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(folder, fd, target, source)

    @classmethod
    def adopt(cls, folder: Path) -> Self | None:
        """What a dead recorder left in `folder`; None where the recorder lives, or nothing is there."""
        try:
            fd = os.open(folder / "outbox.ndjson", os.O_RDWR | os.O_APPEND)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(fd).st_nlink:
                raise BlockingIOError("another has just delivered it")
            outbox = cls(folder, fd, (folder / "target").read_text("utf-8"), "")
        except OSError:
            os.close(fd)
            return None
        outbox._resume()
        return outbox

    def _resume(self) -> None:
        said = os.pread(self._offset_fd, 32, 0)
        self._acknowledged = self._released = min(int(said or b"0"), self._end)
        # A recorder that was killed while it wrote leaves part of a line, which nobody was told of.
        tail_start = max(self._acknowledged, self._end - BATCH_BYTES_MAX)
        tail = os.pread(self._fd, self._end - tail_start, tail_start)
        if not tail.endswith(b"\n"):
            self._end = tail_start + tail.rfind(b"\n") + 1

    @property
    def is_drained(self) -> bool:
        """Whether everything in it is acknowledged."""
        return self._acknowledged == self._end

    def append(self, commands: Sequence[Mapping[str, Any]]) -> None:
        """Number the recorder's own commands and add them. All or nothing; raises OSError (the disk is full)."""
        lines = [
            msgspec.json.encode({**command, "source": self.source, "n": n}) + b"\n"
            for n, command in enumerate(commands, self._n + 1)
        ]
        self.append_lines(lines)
        self._n += len(lines)

    def append_lines(self, lines: Sequence[bytes]) -> None:
        """Add commands that carry a source and number of their own. All or nothing; raises OSError."""
        data = b"".join(lines)
        try:
            if os.write(self._fd, data) < len(data):
                raise OSError("only a part could be written")
        except OSError:
            os.ftruncate(self._fd, self._end)
            raise
        self._end += len(data)
        self._appended_lines += len(lines)

    def read(self) -> Batch:
        """The next lines to deliver, as many as fit in one batch; none where it is drained."""
        size = min(BATCH_BYTES_MAX, self._end - self._acknowledged)
        whole = os.pread(self._fd, size, self._acknowledged).split(b"\n")[:-1]
        lines = [line + b"\n" for line in whole[:BATCH_LINES_MAX]]
        return Batch(lines, self._acknowledged + sum(map(len, lines)))

    def acknowledge(self, batch: Batch) -> None:
        """The batch is delivered: it is not read again, and its space is given back."""
        self._acknowledged = batch.end
        self._acknowledged_lines += len(batch.lines)
        with contextlib.suppress(OSError):  # then it is delivered again, which is answered as a duplicate
            os.pwrite(self._offset_fd, b"%20d" % batch.end, 0)
        self._released = release(self._fd, self._released, batch.end)

    def statistics(self) -> OutboxStatistics:
        """How many lines went in and out."""
        return OutboxStatistics(appended=self._appended_lines, acknowledged=self._acknowledged_lines)

    def close(self) -> None:
        """Let go of the files; what is not acknowledged is left for a later delivery."""
        for fd in (self._offset_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._offset_fd = self._fd = -1

    def remove(self) -> None:
        """Delete the folder with all that is in it."""
        # First the outbox, under its lock: whoever waits for that lock must find it gone.
        (self.folder / "outbox.ndjson").unlink(missing_ok=True)
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.name.startswith(_TEMPORARY):
            shutil.rmtree(self.folder.parent, ignore_errors=True)


def release(fd: int, start: int, end: int) -> int:
    """Give the blocks of a file's range back to the file system, its length unchanged, once they are worth it.

    Returns:
        Up to where the file has been given back. A file system that cannot do it keeps the blocks until the end.
    """
    if end - start < _RELEASE_BYTES:
        return start
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    _libc.fallocate(fd, mode, ctypes.c_long(start), ctypes.c_long(end - start))
    return end


def spool_dir(data_dir: Path) -> Path:
    """Where the recordings of a data folder keep their files."""
    return data_dir / "spool"


def recordings(data_dir: Path) -> Iterator[Path]:
    """The folders of recordings, live and dead, oldest first (the ids are ordered by time)."""
    yield from sorted(spool_dir(data_dir).glob("sess_*"))


@contextlib.contextmanager
def locked_spill(path: Path) -> Iterator[BinaryIO]:
    """A spill file that no pytest writes to while the block lasts. Raises BlockingIOError where one does."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file


def spilled(file: BinaryIO) -> Iterator[list[bytes]]:
    """The commands of a spill file, in batches."""
    lines: list[bytes] = []
    size = 0
    for line in file:
        # A pytest that was killed while it wrote leaves part of a line.
        if not line.endswith(b"\n") or line.startswith(b'{"spill"'):
            continue
        if len(lines) == BATCH_LINES_MAX or size + len(line) > BATCH_BYTES_MAX:
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield lines


def spill_paths(folder: Path) -> list[Path]:
    """A recording's spill files: one that its pytest processes share, and those that could not share it."""
    return sorted(folder.glob("reporter.spill*"))


def remember_command(folder: Path, pid: int) -> None:
    """Write down which process is recorded, so that its spill file is waited for. Raises OSError."""
    (folder / "command").write_text(f"{pid} {psutil.Process(pid).create_time()}", "utf-8")


def command_lives(folder: Path) -> bool:
    """Whether the recorded process runs, with or without its recorder."""
    try:
        pid, created = (folder / "command").read_text("utf-8").split()
        return psutil.Process(int(pid)).create_time() == float(created)
    except (OSError, ValueError, psutil.Error):
        return False
