"""What the two SQLite stores share: how files are opened, copied for readers, and what SQLite's errors mean."""

import shutil
import sqlite3
import tempfile
from pathlib import Path
from urllib.parse import quote

BUSY_TIMEOUT_S = 5.0
UNREADABLE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
NO_SHARED_MEMORY = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})


def uri(path: Path, mode: str) -> str:
    """`mode` is `rwc`, `rw` or `ro` (https://sqlite.org/uri.html)."""
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


def primary_code(error: sqlite3.Error) -> int:
    """The primary result code (https://sqlite.org/rescode.html); SQLITE_ERROR where the driver gives none."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


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
