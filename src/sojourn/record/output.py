"""Follows one of the command's outputs: passes it through as it is, and turns it into log lines."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from .lines import Line, LineSplitter
from .process import OutputSource
from .progress import Display

# 50 looks a second cost about 1 % of a core, and nobody sees 20 ms; an output that rests is looked at less often.
POLL_S = 0.02
POLL_RESTING_S = 0.1
RESTING_AFTER_S = 2.0


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
        self._splitter = LineSplitter()
        self._ended = False
        self.finished = anyio.Event()

    def end(self) -> None:
        """The command has ended: what it wrote is read to its end, and no more is waited for."""
        self._ended = True

    async def run(self) -> None:
        """Until the end of the output, after `end`."""
        try:
            await self._run()
        finally:
            self.finished.set()

    async def _run(self) -> None:
        resting_s = 0.0
        while not self._ended:
            if await self._take():
                resting_s = 0.0
            else:
                poll_s = POLL_S if resting_s < RESTING_AFTER_S else POLL_RESTING_S
                resting_s += poll_s
                await anyio.sleep(poll_s)
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
            # In a thread: whoever reads our output may be slow, or paused, and the recording goes on.
            await anyio.to_thread.run_sync(
                self._display.pass_through, self._pass_through_fd, data, abandon_on_cancel=True
            )
        except OSError:  # nobody reads it any more (`| head`); the command need not know
            self._pass_through_fd = None


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
