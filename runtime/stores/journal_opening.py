"""How the journal's database is opened: made, checked, brought to this format, made anew of what can be read where it is damaged,
and indexed; and opened again where it is not known what became of a statement.

Only the owner thread of `journal_sqlite.py` calls it.
"""

import contextlib
import sqlite3
import sys
import tempfile
from pathlib import Path

from ...actors.errors import (
    Damaged,
    StorageFull,
    StoreError,
    StoreUnavailable,
    UnusableFolder,
)
from ...actors.ports import Record
from . import frames
from .folders import sync_folder
from .journal_index import ROW_MAX, JournalIndex
from .journal_reader import JournalReader, not_read, unreadable
from .journal_salvage import finish_salvage, salvage
from .journal_schema import (
    APPLICATION_ID,
    CACHE_KIB,
    CREATE,
    FORMAT,
    FORMAT_CHECKED,
    READ_MARKS,
    STEPS,
    WRITE_HEAD,
    WRITE_RELEASED,
    head_values,
    mark_record,
    released_crc,
    released_document,
)
from .mark import Mark, read_mark
from .reserve import Reserve
from .sqlite_files import (
    BUSY_TIMEOUT_S,
    lacks_shared_memory,
    primary_code,
    private_copy,
    private_copy_path,
    schema_damage_told,
    schema_of,
    stored_schema,
    structure_flaws,
    uri,
)


