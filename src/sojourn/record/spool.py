"""Where a recording keeps what it has to deliver, so that neither a dead server nor a dead recorder loses it.

    DATA/spool/sess_.../   outbox.ndjson    the commands, in order, as they go over the wire
                           acknowledged     how much of it the server has taken, as a decimal
                           create.json      the session's creation, until the server has taken that
                           target           the server's address, empty for the folder's own
                           command          the recorded process
                           reporter.spill   what pytest could not hand over
                           recorded.json    the cases that a resumed recording need not run again
                           inject/          the pytest reporter
    DATA/spool/sess_....2/                  the same of a resumed recording
    DATA/spool/refused-sess_....ndjson      what the server refused, with its reasons

A recorder holds a lock on its outbox while it lives (`flock`), so the files of a live one are never touched. Appending
is one `write`: it survives the recorder's death, though not a power cut. What waits is bounded, in the file and, while the
disk is full, in memory; what finds no room is the caller's to count.
"""

import contextlib
import ctypes
import enum
import errno
import fcntl
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec
from attrs import frozen

# The wire's limits for a batch (docs/protocol.md).
BATCH_LINES_MAX = 1_000
BATCH_BYTES_MAX = 1024 * 1024
# How much is given back to the file system at once: a system call for each batch would be too many.
_RELEASE_BYTES = 1024 * 1024

_TEMPORARY = "sojourn-spool-"
# Where a spool may lie that is not in the data folder: it is mostly memory.
_SHARED_MEMORY = Path("/dev/shm")
_MIB = 1024 * 1024

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Room(enum.Enum):
    """How much may wait for delivery, so that lines of output are refused first and the end of a session last.

    The values are bytes in the file, and bytes in memory while the file cannot be written.
    """

    LOG = (48 * _MIB, 4 * _MIB)
    RESULT = (64 * _MIB, 8 * _MIB)
    END = (65 * _MIB, 9 * _MIB)
    # What a spill file held, which was bounded there.
    MOVED = (160 * _MIB, 8 * _MIB)


@frozen
class Batch:
    """Lines to deliver; and, once they are, the offset to acknowledge, or how many lines of the memory."""

    lines: list[bytes]
    end: int
    in_memory: int = 0


@frozen(kw_only=True)
class OutboxStatistics:
    """Counts of lines since the outbox was made or adopted."""

    appended: int
    acknowledged: int


class Outbox:
    """An ordered file of commands: appended at its end, acknowledged from its beginning. Memory does not grow with it.

    Only while the file cannot be written does what is added wait in memory, behind all that the file holds.

    Attributes:
        creation: the body that creates the session, or None where the server has the session.
    """

    def __init__(self, folder: Path, fd: int, target: str, source: str) -> None:
        self.folder = folder
        self.session_id = session_id_of(folder)
        self.target = target
        self.source = source
        self.creation: dict[str, Any] | None = None
        self._memory: deque[bytes] = deque()
        self._memory_bytes = 0
        self._fd = fd
        self._n = 0
        self._end = os.fstat(fd).st_size
        self._acknowledged = 0
        self._released = 0
        self._offset_fd = os.open(folder / "acknowledged", os.O_RDWR | os.O_CREAT, 0o600)
        self._appended_lines = 0
        self._acknowledged_lines = 0

    @classmethod
    def create(
        cls,
        spool: Path,
        session_id: str,
        target: str,
        *,
        creation: Mapping[str, Any] | None = None,
        fill: Callable[[Path], None] | None = None,
    ) -> Self:
        """A new outbox in a folder of its own below `spool`; where that has no room, in a temporary folder.

        Args:
            creation: the body that creates the session; None where the server has it.
            fill: writes what else the folder is to hold; its OSError means that there is no room.

        Raises:
            OSError: there is no room anywhere.
        """
        failure = OSError(errno.ENOSPC, "no folder can be written")
        places: list[Callable[[], Path]] = [
            lambda: spool,
            _temporary,
            lambda: _temporary(_SHARED_MEMORY),
        ]
        for place in places:
            folder = None
            try:
                folder = _new_folder(place(), session_id)
                if fill is not None:
                    fill(folder)
                if creation is not None:
                    (folder / "create.json").write_bytes(msgspec.json.encode(creation))
                (folder / "target").write_text(target, "utf-8")
                path = folder / "outbox.ndjson"
                fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                outbox = cls(folder, fd, target, "rec-" + os.urandom(8).hex())
            except OSError as error:
                failure = error
                if folder is not None:
                    _remove_folder(folder)
            else:
                outbox.creation = dict(creation) if creation is not None else None
                return outbox
        raise failure

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
            with contextlib.suppress(FileNotFoundError):
                outbox.creation = msgspec.json.decode((folder / "create.json").read_bytes())
        except (OSError, msgspec.DecodeError):
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
        """Whether everything in it is acknowledged, and the session is created."""
        return self._acknowledged == self._end and not self._memory and self.creation is None

    @property
    def is_temporary(self) -> bool:
        """Whether it lies where no later recording looks for it."""
        return self.folder.parent.name.startswith(_TEMPORARY)

    def append(self, commands: Sequence[Mapping[str, Any]], room: Room = Room.RESULT) -> None:
        """Number the recorder's own commands and add them. All or nothing; raises OSError (there is no room)."""
        lines = [
            msgspec.json.encode({**command, "source": self.source, "n": n}) + b"\n"
            for n, command in enumerate(commands, self._n + 1)
        ]
        self.append_lines(lines, room)
        self._n += len(lines)

    def append_lines(self, lines: Sequence[bytes], room: Room = Room.RESULT) -> None:
        """Add commands that carry a source and number of their own. All or nothing; raises OSError (there is no room)."""
        data = b"".join(lines)
        file_bytes_max, memory_bytes_max = room.value
        if self._end - self._acknowledged + len(data) > file_bytes_max:
            raise OSError(errno.EFBIG, "as much waits for delivery as may")
        # What waits in memory stays behind the file, and before what follows.
        if self._memory or not self._write(data):
            if self._memory_bytes + len(data) > memory_bytes_max:
                raise OSError(errno.ENOSPC, "the disk is full, and as much waits in memory as may")
            self._memory += lines
            self._memory_bytes += len(data)
        self._appended_lines += len(lines)

    def _write(self, data: bytes) -> bool:
        """Whether all of it stands at the end of the file; else none of it does."""
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written < len(data):
            os.ftruncate(self._fd, self._end)
            return False
        self._end += len(data)
        return True

    def read(self) -> Batch:
        """The next lines to deliver, as many as fit in one batch; none where it is drained."""
        size = min(BATCH_BYTES_MAX, self._end - self._acknowledged)
        if not size:
            return self._read_memory()
        whole = os.pread(self._fd, size, self._acknowledged).split(b"\n")[:-1]
        lines = [line + b"\n" for line in whole[:BATCH_LINES_MAX]]
        return Batch(lines, self._acknowledged + sum(map(len, lines)))

    def _read_memory(self) -> Batch:
        lines: list[bytes] = []
        size = 0
        for line in islice(self._memory, BATCH_LINES_MAX):
            size += len(line)
            if size > BATCH_BYTES_MAX:
                break
            lines.append(line)
        return Batch(lines, self._end, len(lines))

    def acknowledge(self, batch: Batch) -> None:
        """The batch is delivered: it is not read again, and its space is given back."""
        self._acknowledged_lines += len(batch.lines)
        for _ in range(batch.in_memory):
            self._memory_bytes -= len(self._memory.popleft())
        if batch.in_memory:
            return
        self._acknowledged = batch.end
        with contextlib.suppress(OSError):  # then it is delivered again, which is answered as a duplicate
            os.pwrite(self._offset_fd, b"%20d" % batch.end, 0)
        self._released = release(self._fd, self._released, batch.end)

    def created(self) -> None:
        """The server has the session."""
        self.creation = None
        with contextlib.suppress(OSError):  # then it is created again, which finds it there
            (self.folder / "create.json").unlink()

    def settle(self) -> int:
        """Bring what waits in memory to the file, before the recorder ends; how many lines are lost because that failed."""
        if self._write(b"".join(self._memory)):
            self._memory.clear()
        lost = len(self._memory)
        self._memory.clear()
        self._memory_bytes = 0
        self._appended_lines -= lost
        return lost

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
        _remove_folder(self.folder)


