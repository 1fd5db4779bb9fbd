"""Standard output of the reading commands: colours on a terminal, plain text in a pipe, and honest exit codes."""

import errno
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..actors.errors import SojournError

FAILED = 2
INTERRUPTED = 128 + signal.SIGINT


class Screen:
    """Where a command writes. `is_terminal` decides on colours and tables; a pipe gets neither.

    When the reader of the pipe has gone (`| head`), what is written after is dropped, and the command ends early where
    it asks `is_gone`; its exit code stays its own.
    """

    def __init__(self) -> None:
        # What the locale cannot write is written as an escape, instead of ending the command.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        self.is_terminal = sys.stdout.isatty()
        self.is_gone = False
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def line(self, text: str | Text = "") -> None:
        """One line. A string is written as it is; a Text loses its colours in a pipe."""
        if isinstance(text, Text):
            self._guard(lambda: self._console.print(text))
        else:
            self._guard(lambda: sys.stdout.write(text + "\n"))

    def raw(self, data: bytes) -> None:
        """Bytes as they are, and a newline."""
        self._guard(lambda: sys.stdout.write(data.decode() + "\n"))

    def binary(self, data: bytes) -> None:
        """Bytes as they are, and nothing else."""

        def write() -> None:
            sys.stdout.flush()
            rest = memoryview(data)
            # Past Python's own buffer: what it cannot write (a full disk) it would try again at exit.
            while rest:
                rest = rest[os.write(sys.stdout.fileno(), rest) :]

        self._guard(write)

    def json(self, document: Any) -> None:
        """One JSON document, indented for a person."""
        self.raw(msgspec.json.format(msgspec.json.encode(document), indent=2))

    def table(
        self,
        heads: Sequence[str],
        rows: Sequence[Sequence[str | Text]],
        *,
        right: frozenset[int],
        cut: frozenset[int] = frozenset(),
    ) -> None:
        """Columns: a table on a terminal; in a pipe, aligned with two spaces between, and nothing cut.

        Args:
            right: the columns aligned to the right.
            cut: the columns that give way where the terminal is narrow.
        """
        if self.is_terminal:
            table = rich_table(heads, rows, right=right, cut=cut)
            self._guard(lambda: self._console.print(table))
            return
        widths = _widths(heads, rows)
        for cells in _plain(heads, rows):
            aligned = [
                cell.rjust(width) if index in right else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            self.line("  ".join(aligned).rstrip())

    def flush(self) -> None:
        self._guard(sys.stdout.flush)

    def _guard(self, write: Callable[[], object]) -> None:
        if self.is_gone:
            return
        try:
            write()
        except BrokenPipeError:
            self.is_gone = True
            # Or the interpreter complains when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def rich_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    right: frozenset[int],
    cut: frozenset[int] = frozenset(),
) -> Table:
    """A table for a terminal; arguments as for `Screen.table`."""
    widths = _widths(heads, rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, head in enumerate(heads):
        table.add_column(
            head,
            justify="right" if index in right else "left",
            min_width=None if index in cut else widths[index],
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*row)
    return table


def _plain(heads: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> list[list[str]]:
    return [list(heads)] + [[str(cell) for cell in row] for row in rows]


def _widths(heads: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> list[int]:
    plain = _plain(heads, rows)
    return [max(len(row[index]) for row in plain) for index in range(len(heads))]


def run(body: Callable[[Screen], Awaitable[int]]) -> int:
    """Run a command to its exit code: its own; 2 and one line on stderr for an error; 130 after Ctrl-C."""
    screen = Screen()
    try:
        return anyio.run(body, screen)
    except SojournError as error:
        # What a server says speaks of HTTP; the client knows which option it is.
        remedy = getattr(error, "remedy", None)
        return _failed(f"{error} Here: {remedy}" if remedy and remedy not in str(error) else str(error))
    except OSError as error:
        what = error.filename or "input or output"
        if error.errno == errno.ENOSPC:
            return _failed(f"{what}: {error.strerror}; free some space")
        return _failed(f"{what}: {error.strerror}; check that it exists and can be read")
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        screen.flush()


def _failed(message: str) -> int:
    print(f"sojourn: {' '.join(message.split())}", file=sys.stderr)
    return FAILED
