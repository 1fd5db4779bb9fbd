"""The journal: a SQLite database in which one row is one group commit.

Rows cost more than syncs (rows of one event 53 k/s, rows of 1,024 events 1.3 M/s), so the records of a group commit
are framed in one blob (`frames`), and where each one lies is held in memory (`journal_index`). WAL with
`synchronous=FULL` lost nothing at power cuts; with NORMAL it does. The log is written back when nothing is waiting, and
between two commits once it has grown to `WAL_BYTES_MAX`, never inside a commit.

A commit is one SQL statement: the owner thread gives the interpreter lock back during each, and gets it back only when
the event loop pauses. For the same reason a read takes many records in one statement.

What it cannot see: SQLite drops a damaged tail of its log silently, and then the journal is shorter than it was. That
shows only against the seq of a snapshot, the catalog or the mirror.
"""

import contextlib
import json
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...actors.errors import Damaged, StaleEpoch, StorageFull, StoreError, StoreUnavailable, UnusableFolder
from ...actors.ports import JournalStatistics, Record
from ..bridge import OwnerThread
from . import frames
from .folders import sync_folder
from .frames import Row
from .journal_index import JournalIndex, Place
from .sqlite_files import (
    BUSY_TIMEOUT_S,
    NO_SHARED_MEMORY,
    UNREADABLE,
    primary_code,
    private_copy,
    private_copy_path,
    uri,
)

APPLICATION_ID = 0x534A524E  # "SJRN"
FORMAT = 1
PAGE_BYTES = 8192  # a row of 90 KB commits in 0.4 ms (0.5 ms at 4,096), a row of 350 B in 0.3 ms at either
WAL_BYTES_MAX = 16 * 1024 * 1024  # written back in some 40 ms, which is what a commit then waits
READ_BYTES_MAX = 1024 * 1024  # in one hop to the owner thread: a long read must not hold up a commit
READ_RECORDS_MAX = 256

_CREATE = f"""
PRAGMA page_size = {PAGE_BYTES};
PRAGMA application_id = {APPLICATION_ID};
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE journal(row INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE head(one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL);
INSERT INTO head VALUES (1, 0);
PRAGMA user_version = {FORMAT};
COMMIT;
"""
# The fence stands in the statement that writes: a newer owner may have raised the epoch since this process read it.
_INSERT = "INSERT INTO journal(row, data) SELECT ?1, ?2 WHERE (SELECT epoch FROM head) <= ?3"
_RAISE = "UPDATE head SET epoch = max(epoch, ?1)"
# Pieces of many rows as one blob, in the order asked for.
_READ = """
SELECT CAST(group_concat(substr(journal.data, piece.value ->> 1, piece.value ->> 2), '') AS BLOB)
FROM (SELECT value FROM json_each(?1)) AS piece CROSS JOIN journal ON journal.row = piece.value ->> 0
"""


