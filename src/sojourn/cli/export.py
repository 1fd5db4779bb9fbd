"""`sojourn export`: a session as a file."""

import errno
import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO

from cyclopts import Parameter

from ..actors.errors import SojournError, StorageFull
from ..runtime.history.export import Format
from .look import HERE, Where
from .screen import Screen, run
from .source import resolve
from .text import size

PROGRESS_INTERVAL_S = 0.2
_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotWritten(SojournError):
    """The file could not be written; what stood there before is unchanged."""

    code = "not_written"


def export(
    session: str,
    /,
    *,
    kind: Annotated[Format, Parameter(name="--format")],
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    where: Where = HERE,
) -> int:
    """Write a session, from whichever tier it lies in: to a file, which is whole or not there, or to standard output.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        kind: ndjson: its events as they are stored, one a line. json: one document with record, state and events. junit:
            its results as JUnit XML.
        output: the file, replaced if it is there; unless given, or `-`, standard output.
    """

    async def body(screen: Screen) -> int:
        async with where.open() as source:
            session_id = await resolve(source, session)
            chunks = source.export(session_id, kind)
            if output is None or str(output) == "-":
                await _to_stdout(screen, chunks)
                return 0
            written = await _to_file(output, chunks)
        print(f"sojourn: {session_id} written to {output} ({size(written)})", file=sys.stderr)
        return 0

    return run(body)


async def _to_stdout(screen: Screen, chunks: AsyncIterator[bytes]) -> None:
    async with aclosing(chunks):  # type: ignore[type-var]  # every source's is a generator
        async for chunk in chunks:
            screen.binary(chunk)
            if screen.is_gone:
                return
    screen.flush()


async def _to_file(path: Path, chunks: AsyncIterator[bytes]) -> int:
    """How many bytes were written. Raises NotWritten, StorageFull."""
    written, told_at, shows = 0, -PROGRESS_INTERVAL_S, sys.stderr.isatty()
    try:
        with _replacing(path) as file:
            async with aclosing(chunks):  # type: ignore[type-var]
                async for chunk in chunks:
                    file.write(chunk)
                    written += len(chunk)
                    if shows and time.monotonic() - told_at >= PROGRESS_INTERVAL_S:
                        told_at = time.monotonic()
                        print(f"\r{size(written)} written\x1b[K", end="", file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno in _ROOM:
            raise StorageFull(
                f"there is no room for {path} ({error.strerror}); nothing was left there: free some space, or name another "
                "file with --output"
            ) from error
        raise NotWritten(
            f"{path} cannot be written ({error.strerror}); name another file with --output"
        ) from error
    finally:
        if shows:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return written


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once the block has ended well, and else is gone. Raises OSError."""
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.exists() and not stat.S_ISREG(target.stat().st_mode) and not target.is_dir():
        with target.open("wb") as device:  # a pipe or a device has nothing to be replaced
            yield device
        return
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    temporary = Path(name)
    # Ended by a signal, it clears up too.
    handlers = {number: signal.signal(number, _exit) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), _mode(target))
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _exit(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _mode(target: Path) -> int:
    """That of the file that is replaced, else what the umask leaves."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask
