"""What can be read of a journal whose pages are damaged, as a new file.

A row tells by its own checksums whether it is whole, so what SQLite still finds can be taken over. The damaged file goes
to `quarantine/` first, by links. From the moment at which the new file has its second name it counts: a crash before
leaves the damaged one, a crash after is finished at the next opening.
"""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import frames
from .folders import sync_folder
from .journal_index import ROW_MAX
from .journal_schema import (
    CREATE,
    FORMAT_CHECKED,
    READ_MARKS,
    WRITE_HEAD,
    WRITE_MARK,
    WRITE_RELEASED,
    head_values,
    mark_record,
    mark_values,
    released_crc,
    released_document,
)
from .sqlite_files import PARTS, UNREADABLE, keep_in_quarantine, part_path, primary_code


def salvage(path: Path, damaged: sqlite3.Connection) -> tuple[int, Path]:
    """Makes the new file. How many rows could not be read, and where the damaged file is kept. `finish_salvage` puts the
    new one in its place, once `damaged` is closed.

    Raises:
        sqlite3.Error: the new file cannot be written, or nothing at all can be read.
    """
    new = path.with_name(f"{path.name}.new")
    for part in PARTS:
        part_path(new, part).unlink(missing_ok=True)
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.executescript(CREATE)
        connection.execute("BEGIN IMMEDIATE")
        lost = last = epoch = 0
        for number, data in _rows(damaged):
            row = frames.scan(data) if isinstance(data, bytes) else None
            if row is None:
                lost += 1
                continue
            # Rows are walked in their order; a number that is not in it is damaged itself.
            last = number if last < number <= ROW_MAX else last + 1
            epoch = max(epoch, row.epoch)
            connection.execute("INSERT INTO journal(row, data) VALUES (?, ?)", (last, data))
        ((version,),) = damaged.execute("PRAGMA user_version").fetchall()
        crc = "crc" if version >= FORMAT_CHECKED else "NULL"
        releases = 0
        for head in _lines(damaged, f"SELECT epoch, {'releases' if version > 1 else 0}, {crc} FROM head"):
            if version < FORMAT_CHECKED or head == head_values(head[0], head[1]):
                epoch, releases = max(epoch, head[0]), head[1]
        statement = f"SELECT session_id, seq, gone, {crc} FROM released"
        lines = [
            line[:3]
            for line in (_lines(damaged, statement) if version > 1 else ())
            if version < FORMAT_CHECKED or line[3] == released_crc(*line[:3])
        ]
        connection.execute(WRITE_RELEASED, (released_document(lines),))
        for line in _lines(damaged, READ_MARKS) if version > FORMAT_CHECKED else ():
            if (mark := mark_record(*line)) is not None:
                connection.execute(WRITE_MARK, mark_values(mark))
        connection.execute(WRITE_HEAD, head_values(epoch, releases + 1))
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    _sync(new)
    kept = keep_in_quarantine(path)
    os.replace(new, _salvaged(path))
    sync_folder(path.parent)
    return lost, kept


def finish_salvage(path: Path) -> None:
    """Puts the new file in its place, where there is one. The log of the damaged one is no log of this one."""
    if _salvaged(path).exists():
        for part in PARTS[1:]:
            part_path(path, part).unlink(missing_ok=True)
        sync_folder(path.parent)
        os.replace(_salvaged(path), path)
        sync_folder(path.parent)


def _salvaged(path: Path) -> Path:
    return path.with_name(f"{path.name}.salvaged")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[int, Any]]:
    """Number and data of every row that is found, in the order in which they lie; no data where it cannot be read."""
    forward = [number for (number,) in _lines(connection, "SELECT row FROM journal ORDER BY row")]
    # Where the walk breaks off, from the other end.
    backward = [number for (number,) in _lines(connection, "SELECT row FROM journal ORDER BY row DESC")]
    rest = backward[: backward.index(forward[-1])] if forward and forward[-1] in backward else backward
    broken = rest != []
    numbers = forward + rest[::-1]
    before = 0
    for at, number in enumerate(numbers):
        found: list[tuple[Any]] = []
        if before < number and (at + 1 == len(numbers) or number < numbers[at + 1]):
            found = list(_lines(connection, "SELECT data FROM journal WHERE row = ?", number))
        if not found and not broken:  # it does not stand where its number says
            found = list(_lines(connection, "SELECT data FROM journal ORDER BY row LIMIT 1 OFFSET ?", at))
        yield number, found[0][0] if found else None
        before = number


def _lines(connection: sqlite3.Connection, statement: str, *values: int) -> Iterator[Any]:
    """What can be read before the damage."""
    try:
        yield from connection.execute(statement, values)
    except sqlite3.DatabaseError as error:
        if primary_code(error) not in UNREADABLE:
            raise