class SqliteJournal:
    """`Journal` on a SQLite file. Opened by `open`; runs on asyncio and on trio.

    After `StoreUnavailable` the next `append`, `read` or `refresh` closes the database, opens it again and indexes the
    rows beyond the last known one before it does anything else: from then on `heads` tells what exists. `append(())`
    does that alone. Records queued behind a failed append do not follow any more and are refused with ValueError.
    """

    def __init__(self, database: "_Database", owner: OwnerThread) -> None:
        self._database = database
        self._owner = owner

    @classmethod
    async def open(cls, path: Path, *, read_only: bool = False) -> "SqliteJournal":
        """Opens the journal, makes it where there is none (unless `read_only`), and indexes what it holds.

        A read-only journal takes no lock, changes no file, shows what stood there when it was opened or last
        refreshed, and works beside a live writer, after one was killed, and in a folder that cannot be written.

        Raises:
            UnusableFolder: the file is of a newer format, not a journal, or cannot be made or opened there.
            Damaged: SQLite cannot read the file at all. Damaged records do not raise here, but when they are read.
            StoreUnavailable: the disk did not answer.
        """
        database = _Database(path, read_only=read_only)
        owner = OwnerThread(f"journal {path.name}", idle=database.idle)
        opened = False
        try:
            await owner.run(database.open)
            opened = True
        finally:
            if not opened:  # failed or cancelled: the thread ends once it has closed what it may have opened
                await owner.close(database.close)
        return cls(database, owner)

    @property
    def epoch(self) -> int:
        return self._database.index.epoch

    def heads(self) -> Mapping[str, int]:
        return self._database.index.heads

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        return self._database.index.pending_bytes(session_id, after_seq)

    def statistics(self) -> JournalStatistics:
        return self._database.index.statistics()

    async def append(self, records: Sequence[Record]) -> None:
        if self._database.read_only:
            raise UnusableFolder(f"the journal {self._database.path} was opened to be read only")
        await self._owner.run(self._database.append, frames.encode(records))

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        records: list[Record] = []
        places = await self._owner.run(self._database.places, session_id, after_seq, bytes_max)
        start = 0
        while start < len(places):
            stop, size = start, 0
            while stop < len(places) and stop - start < READ_RECORDS_MAX and size < READ_BYTES_MAX:
                size += places[stop].length
                stop += 1
            records += await self._owner.run(self._database.read, session_id, places[start:stop])
            start = stop
        return records

    async def refresh(self) -> None:
        """Takes in what the writer has committed since (read-only journals)."""
        await self._owner.run(self._database.refresh)

    async def close(self) -> None:
        await self._owner.close(self._database.close)


