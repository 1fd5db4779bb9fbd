"""What the two SQLite stores share: how files are opened, copied for readers, checked, set aside, and what SQLite's errors
mean."""

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .folders import make_folders, sync_folder

BUSY_TIMEOUT_S = 5.0
UNREADABLE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
FLAWS_MAX = 20
PARTS = ("", "-wal", "-shm", "-mark")  # what belongs to a database, by what its name ends in
NO_SHARED_MEMORY = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
_NO_ROOM_FOR_IT = frozenset(
    {sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMMAP}
)


def uri(path: Path, mode: str) -> str:
    """`mode` is `rwc`, `rw` or `ro` (https://sqlite.org/uri.html)."""
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


def primary_code(error: sqlite3.Error) -> int:
    """The primary result code (https://sqlite.org/rescode.html); SQLITE_ERROR where the driver gives none."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


@contextmanager
def schema_damage_told() -> Iterator[None]:
    """Around the first statements on a file. Of a damaged schema SQLite mostly says CORRUPT, but ERROR where its format's number
    is none ("unsupported file format"); and where damage has made a name in it no text, the driver raises
    UnicodeDecodeError. Here all of that is CORRUPT."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _corrupt(error.object.decode("utf-8", "replace")) from error
    except sqlite3.DatabaseError as error:
        if primary_code(error) != sqlite3.SQLITE_ERROR:
            raise
        raise _corrupt(str(error)) from error


def _corrupt(why: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def lacks_shared_memory(error: sqlite3.Error) -> bool:
    """Whether a reader has no place for the log's shared memory: the folder cannot be written, or the disk is full."""
    return (
        primary_code(error) in NO_SHARED_MEMORY or getattr(error, "sqlite_errorcode", None) in _NO_ROOM_FOR_IT
    )


def wal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def private_copy(path: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder with a copy of a database and its log, as `private_copy_path` finds it.

    For a reader in a folder that cannot be written, when nobody has the database open: SQLite then has no place for
    the log's shared memory, and its `immutable` mode would leave out what a killed writer had committed to the log.
    """
    folder = tempfile.TemporaryDirectory(prefix="sojourn-")
    copy = private_copy_path(folder)
    shutil.copyfile(path, copy)
    if wal_path(path).exists():
        shutil.copyfile(wal_path(path), wal_path(copy))
    return folder


def private_copy_path(folder: "tempfile.TemporaryDirectory[str]") -> Path:
    return Path(folder.name) / "copy.db"


def part_path(path: Path, part: str) -> Path:
    """One of `PARTS` of the database at `path`."""
    return path.with_name(f"{path.name}{part}")


def schema_of(scripts: Sequence[str]) -> frozenset[tuple[str, str, str, str | None]]:
    """The schema that these scripts make, as `stored_schema` reads it."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for script in scripts:
            connection.executescript(script)
        return stored_schema(
            connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
        )
    finally:
        connection.close()


def stored_schema(rows: Iterable[Sequence[Any]]) -> frozenset[tuple[str, str, str, str | None]]:
    """Rows of type, name, tbl_name and sql, to be compared; SQLite's own tables (statistics) are left out."""
    return frozenset(
        (kind, name, table, " ".join(sql.split()) if isinstance(sql, str) else None)
        for kind, name, table, sql in rows
        if not str(name).startswith("sqlite_stat")
    )


def structure_flaws(connection: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with pages, their order, and what indices say of their tables; content it cannot judge. It
    reads every page: 0.15 s for 128 MiB that the system holds in memory."""
    try:
        found = connection.execute(f"PRAGMA integrity_check({FLAWS_MAX})").fetchall()
    except sqlite3.Error as error:
        if primary_code(error) not in UNREADABLE:
            raise
        return [str(error)]
    return flaws_in(found)


def flaws_in(found: Iterable[Sequence[str]]) -> list[str]:
    """What an integrity check answered, without its "ok"."""
    return [" ".join(line.split()) for (line,) in found if line != "ok"]


def quarantine(path: Path) -> Path:
    """Moves a database with its parts into the folder `quarantine` beside it, and says where to."""
    place = _free_place(path)
    for part in PARTS:
        if part_path(path, part).exists():
            os.replace(part_path(path, part), part_path(place, part))
    sync_folder(place.parent)
    return place


def keep_in_quarantine(path: Path) -> Path:
    """The same by links: what stands at `path` stays there."""
    place = _free_place(path)
    for part in PARTS:
        if part_path(path, part).exists():
            os.link(part_path(path, part), part_path(place, part))
    sync_folder(place.parent)
    return place


def _free_place(path: Path) -> Path:
    stem = f"{path.stem}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    folder = path.parent / "quarantine"
    make_folders(folder)
    place, number = folder / f"{stem}.db", 1
    while place.exists():
        number += 1
        place = folder / f"{stem}.{number}.db"
    return place
