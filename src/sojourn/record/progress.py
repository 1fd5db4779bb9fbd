"""Shows how far the recording is: a bar below the command's output on a terminal, else a line now and then."""

import os
import sys
from typing import Protocol

from .tally import Tally, duration_text

PLAIN_FIRST_S = 5.0
PLAIN_EVERY_S = 10.0
PLAIN_EVERY_LATER_S = 60.0
PLAIN_LATER_S = 600.0
# The bar is drawn between two lines of the command's output, or when no more of a line has come for so long.
QUIET_S = 0.1
ROWS_MIN = 5


class Display(Protocol):
    """Where the command's output and our own words go."""

    rows: int

    def pass_through(self, fd: int, data: bytes) -> None:
        """Write the command's output as it is. Called from a thread; raises OSError where nobody reads it any more."""

    def say(self, text: str) -> None:
        """A line of ours, on stderr."""

    def show(self, tally: Tally) -> None:
        """Called a few times a second."""

    def resize(self) -> None:
        """The terminal has another size."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def display() -> Display:
    """The bar, where stderr is a terminal that can show it."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return Plain()
    fd = sys.stderr.fileno()
    return Bar(fd) if os.get_terminal_size(fd).lines >= ROWS_MIN else Plain()


class Plain:
    """Lines without any control character, for a pipe or a file."""

    rows = 0

    def __init__(self) -> None:
        self._next_s = PLAIN_FIRST_S
        self._shown = (0, 0)

    def pass_through(self, fd: int, data: bytes) -> None:
        _write(fd, data)

    def say(self, text: str) -> None:
        print(f"sojourn: {text}", file=sys.stderr, flush=True)

    def show(self, tally: Tally) -> None:
        elapsed_s = tally.elapsed_s
        if elapsed_s < self._next_s:
            return
        self._next_s = elapsed_s + (PLAIN_EVERY_S if elapsed_s < PLAIN_LATER_S else PLAIN_EVERY_LATER_S)
        now = (tally.done, tally.log_lines)
        if now != self._shown:
            self._shown = now
            self.say(progress_text(tally))

    def resize(self) -> None:
        """Lines have no size."""

    def close(self) -> None:
        """Nothing to restore."""


def progress_text(tally: Tally) -> str:
    """`420/1,592 (26 %): 418 passed, 2 failed; 5.0 s, about 14.0 s left`."""
    elapsed = duration_text(tally.elapsed_s)
    if not tally.total:
        said = f"{tally.counts_text()}; " if tally.cases else ""
        return f"{said}{tally.log_lines:,} lines; {elapsed}"
    percent = 100 * tally.done // tally.total
    left_s = tally.left_s
    left = f", about {duration_text(left_s)} left" if left_s is not None else ""
    return f"{tally.done:,}/{tally.total:,} ({percent} %): {tally.counts_text()}; {elapsed}{left}"


class Bar:
    """A bar on the terminal's last row, below a scrolling region that holds the command's output.

    The command's bytes are passed through untouched and may end in the middle of a line (dots, a prompt), which is why
    the bar is not printed beneath them and erased again, as libraries do it.
    """

    rows = 1

    def __init__(self, fd: int) -> None:
        # Only here: it takes 0.1 s to import, which a recording in a pipeline need not wait for.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._fd = fd
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("sojourn", total=None, said="")
        self._tally: Tally | None = None
        self._line_open = False
        self._quiet_at = 0.0
        self._size = os.get_terminal_size(fd)
        self._reserve()

    def pass_through(self, fd: int, data: bytes) -> None:
        _write(fd, data)
        if os.isatty(fd):
            self._line_open = not data.endswith(b"\n")
            self._quiet_at = 0.0 if self._tally is None else self._tally.elapsed_s + QUIET_S

    def say(self, text: str) -> None:
        start = "\r\n" if self._line_open else ""
        self._write(f"{start}sojourn: {text}\r\n")
        self._line_open = False

    def show(self, tally: Tally) -> None:
        self._tally = tally
        if self._line_open and tally.elapsed_s < self._quiet_at:
            return
        self._progress.update(
            self._task, completed=tally.done, total=tally.total or None, said=progress_text(tally)
        )
        with self._console.capture() as captured:
            self._console.print(self._progress.get_renderable(), end="", no_wrap=True, crop=True)
        row = captured.get().splitlines()
        self._write(f"\x1b7\x1b[{self._size.lines};1H\x1b[2K{row[0] if row else ''}\x1b8")

    def resize(self) -> None:
        self._size = os.get_terminal_size(self._fd)
        self._reserve()

    def close(self) -> None:
        self._write(f"\x1b7\x1b[r\x1b[{self._size.lines};1H\x1b[2K\x1b8")

    def _reserve(self) -> None:
        # Setting the region moves the cursor home; the line feed makes room where it stood on the last row.
        self._write(f"\n\x1b7\x1b[1;{self._size.lines - 1}r\x1b8\x1b[1A")

    def _write(self, text: str) -> None:
        _write(self._fd, text.encode("utf-8", "replace"))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