class _Database:
    """The blocking half. Only the owner thread calls it; others read `index`."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.index = JournalIndex()
        self.path = path
        self.read_only = read_only
        self._connection: sqlite3.Connection | None = None
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._live = True  # the writer's commits show through this connection
        self._unknown = False  # the outcome of the last statement is
        self._wal_bytes = 0  # committed since the log was last written back

    # -- opening and closing --

    def open(self) -> None:
        self._unknown = True
        try:
            self._connection = connection = self._connect_read_only() if self.read_only else self._connect()
            self._check_format(connection)
            if not self.read_only:
                self._check_log(connection)
                self._check_rows(connection)
            self._scan(connection)
        except sqlite3.Error as error:
            raise self._translated(error) from error
        self._unknown = False

    def _connect(self) -> sqlite3.Connection:
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
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            connection.executescript(_CREATE)
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
            if primary_code(error) not in NO_SHARED_MEMORY:
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

    def _scan(self, connection: sqlite3.Connection) -> None:
        """Indexes the rows beyond the last known one. A row that cannot be read costs what is in it and no more."""
        (epoch,) = connection.execute("SELECT epoch FROM head").fetchone()
        numbers = connection.execute("SELECT row FROM journal WHERE row > ? ORDER BY row", (self.index.row,))
        for (number,) in numbers.fetchall():
            try:
                (data,) = connection.execute("SELECT data FROM journal WHERE row = ?", (number,)).fetchone()
            except sqlite3.DatabaseError as error:
                if primary_code(error) != sqlite3.SQLITE_CORRUPT:
                    raise
                data = b""
            row = frames.scan(data)
            if row is None:
                self.index.add_lost(number)
            else:
                self.index.add(number, row)
        self.index.epoch = max(self.index.epoch, epoch)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if not self.read_only:
                # What is committed is durable in the log already; a checkpoint that fails costs the next open time.
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def _settled(self) -> sqlite3.Connection:
        """The connection, opened anew and indexed when an outcome is unknown."""
        if self._unknown:
            try:
                if self._connection is not None:
                    self._connection.close()
            except sqlite3.Error as error:
                raise self._translated(error) from error
            self._connection = None
            self.open()
            self._wal_bytes = WAL_BYTES_MAX  # not known: write it back at the next occasion
        assert self._connection is not None
        return self._connection

    # -- work --

    def append(self, rows: list[Row]) -> None:
        connection = self._settled()
        if not rows:
            return
        self.index.check(rows)
        if self._wal_bytes >= WAL_BYTES_MAX:
            self._write_back(connection)
        try:
            if len(rows) == 1 and rows[0].epoch == self.index.epoch:
                self._insert(connection, self.index.row + 1, rows[0])
            else:
                self._insert_all(connection, rows)
        except sqlite3.Error as error:
            raise self._undone(connection, error) from error
        for row in rows:
            self.index.add(self.index.row + 1, row)
            self._wal_bytes += len(row.data) + PAGE_BYTES  # and the page that points to it
        self.index.commits += 1

    def _insert(self, connection: sqlite3.Connection, number: int, row: Row) -> None:
        if connection.execute(_INSERT, (number, row.data, row.epoch)).rowcount != 1:
            (newer,) = connection.execute("SELECT epoch FROM head").fetchone()
            raise StaleEpoch(
                f"epoch {row.epoch} is fenced: a newer owner has raised it to {newer}; stop this process"
            )

    def _insert_all(self, connection: sqlite3.Connection, rows: list[Row]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for number, row in enumerate(rows, self.index.row + 1):
                self._insert(connection, number, row)
            connection.execute(_RAISE, (rows[-1].epoch,))
            connection.execute("COMMIT")
        except StaleEpoch:
            connection.execute("ROLLBACK")
            raise

    def _undone(self, connection: sqlite3.Connection, error: sqlite3.Error) -> StoreError:
        """What a failed commit means. Full, rolled back, and nothing there: nothing was written. Else: unknown."""
        self._unknown = True
        if primary_code(error) == sqlite3.SQLITE_FULL:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                (last,) = connection.execute("SELECT coalesce(max(row), 0) FROM journal").fetchone()
                self._unknown = last > self.index.row
        if not self._unknown:
            return StorageFull(f"no room for the journal {self.path}; nothing was written, free some space")
        return StoreUnavailable(
            f"the journal {self.path} failed ({error}); what exists is read again before the next use"
        )

    def places(self, session_id: str, after_seq: int, bytes_max: int | None) -> list[Place]:
        self._settled()
        places = self.index.places(session_id, after_seq)
        if bytes_max is not None:
            payload_bytes = 0
            for at, place in enumerate(places, 1):
                payload_bytes += max(place.length - frames.CRC_BYTES, 0)
                if payload_bytes >= bytes_max:
                    places = places[:at]
                    break
        return places

    def read(self, session_id: str, places: list[Place]) -> list[Record]:
        connection = self._settled()
        pieces = json.dumps([(place.row, place.offset + 1, place.length) for place in places])
        try:
            data = connection.execute(_READ, (pieces,)).fetchone()[0] or b""
        except sqlite3.Error as error:
            if primary_code(error) != sqlite3.SQLITE_CORRUPT:
                raise self._translated(error) from error
            if len(places) == 1:
                raise self._damage(session_id, places[0]) from error
            return [record for place in places for record in self.read(session_id, [place])]
        records: list[Record] = []
        at = 0
        for place in places:
            payload = frames.payload_of(data[at : at + place.length], place.first_seq)
            if payload is None:
                raise self._damage(session_id, place)
            count = place.last_seq - place.first_seq + 1
            records.append(Record(session_id, place.first_seq, count, place.epoch, payload))
            at += place.length
        return records

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

    def idle(self) -> None:
        if self._connection is not None and self._wal_bytes and not self._unknown:
            self._write_back(self._connection)

    def _write_back(self, connection: sqlite3.Connection) -> None:
        # A checkpoint that fails has lost nothing: the log keeps what is not written back, and the next one tries again.
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._wal_bytes = 0

    def _damage(self, session_id: str, place: Place) -> Damaged:
        return Damaged(
            f"session {session_id}: events {place.first_seq} to {place.last_seq} in the journal {self.path} do not "
            "carry their checksum; another copy may stand in the mirror, a snapshot or a segment"
        )

    def _translated(self, error: sqlite3.Error) -> StoreError:
        if primary_code(error) in UNREADABLE:
            return Damaged(
                f"the journal {self.path} cannot be read ({error}); move it aside with its -wal file: sessions then "
                "recover from mirror, snapshots and segments"
            )
        self._unknown = True
        return StoreUnavailable(f"the journal {self.path} cannot be read ({error})")


def _connection(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(uri(path, mode), uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
