"""Follows one of the command's outputs: passes it through as it is, and turns it into log lines."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from .lines import Line, LineSplitter
from .process import OutputSource
from .progress import Display

# 20 looks a second cost about half a percent of a core, and nobody sees 50 ms; an output that rests is looked at less often.
POLL_S = 0.05
POLL_RESTING_S = 0.1
RESTING_AFTER_S = 2.0

# None where Python was built against a C library without pwritev2(2).
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)


class OutputFollower:
    """One output of the command.

    Args:
        stream: its name in the log, `stdout` or `stderr`.
        pass_through_fd: where its bytes go.
        append: takes the log commands of one look.
    """

    def __init__(
        self,
        source: OutputSource,
        stream: str,
        *,
        pass_through_fd: int,
        display: Display,
        append: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._source = source
        self._stream = stream
        self._pass_through_fd: int | None = pass_through_fd
        self._display = display
        self._append = append
        # The display draws beside what stands on a terminal; elsewhere it has no part in it.
        self._may_write_at_once = not os.isatty(pass_through_fd)
        self._splitter = LineSplitter()
        self._ended = anyio.Event()
        self.finished = anyio.Event()

    def end(self) -> None:
        """The command has ended: what it wrote is read to its end, and no more is waited for."""
        self._ended.set()

    async def run(self) -> None:
        """Until the end of the output, after `end`."""
        try:
            await self._run()
        finally:
            self.finished.set()

    async def _run(self) -> None:
        resting_s = 0.0
        while not self._ended.is_set():
            if await self._take():
                resting_s = 0.0
            else:
                poll_s = POLL_S if resting_s < RESTING_AFTER_S else POLL_RESTING_S
                resting_s += poll_s
                with anyio.move_on_after(poll_s):
                    await self._ended.wait()
        # What is there now, and no more: something that the command left behind may write for ever.
        left_bytes = self._source.available_bytes()
        while left_bytes > 0 and (taken_bytes := await self._take()):
            left_bytes -= taken_bytes
        self._log(self._splitter.end())

    async def _take(self) -> int:
        data = self._source.read()
        if data:
            self._log(self._splitter.feed(data))
            await self._pass_through(data)
        return len(data)

    def _log(self, lines: list[Line]) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        if lines:
            self._append([_command(line, self._stream, now) for line in lines])

    async def _pass_through(self, data: bytes) -> None:
        if self._pass_through_fd is None:
            await anyio.lowlevel.checkpoint()
            return
        try:
            if _NOWAIT is not None and self._may_write_at_once:
                data = data[_written_without_waiting(self._pass_through_fd, data, _NOWAIT) :]
            if not data:
                await anyio.lowlevel.checkpoint()
                return
            # In a thread: whoever reads our output may be slow, or paused, and the recording goes on.
            await anyio.to_thread.run_sync(
                self._display.pass_through, self._pass_through_fd, data, abandon_on_cancel=True
            )
        except OSError:  # nobody reads it any more (`| head`); the command need not know
            self._pass_through_fd = None


def _written_without_waiting(fd: int, data: bytes, nowait: int) -> int:
    """How many bytes it took at once. Not by O_NONBLOCK, which would be the descriptor's for everybody who has it open.
    Raises BrokenPipeError where nobody reads it any more."""
    try:
        # -1: at its own position, which is all that a pipe has (pwritev2(2)).
        return os.pwritev(fd, [data], -1, nowait)
    except BrokenPipeError:
        raise
    except OSError:  # it would wait, or cannot say so: files on most file systems
        return 0


def _command(line: Line, stream: str, emitted_at: str) -> dict[str, Any]:
    command: dict[str, Any] = {
        "type": "log.append",
        "stream": stream,
        "text": line.text,
        "emitted_at": emitted_at,
    }
    if line.truncated_bytes:
        command["truncated_bytes"] = line.truncated_bytes
    if line.invalid_utf8:
        command["invalid_utf8"] = True
    return command