class JournalOpening:
    """The half of `JournalDatabase` that finds out what is there."""

    def __init__(self, path: Path, *, read_only: bool, reserve: Reserve | None = None) -> None:
        self.index = JournalIndex()
        self._reserve = reserve
        self._owned = False  # an epoch was raised here: from then on the reserve may be made
        self.path = path
        self.read_only = read_only
        self.reader = JournalReader(path, self.index)  # of an owner
        self._connection: sqlite3.Connection | None = None
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._live = True  # the writer's commits show through this connection
        self._unknown = False  # the outcome of the last statement is
        self._wal_bytes = 0  # committed since the log was last written back
        self._epoch: int | None = (
            None  # the highest that was found at the first opening, or written here since
        )
        self._mark = Mark(path)
        self._head_holds = True
        self._halves = 0  # rows of which one directory is damaged, and nothing else
        self.flaws: list[str] = []  # what was found wrong at the first opening
        self.moved_to: Path | None = (
            None  # where the damaged file went, of which this one is what could be read
        )

    # -- opening and closing --

    def open(self) -> None:
        self._unknown = True
        first = self._epoch is None
        try:
            marked = self._marked() if first else None  # before the rows: a live owner goes on
            with schema_damage_told():
                connection = self._connect_read_only() if self.read_only else self._connect()
                self._connection = connection
                self._check_format(connection)
            if first and (flaws := self._structure_flaws(connection)):
                self.flaws += flaws
                if not self.read_only:
                    connection = self._salvage(connection)
            if not self.read_only:
                self._check_log(connection)
                self._upgrade(connection)
                self._check_rows(connection)
            self._scan(connection)
        except sqlite3.Error as error:
            raise self._translated(error) from error
        except OSError as error:  # its folder, or a file beside it
            raise StoreUnavailable(
                f"the journal {self.path} cannot be opened ({error}); check the disk"
            ) from error
        if first:
            self._epoch = self.index.epoch
            self._compare(marked)
            self._check_marks(connection)
            if self.index.damaged:
                self.flaws.append(f"{self.index.damaged:,} records or rows do not carry their checksum")
            if self._halves:
                self.flaws.append(f"{self._halves:,} rows have lost one of their two directories")
        if not self.read_only:
            self._note()
        self._unknown = False

    def _marked(self) -> tuple[int, int, int] | None:
        try:
            return read_mark(self.path)
        except Damaged as error:
            self.flaws.append(str(error))
            return None

    def _compare(self, marked: tuple[int, int, int] | None) -> None:
        """With how far it had come when something was last committed. An owner that was killed, or lost power, may have
        committed and not noted it."""
        row, releases, _ = marked or (0, 0, 0)
        if row > self.index.row:
            self.flaws.append(
                f"it ends at row {self.index.row}, and row {row} was committed: its end is lost, or it is an older copy"
            )
        elif releases > self.index.releases and self._head_holds:
            self.flaws.append("what was released last is lost, or it is an older copy")

    def _note(self) -> None:
        self._mark.note(self.index.row, max(self.index.releases, 0))

    def _structure_flaws(self, connection: sqlite3.Connection) -> list[str]:
        flaws = structure_flaws(connection)
        if not flaws:
            (last,) = connection.execute("SELECT coalesce(max(row), 0) FROM journal").fetchone()
            if last > ROW_MAX:
                flaws = [f"it has a row {last}, which is above {ROW_MAX}"]
        return flaws

    def _salvage(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """What can be read becomes a new file, since writing into a damaged one could cost what is whole."""
        try:
            lost, self.moved_to = salvage(self.path, connection)
        except sqlite3.Error as error:
            if primary_code(error) == sqlite3.SQLITE_FULL:
                raise StorageFull(
                    f"the journal {self.path} is damaged, and there is no room for a copy of what can be read of it; "
                    f"free {self.path.stat().st_size:,} bytes and start again"
                ) from error
            raise
        finally:
            connection.close()
        finish_salvage(self.path)
        if lost:
            self.index.count_lost(lost)
        self._connection = connection = self._connect()
        return connection

    def _connect(self) -> sqlite3.Connection:
        finish_salvage(self.path)
        try:
            # Never made anew where rows are known: an empty file there means that the disk is away.
            connection = _connection(self.path, "rw" if self.index.row else "rwc")
        except sqlite3.OperationalError as error:
            raise UnusableFolder(
                f"the journal {self.path} cannot be opened ({error}); check that its folder exists and can be written, "
                "or name another folder with --data"
            ) from error
        self._connection = connection  # closed with the rest whatever comes now
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        # Some builds wipe what is deleted, and then a deletion writes as much as it deletes.
        connection.execute("PRAGMA secure_delete = OFF")
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            connection.executescript(CREATE)
            sync_folder(self.path.parent)
        return connection

    def _connect_read_only(self) -> sqlite3.Connection:
        if not self.path.exists():
            raise UnusableFolder(f"there is no journal at {self.path}; name the data folder with --data")
        self._connection = connection = _connection(self.path, "ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema")
            return connection
        except sqlite3.OperationalError as error:
            if not lacks_shared_memory(error):
                raise
        connection.close()
        self._live = False
        self._copy = private_copy(self.path)
        return _connection(private_copy_path(self._copy), "rw")

    def _check_rows(self, connection: sqlite3.Connection) -> None:
        (last,) = connection.execute("SELECT coalesce(max(row), 0) FROM journal").fetchone()
        if last < self.index.row:
            raise Damaged(
                f"{self.path} ends at row {last}, and row {self.index.row} was committed: it is another file, or has lost its "
                "end; put the right one back"
            )

    def _check_log(self, connection: sqlite3.Connection) -> None:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":
            raise UnusableFolder(
                f"the file system of {self.path} has no write-ahead log (mode {mode}); use a local disk"
            )

    def _check_format(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise UnusableFolder(f"{self.path} is no Sojourn journal; name another folder with --data")
        if version > FORMAT:
            raise UnusableFolder(
                f"the journal {self.path} is of format {version}, this Sojourn reads up to format {FORMAT}; "
                "open it with the newer Sojourn that wrote it, or name another folder with --data"
            )

        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
        if version < 1 or stored_schema(rows) != schema_of(STEPS[:version]):
            raise unreadable(self.path, f"its tables are not those of format {version}")

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == FORMAT:
            return
        connection.execute("BEGIN IMMEDIATE")
        for step in STEPS[version:]:
            for statement in filter(str.strip, step.split(";")):
                connection.execute(statement)
        if version < FORMAT_CHECKED:
            lines = connection.execute("SELECT session_id, seq, gone FROM released").fetchall()
            connection.execute(WRITE_RELEASED, (released_document(lines),))
            (head,) = connection.execute("SELECT epoch, releases FROM head").fetchall()
            connection.execute(WRITE_HEAD, head_values(*head))
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")

    def _scan(self, connection: sqlite3.Connection) -> None:
        """Takes in what was released since, and the rows beyond the last known one, as of one moment. A row that cannot
        be read costs what is in it and no more."""
        connection.execute("BEGIN")
        try:
            epoch, releases = self._read_head(connection)
            self._follow(connection, releases)
            numbers = connection.execute(
                "SELECT row FROM journal WHERE row > ? ORDER BY row", (self.index.row,)
            )
            for (number,) in numbers.fetchall():
                if self.index.row < number <= ROW_MAX:  # else a flaw, which was told of
                    self._scan_row(connection, number)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        self.index.settle()
        if self.read_only:  # the owner deletes them
            self.index.rows.removed(self.index.rows.disposable(sys.maxsize, sys.maxsize))
        if epoch is not None:
            self.index.epoch = max(self.index.epoch, epoch)
        elif not self.read_only:
            # The newest row never goes, and an epoch is raised in the commit of its first row.
            connection.execute(WRITE_HEAD, head_values(self.index.epoch, releases))

    def _read_head(self, connection: sqlite3.Connection) -> tuple[int | None, int]:
        """Epoch and count of releases; no epoch where the line does not carry its checksum."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        columns = ("epoch, 0, NULL", "epoch, releases, NULL", "epoch, releases, crc")[
            min(version, FORMAT_CHECKED) - 1
        ]
        found = connection.execute(f"SELECT {columns} FROM head").fetchall()
        if len(found) == 1:
            epoch, releases, crc = found[0]
            if version < FORMAT_CHECKED or (epoch, releases, crc) == head_values(epoch, releases):
                return epoch, releases
        self._found("its head does not carry its checksum")
        self._head_holds = False
        return None, self.index.releases + 1

    def _follow(self, connection: sqlite3.Connection, releases: int) -> None:
        if releases == self.index.releases:
            return
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        lines: list[tuple[str, int, int, int]] = []
        if version > 1:  # else a reader before the owner has brought it to this format
            crc = "crc" if version >= FORMAT_CHECKED else "NULL"
            lines = connection.execute(f"SELECT session_id, seq, gone, {crc} FROM released").fetchall()
        (oldest_row,) = connection.execute("SELECT coalesce(min(row), 0) FROM journal").fetchone()
        told = {
            session_id: (seq, gone)
            for session_id, seq, gone, crc in lines
            if version < FORMAT_CHECKED or crc == released_crc(session_id, seq, gone)
        }
        if len(told) < len(lines):
            self._found(f"{len(lines) - len(told):,} lines of what was released do not carry their checksum")
        self.index.follow(told, oldest_row)
        self.index.releases = releases

    def _found(self, flaw: str) -> None:
        if self._epoch is None:
            self.flaws.append(flaw)

    def _scan_row(self, connection: sqlite3.Connection, number: int) -> None:
        data = self._data_of(connection, number)
        row = frames.scan(data)
        if row is None:
            # Asked for apart: it can be told of a row whose pages cannot be read.
            told = connection.execute("SELECT length(data) FROM journal WHERE row = ?", (number,)).fetchone()
            self.index.add_lost(number, (told and told[0]) or 0)
        else:
            self._halves += not frames.has_both_directories(data)
            self.index.add(number, row)

    def _data_of(self, connection: sqlite3.Connection, number: int) -> bytes:
        """Empty where it cannot be read, or is none of ours."""
        try:
            found = connection.execute("SELECT data FROM journal WHERE row = ?", (number,)).fetchone()
        except sqlite3.DatabaseError as error:
            if primary_code(error) != sqlite3.SQLITE_CORRUPT:
                raise
            return b""
        return found[0] if found is not None and isinstance(found[0], bytes) else b""

    def close(self) -> None:
        self._mark.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            if not self.read_only:
                # What is committed is durable in the log already; a checkpoint that fails costs the next open time.
                with contextlib.suppress(sqlite3.Error), schema_damage_told():
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
            if self._reserve is not None and self._owned:
                self._reserve.make()  # the next start may need it whole
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def _settled(self) -> sqlite3.Connection:
        """The connection, opened anew and indexed when an outcome is unknown."""
        if self._unknown:
            try:
                self.reader.disconnect()
                if self._connection is not None:
                    self._connection.close()
            except sqlite3.Error as error:
                raise self._translated(error) from error
            self._connection = None
            self.open()
            self._wal_bytes = sys.maxsize  # not known: write it back at the next occasion
        assert self._connection is not None
        return self._connection

    def _check_marks(self, connection: sqlite3.Connection) -> None:
        try:
            if broken := self._read_marks(connection).count(None):
                self.flaws.append(f"{broken:,} marks do not carry their checksum")
        except Damaged as error:
            self.flaws.append(str(error))

    def _read_marks(self, connection: sqlite3.Connection) -> list[Record | None]:
        """None for one that does not carry its checksum."""
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < FORMAT:  # a reader before the owner has brought it to this format
                return []
            return [mark_record(*line) for line in connection.execute(READ_MARKS)]
        except sqlite3.Error as error:
            raise self._translated(error) from error

    @property
    def unknown(self) -> bool:
        """Whether what exists has to be read again before the next use."""
        return self._unknown

    def settle(self) -> None:
        """Does so, where it has to be."""
        self._settled()

    def refresh(self) -> None:
        if not self._live:
            self.close()
            self.index = JournalIndex()
            self._live = self._unknown = True
        connection = self._settled()
        try:
            self._scan(connection)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.Error) -> StoreError:
        translated = not_read(self.path, error)
        self._unknown = self._unknown or isinstance(translated, StoreUnavailable)
        return translated


def _connection(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri(path, mode), uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    connection.text_factory = _text
    return connection


def _text(data: bytes) -> str:
    """Damaged text is told by its checksum, not by an error of the driver that costs the lines beside it, too."""
    return data.decode("utf-8", "replace")
