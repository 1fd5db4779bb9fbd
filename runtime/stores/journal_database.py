"""The blocking half of the journal: the SQLite connection that writes, its statements, and the index of what the rows hold.

Only the owner thread of `journal_sqlite.py`, which says why things are so, calls it.
"""

import contextlib
import json
import sqlite3
from collections.abc import Sequence

from ...actors.errors import (
    Missing,
    StaleEpoch,
    StorageFull,
    StoreError,
    StoreUnavailable,
)
from ...actors.ports import Record, RecordKind
from .frames import Row
from .journal_index import SEQ_MAX
from .journal_opening import JournalOpening
from .journal_reader import Stretch, places_of_stretch, read_places
from .journal_schema import (
    DELETE_MARK,
    PAGE_BYTES,
    WRITE_HEAD,
    WRITE_MARK,
    WRITE_RELEASED,
    head_values,
    mark_values,
    released_document,
)
from .sqlite_files import (
    BUSY_TIMEOUT_S,
    primary_code,
)

WAL_BYTES_MAX = 8 * 1024 * 1024  # written back in some 20 ms, which is what a commit then waits
# In one hop, so that a commit behind it waits for some 5 ms:
RELEASE_RECORDS_MAX = 2 * 1024
DELETE_BYTES_MAX = 512 * 1024
DELETE_ROWS_MAX = 4 * 1024
DELETE_WAL_BYTES_MAX = 1024 * 1024

# The fence stands in the statement that writes: a newer owner may have raised the epoch since this process read it.
_INSERT = "INSERT INTO journal(row, data) SELECT ?1, ?2 WHERE (SELECT epoch FROM head) <= ?3"
_DELETE = "DELETE FROM journal WHERE row IN (SELECT value FROM json_each(?1))"
_DELETE_FORGOTTEN = "DELETE FROM released WHERE session_id IN (SELECT value FROM json_each(?1))"


class JournalDatabase(JournalOpening):
    """The blocking half. Only the owner thread calls it; others read `index`."""

    def append(self, rows: list[Row], marks: Sequence[Record] = ()) -> None:
        connection = self._settled()
        if not rows and not marks:
            return
        self.index.check(rows)
        if self._wal_bytes >= self._wal_bytes_max:
            self._write_back(connection)
        try:
            if len(rows) == 1 and rows[0].epoch == self.index.epoch and not marks:
                self._insert(connection, self.index.row + 1, rows[0])
            else:
                self._insert_all(connection, rows, marks)
        except sqlite3.Error as error:
            raise self._undone(connection, error) from error
        for row in rows:
            self.index.add(self.index.row + 1, row)
            self._wal_bytes += len(row.data) + PAGE_BYTES  # and the page that points to it
        self._wal_bytes += sum([len(mark.payload) + PAGE_BYTES for mark in marks])
        self.index.commits += 1
        self._note()

    def _insert(self, connection: sqlite3.Connection, number: int, row: Row) -> None:
        if connection.execute(_INSERT, (number, row.data, row.epoch)).rowcount != 1:
            (newer,) = connection.execute("SELECT epoch FROM head").fetchone()
            raise StaleEpoch(
                f"epoch {row.epoch} is fenced: a newer owner has raised it to {newer}; stop this process"
            )

    def _insert_all(self, connection: sqlite3.Connection, rows: list[Row], marks: Sequence[Record]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for number, row in enumerate(rows, self.index.row + 1):
                self._insert(connection, number, row)
            epoch, releases = connection.execute("SELECT epoch, releases FROM head").fetchone()
            self._put_marks(connection, marks, epoch)
            newest = max(epoch, *[row.epoch for row in rows], *[mark.epoch for mark in marks])
            connection.execute(WRITE_HEAD, head_values(newest, releases))
            connection.execute("COMMIT")
        except StaleEpoch:
            connection.execute("ROLLBACK")
            raise
        self._epoch = newest
        self._owned = True

    @staticmethod
    def _put_marks(connection: sqlite3.Connection, marks: Sequence[Record], epoch: int) -> None:
        for mark in marks:
            if mark.epoch < epoch:
                raise StaleEpoch(
                    f"epoch {mark.epoch} is fenced: the journal is at {epoch}; stop this process"
                )
            if mark.kind is RecordKind.RELEASE:
                connection.execute(DELETE_MARK, (mark.session_id, mark.first_seq))
            else:
                connection.execute(WRITE_MARK, mark_values(mark))

    def marks(self) -> list[Record]:
        """Those that stand."""
        return [mark for mark in self._read_marks(self._settled()) if mark is not None]

    def release(self, upto: dict[str, int]) -> dict[str, int]:
        """A part of it; the rest."""
        connection = self._settled()
        if max(upto.values()) > SEQ_MAX:
            raise ValueError(f"seq {max(upto.values())} is above {SEQ_MAX}")
        part, rest = self.index.newly(upto, RELEASE_RECORDS_MAX)
        if part:
            lines = [(session_id, seq, self.index.gone(session_id)) for session_id, seq in part.items()]
            self._tell(connection, lines)
            for session_id, seq in part.items():
                self.index.release(session_id, seq)
        if not rest:
            self.index.rows.dispose_of_lost()
        return rest

    def forget(self, session_ids: list[str]) -> tuple[list[str], bool]:
        """Those of which so many records would go with the others that they must be released before; and whether there may be
        more to `delete`."""
        connection = self._settled()
        few, too_many, records = list[str](), list[str](), 0
        for session_id in session_ids:
            if session_id in self.index.heads:
                records += self.index.records_of(session_id)
                (few if records <= RELEASE_RECORDS_MAX else too_many).append(session_id)
        if few:
            self._tell(connection, [(session_id, 0, self.index.row) for session_id in few])
            for session_id in few:
                self.index.forget(session_id)
            self.index.rows.dispose_of_lost()
        return too_many, self.delete()

    def _tell(self, connection: sqlite3.Connection, lines: list[tuple[str, int, int]]) -> None:
        """Commits what was released, with the epoch as a fence."""
        document = released_document(lines)
        try:
            connection.execute("BEGIN IMMEDIATE")
            epoch, releases = connection.execute("SELECT epoch, releases FROM head").fetchone()
            if epoch > self._epoch:
                connection.execute("ROLLBACK")
                raise StaleEpoch(
                    f"epoch {self._epoch} is fenced: a newer owner has raised it; stop this process"
                )
            connection.execute(WRITE_HEAD, head_values(epoch, releases + 1))
            connection.execute(WRITE_RELEASED, (document,))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._undone(connection, error) from error
        self.index.releases += 1
        self._wal_bytes += PAGE_BYTES + len(document)
        self._note()

    def delete(self) -> bool:
        """Deletes some of the rows that nothing needs; whether there may be more."""
        connection = self._settled()
        rows = self.index.rows.disposable(DELETE_BYTES_MAX, DELETE_ROWS_MAX)
        try:
            if not rows:
                self._delete_forgotten(connection)
                return False
            if self._wal_bytes >= min(DELETE_WAL_BYTES_MAX, self._wal_bytes_max):
                self._write_back(connection)
                return True
            try:
                self._delete(connection, rows)
            except sqlite3.Error as error:
                if primary_code(error) != sqlite3.SQLITE_CORRUPT:
                    raise
                self._delete_singly(connection, rows)
        except sqlite3.Error as error:
            raise self._undone(connection, error) from error
        return True

    def _delete(self, connection: sqlite3.Connection, rows: list[tuple[int, int]]) -> None:
        connection.execute(_DELETE, (json.dumps([number for number, _ in rows]),))
        self.index.rows.removed(rows)
        self._wal_bytes += sum(size for _, size in rows)

    def _delete_singly(self, connection: sqlite3.Connection, rows: list[tuple[int, int]]) -> None:
        """A damaged row, of which SQLite does not find all pages, stays in the file for good."""
        for row in rows:
            try:
                self._delete(connection, [row])
            except sqlite3.Error as error:
                if primary_code(error) != sqlite3.SQLITE_CORRUPT:
                    raise
                self.index.rows.keep()

    def _delete_forgotten(self, connection: sqlite3.Connection) -> None:
        (oldest_row,) = connection.execute("SELECT coalesce(min(row), 0) FROM journal").fetchone()
        session_ids = self.index.forgotten_before(oldest_row)
        if session_ids:
            connection.execute(_DELETE_FORGOTTEN, (json.dumps(session_ids),))
            self.index.forgetting_is_over(session_ids)

    def _undone(self, connection: sqlite3.Connection, error: sqlite3.Error) -> StoreError:
        """What a failed commit means. Full, rolled back, and nothing there: nothing was written. Else: unknown."""
        self._unknown = True
        if primary_code(error) == sqlite3.SQLITE_FULL:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                found = connection.execute(
                    "SELECT coalesce(max(row), 0), (SELECT releases FROM head) FROM journal"
                ).fetchone()
                self._unknown = found != (self.index.row, self.index.releases)
        if not self._unknown:
            self._make_room(connection)
            return StorageFull(f"no room for the journal {self.path}; nothing was written, free some space")
        return StoreUnavailable(
            f"the journal {self.path} failed ({error}); what exists is read again before the next use"
        )

    def read(self, session_id: str, after_seq: int, bytes_max: int | None) -> Stretch | None:
        """What `JournalReader.read` does, for a journal that is read only."""
        connection = self._settled()
        places, more = places_of_stretch(self.index, session_id, after_seq, bytes_max)
        if not places:
            return Stretch([], False)
        try:
            return Stretch(read_places(connection, self.path, session_id, places), more)
        except Missing:
            if self._live:  # the owner beside us may have deleted their rows
                self.refresh()
                if not self.index.holds(session_id, places[0]):
                    return None
            raise
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def idle(self) -> None:
        if self._connection is not None and self._wal_bytes and not self._unknown:
            self._write_back(self._connection)

    @property
    def _wal_bytes_max(self) -> int:
        """How much is committed before the log is written back. At least a byte: an empty log is never too long."""
        if self._reserve is None:
            return WAL_BYTES_MAX
        return max(1, min(WAL_BYTES_MAX, self._reserve.log_bytes_max))

    def _write_back(self, connection: sqlite3.Connection) -> None:
        # A checkpoint that fails has lost nothing: the log keeps what is not written back, and the next one tries again.
        try:
            with self.reader.kept_out():
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            if primary_code(error) == sqlite3.SQLITE_FULL:
                self._make_room(connection)
        self._wal_bytes = 0
        if self._reserve is not None and self._owned:
            self._reserve.make()

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """The disk is full. The log is written back with the help of the reserve, and cut off; see reserve.py."""
        if self._reserve is None:
            return
        self._reserve.give_up()
        with contextlib.suppress(sqlite3.Error), self.reader.kept_out():
            # A reader beside us keeps the log from being cut off, and is not waited for.
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._wal_bytes = 0
        with contextlib.suppress(sqlite3.Error):
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")
        if self._owned:
            self._reserve.take_back()
