"""The command that is recorded: started so that it outlives its recorder, and ended when the recorder is told to end.

Its output goes to files which the recorder follows: a recorder that dies breaks no pipe, and one that is slow holds
nothing up. The files lie in memory (memfd_create(2)), where no full disk can fail the command's writes, and are given back
as they are read. Where the recorder's own output is a terminal, the command gets one too (a pseudo-terminal), so that it
keeps its colours and its prompt; such a command loses its terminal with its recorder, as it would with any terminal that
is closed.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import termios
from collections.abc import Mapping, Sequence
from typing import Self

from attrs import frozen

from .spool import release

# At most 65,536 lines at once, so that the loop is back within about 50 ms.
READ_BYTES_MAX = 64 * 1024
# More than a pseudo-terminal holds in its buffers.
TERMINAL_BYTES_MAX = 1024 * 1024


class OutputSource:
    """Where the command's output is read from: a file that it appends to, or the near side of a pseudo-terminal."""

    def __init__(self, fd: int, *, is_terminal: bool) -> None:
        self._fd = fd
        self._is_terminal = is_terminal
        self._position = 0
        self._released = 0

    @classmethod
    def memory(cls, name: str) -> tuple[Self, int]:
        """A file in memory, and the descriptor that the command writes to. Raises OSError."""
        fd = os.memfd_create(f"sojourn-{name}")
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        # One open file twice: reading is by offset, and what is open for appending writes at the end.
        return cls(fd, is_terminal=False), os.dup(fd)

    @classmethod
    def terminal(cls, like_fd: int, rows_less: int) -> tuple[Self, int]:
        """A pseudo-terminal of the size of `like_fd`, less some rows, and the descriptor that the command writes to."""
        near, far = os.openpty()
        attributes = termios.tcgetattr(far)
        # Raw: our own terminal does what a terminal does to its output, and nobody types into this one.
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(far, termios.TCSANOW, attributes)
        os.set_blocking(near, False)
        source = cls(near, is_terminal=True)
        source.resize(like_fd, rows_less)
        return source, far

    def resize(self, like_fd: int, rows_less: int) -> None:
        """Give the pseudo-terminal the size of another terminal."""
        if self._is_terminal:
            size = os.get_terminal_size(like_fd)
            termios.tcsetwinsize(self._fd, (max(1, size.lines - rows_less), size.columns))

    def read(self) -> bytes:
        """What has come since the last call, at most READ_BYTES_MAX; empty where there is nothing (yet)."""
        if self._is_terminal:
            try:
                return os.read(self._fd, READ_BYTES_MAX)
            except OSError:  # nothing yet (EAGAIN), or nobody has the other side open (EIO)
                return b""
        data = os.pread(self._fd, READ_BYTES_MAX, self._position)
        if not data and os.fstat(self._fd).st_size < self._position:
            # A command may empty its own output (`echo > /dev/stderr` does), and goes on at its beginning.
            self._position = self._released = 0
            data = os.pread(self._fd, READ_BYTES_MAX, 0)
        self._position += len(data)
        self._released = release(self._fd, self._released, self._position)
        return data

    def available_bytes(self) -> int:
        """How much there is to read now; of a terminal, the most that there can be."""
        if self._is_terminal:
            return TERMINAL_BYTES_MAX
        size = os.fstat(self._fd).st_size
        return size - self._position if size >= self._position else size

    def close(self) -> None:
        """Close it, which its writers do not notice."""
        os.close(self._fd)


@frozen
class Ended:
    """How the command ended: its exit code, or the signal that ended it; and the CPU time of all it waited for."""

    exit_code: int | None
    signal: int | None
    cpu_s: float


class RecordedCommand:
    """A running command, in a session and process group of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    def start(
        cls, command: Sequence[str], *, stdout_fd: int, stderr_fd: int, environment: Mapping[str, str]
    ) -> Self:
        """Start it; it shares our standard input and working folder. The two descriptors are the caller's to close.

        In its own session it does not get our terminal's Ctrl-C, which is forwarded, and may read our terminal.

        Raises:
            OSError: it is not there, or cannot be executed.
        """
        return cls(
            subprocess.Popen(
                command, stdout=stdout_fd, stderr=stderr_fd, env=environment, start_new_session=True
            )
        )

    async def wait(self) -> Ended:
        """Wait for its end. To be called once; cancelling stops the waiting, not the command."""
        import anyio  # the command is started before such things are imported

        handle = os.pidfd_open(self.pid)
        try:
            await anyio.wait_readable(handle)
        finally:
            os.close(handle)
        # Not Popen.wait: only wait4 tells what the command and all it waited for have used.
        _, status, usage = os.wait4(self.pid, 0)  # noqa: ASYNC222 - it has ended, so this does not wait
        code = os.waitstatus_to_exitcode(status)
        self._process.returncode = code
        return Ended(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            cpu_s=usage.ru_utime + usage.ru_stime,
        )

    def signal_group(self, number: int) -> None:
        """Send a signal to the command and what it started, except what went to a group of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Interrupts:
    """What becomes of signals that ask us to end: the first goes to the command, and any further one kills it.

    Attributes:
        by: the first signal, or None.
    """

    def __init__(self) -> None:
        self.by: int | None = None
        self._command: RecordedCommand | None = None
        self._forwarded = False

    def take(self, number: int) -> None:
        """A signal has come. Until the command runs it is only remembered."""
        again = self.by is not None
        if self.by is None:
            self.by = number
        if self._command is not None:
            self._forwarded = True
            self._command.signal_group(signal.SIGKILL if again else number)

    def attach(self, command: RecordedCommand) -> None:
        """The command runs: it gets what has come."""
        self._command = command
        if self.by is not None and not self._forwarded:
            self._forwarded = True
            command.signal_group(self.by)


def exit_code_of(ended: Ended) -> int:
    """As a shell would say it: the exit code, or 128 and the signal's number."""
    return ended.exit_code if ended.exit_code is not None else 128 + (ended.signal or 0)


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; a number that has no name stays a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