def _temporary(below: Path | None = None) -> Path:
    return Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=below))


def _new_folder(spool: Path, session_id: str) -> Path:
    """A folder that no other recording of the session has. Raises OSError."""
    spool.mkdir(parents=True, exist_ok=True)
    for attempt in count(1):
        folder = spool / (session_id if attempt == 1 else f"{session_id}.{attempt}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            break
    return folder


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.name.startswith(_TEMPORARY):
        shutil.rmtree(folder.parent, ignore_errors=True)


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


def session_id_of(folder: Path) -> str:
    """Whose recording a folder of the spool holds."""
    return folder.name.partition(".")[0]


def recordings(data_dir: Path, session_id: str = "sess_*") -> Iterator[Path]:
    """The folders of recordings, live and dead; those of one session in the order in which they were begun."""
    found = [*spool_dir(data_dir).glob(session_id), *spool_dir(data_dir).glob(f"{session_id}.*")]
    yield from sorted(set(found), key=lambda folder: (session_id_of(folder), len(folder.name), folder.name))


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


def reporters_lost(folder: Path) -> int:
    """How many commands the recording's pytest processes say they had no room for."""
    lost = 0
    for path in spill_paths(folder):
        with contextlib.suppress(OSError), path.open("rb") as file:
            for line in file:
                if line.startswith(b'{"spill"') and b'"lost"' in line:
                    with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError):
                        lost += msgspec.json.decode(line)["spill"]["lost"]
    return lost


def remember_command(folder: Path, pid: int) -> None:
    """Write down which process is recorded, so that its spill file is waited for. Raises OSError."""
    _, started_ticks = _state_and_start(pid)
    (folder / "command").write_text(f"{pid} {started_ticks}", "utf-8")


def living_command(folder: Path) -> int | None:
    """The pid of the recorded process where that runs, with or without its recorder."""
    try:
        pid, started_ticks = (folder / "command").read_text("utf-8").split()
        state, started_ticks_now = _state_and_start(int(pid))
    except (OSError, ValueError):
        return None
    # One that has ended may wait for ever to be noticed, where nothing adopts orphans (in many containers).
    return int(pid) if started_ticks == started_ticks_now and state not in "ZX" else None


def _state_and_start(pid: int) -> tuple[str, str]:
    """A process's state, and when it was started, in clock ticks since the machine was: that tells it from a later one of
    its number (proc(5), fields 3 and 22; the second may hold anything, parentheses too). Raises OSError where there is none.
    """
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return fields[0], fields[19]
