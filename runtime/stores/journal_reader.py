"""Records read from the journal by their places, and the owner's second connection, over which its reads go.

A session that is sent whole, or comes back into memory, reads for long; a commit must not wait behind that. So reads have
a thread and a connection of their own. In WAL mode a reader sees all that is committed when its statement begins, and the
index tells of nothing that is not; a row that the other thread deletes meanwhile was released before, which the index
tells, too.

A reader within the log would keep it from beginning anew, and with many reads there is always one. So each statement
has its turn, and is short; while the owner writes the log back, none runs.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from attrs import frozen

from ...actors.errors import Damaged, Missing, StoreError, StoreUnavailable
from ...actors.ports import Record
from . import frames
from .journal_index import JournalIndex, Place
from .journal_sweep import Sweep
from .sqlite_files import BUSY_TIMEOUT_S, UNREADABLE, primary_code, uri

# In one statement, some 2 ms: so long may a commit wait that has to write the log back.
READ_BYTES_MAX = 1024 * 1024
READ_RECORDS_MAX = 64
# In one hop to the reader's thread: so long may another session's read wait. At full load most of a hop is waiting for the
# interpreter.
STATEMENTS_MAX = 8

# Pieces of many rows as one blob, in the order asked for.
_READ = """
SELECT CAST(group_concat(substr(journal.data, piece.value ->> 1, piece.value ->> 2), '') AS BLOB)
FROM (SELECT value FROM json_each(?1)) AS piece CROSS JOIN journal ON journal.row = piece.value ->> 0
"""

# Whole rows as one blob, in the order asked for, and how long each is; those that are gone are left out.
_READ_ROWS = """
SELECT CAST(group_concat(journal.data, '') AS BLOB), json_group_array(json_array(journal.row, length(journal.data)))
FROM (SELECT value FROM json_each(?1)) AS asked CROSS JOIN journal ON journal.row = asked.value
"""


@frozen
class Stretch:
    """Records that follow each other, and whether more were asked for than these."""

    records: list[Record]
    more: bool


def bytes_of(records: list[Record]) -> int:
    """What they hold."""
    return sum([len(record.payload) for record in records])


def follows(stretch: Stretch, records: list[Record]) -> bool:
    """Whether these are the next ones. Else some were released meanwhile."""
    return bool(stretch.records) and stretch.records[0].first_seq <= records[-1].last_seq + 1


def places_of_stretch(
    index: JournalIndex, session_id: str, after_seq: int, bytes_max: int | None
) -> tuple[list[Place], bool]:
    """What is read next above `after_seq`, and whether there is more, where `bytes_max` payload bytes are asked for."""
    places = index.places(session_id, after_seq, READ_RECORDS_MAX + 1)
    payload_bytes = 0
    for at, place in enumerate(places[:READ_RECORDS_MAX], 1):
        payload_bytes += max(place.length - frames.CRC_BYTES, 0)
        if bytes_max is not None and payload_bytes >= bytes_max:
            return places[:at], False
        if payload_bytes >= READ_BYTES_MAX:
            return places[:at], at < len(places)
    return places[:READ_RECORDS_MAX], len(places) > READ_RECORDS_MAX


def read_places(
    connection: sqlite3.Connection, path: Path, session_id: str, places: list[Place]
) -> list[Record]:
    """The records that lie there.

    Raises:
        Missing: one does not carry its checksum, or is not there.
        sqlite3.Error: the disk did not answer.
    """
    return _read_pieces(connection, path, [(session_id, place) for place in places])


def _read_pieces(
    connection: sqlite3.Connection, path: Path, pieces: Sequence[tuple[str, Place]]
) -> list[Record]:
    """As `read_places`, of several sessions in one statement."""
    asked = json.dumps([(place.row, place.offset + 1, place.length) for _, place in pieces])
    try:
        data = connection.execute(_READ, (asked,)).fetchone()[0] or b""
    except sqlite3.Error as error:
        if primary_code(error) != sqlite3.SQLITE_CORRUPT:
            raise
        if len(pieces) == 1:
            raise _damage(path, *pieces[0]) from error
        return [record for piece in pieces for record in _read_pieces(connection, path, [piece])]
    records: list[Record] = []
    at = 0
    for session_id, place in pieces:
        payload = frames.payload_of(data[at : at + place.length], place.first_seq)
        if payload is None:
            raise _damage(path, session_id, place)
        count = place.last_seq - place.first_seq + 1
        records.append(Record(session_id, place.first_seq, count, place.epoch, payload))
        at += place.length
    return records


def _damage(path: Path, session_id: str, place: Place) -> Missing:
    return Missing(
        session_id,
        place.first_seq,
        place.last_seq,
        f"session {session_id}: events {place.first_seq} to {place.last_seq} in the journal {path} do not "
        "carry their checksum; another copy may stand in the mirror, a snapshot or a segment",
    )


def unreadable(path: Path, why: str) -> Damaged:
    return Damaged(
        f"the journal {path} cannot be read ({why}); put it and its -wal file back from a copy. To go on without it, "
        "move both aside: sessions are then served as far as snapshots and segments hold them, and say what they lack"
    )


def not_read(path: Path, error: sqlite3.Error) -> StoreError:
    """What an error at reading means."""
    if primary_code(error) in UNREADABLE:
        return unreadable(path, str(error))
    return StoreUnavailable(f"the journal {path} cannot be read ({error})")


class JournalReader:
    """The owner's second connection. One thread calls `read`; the owner's calls the rest.

    It is made at the first read, and made anew after an error.
    """

    def __init__(self, path: Path, index: JournalIndex) -> None:
        self._path = path
        self._index = index
        self._turn = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def read(self, session_id: str, after_seq: int, bytes_max: int | None) -> Stretch | None:
        """The next records above `after_seq`; None where they were released meanwhile.

        Raises:
            Damaged: a record among them does not carry its checksum, or one is missing.
            StoreUnavailable: the disk did not answer.
        """
        stretch = self._read(session_id, after_seq, bytes_max)
        for _ in range(STATEMENTS_MAX - 1):
            if stretch is None or not stretch.more or bytes_of(stretch.records) >= READ_BYTES_MAX:
                break
            rest = None if bytes_max is None else bytes_max - bytes_of(stretch.records)
            following = self._read(session_id, stretch.records[-1].last_seq, rest)
            if following is None or not follows(following, stretch.records):
                return None
            stretch = Stretch(stretch.records + following.records, following.more)
        return stretch

    def read_together(self, asked: Sequence[tuple[str, int, int | None]]) -> list[Stretch | Exception | None]:
        """What `read` answers to the first of these, at least to one: as many as one statement may read for. Where it would
        raise, the error stands in place of the answer.

        Sessions that come back into memory have a few small records each: a statement for each, and giving the interpreter
        back and forth for it, cost several times the reading.
        """
        stretches: list[tuple[int, bool]] = []
        pieces: list[tuple[str, Place]] = []
        size = 0
        for session_id, after_seq, bytes_max in asked:
            places, more = places_of_stretch(self._index, session_id, after_seq, bytes_max)
            size += sum([place.length for place in places])
            if stretches and (more or len(pieces) + len(places) > READ_RECORDS_MAX or size > READ_BYTES_MAX):
                break
            stretches.append((len(places), more))
            pieces += [(session_id, place) for place in places]
            if more:
                break
        if len(stretches) > 1:
            try:
                with self._turn:
                    records = iter(_read_pieces(self._connected(), self._path, pieces) if pieces else ())
                return [Stretch(list(islice(records, count)), more) for count, more in stretches]
            except (Missing, sqlite3.Error):
                pass  # whose it is, and what it means, shows where each is read by itself
        return [self._read_or_error(*one) for one in asked[: len(stretches)]]

    def _read_or_error(
        self, session_id: str, after_seq: int, bytes_max: int | None
    ) -> Stretch | Exception | None:
        try:
            return self.read(session_id, after_seq, bytes_max)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
            return error

    def _read(self, session_id: str, after_seq: int, bytes_max: int | None) -> Stretch | None:
        places, more = places_of_stretch(self._index, session_id, after_seq, bytes_max)
        if not places:
            return Stretch([], False)
        with self._turn:
            try:
                records = read_places(self._connected(), self._path, session_id, places)
            except Missing:
                if self._index.holds(session_id, places[0]):
                    raise
                return None  # the owner has deleted their rows
            except sqlite3.Error as error:
                self._disconnect()
                raise not_read(self._path, error) from error
        return Stretch(records, more)

    def read_rows(self, sweep: Sweep) -> None:
        """The rows that it wants next. Where they cannot be read, it finds nothing there: what that means is said where a session
        is read by itself."""
        some = sweep.next_rows()
        with self._turn:
            try:
                data, lengths = self._connected().execute(_READ_ROWS, (json.dumps(some),)).fetchone()
            except sqlite3.Error:
                self._disconnect()
                data, lengths = b"", "[]"
        starts: dict[int, int] = {}
        at = 0
        for row, length in json.loads(lengths):
            starts[row] = at
            at += length
        sweep.give(some, data or b"", starts)

    @contextmanager
    def kept_out(self) -> Iterator[None]:
        """Nothing is read meanwhile, so the log may begin anew."""
        with self._turn:
            yield

    def disconnect(self) -> None:
        """The file is closed once what is being read is. The next read opens it."""
        with self._turn:
            self._disconnect()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            # Two threads use it, one at a time.
            self._connection = sqlite3.connect(
                uri(self._path, "ro"),
                uri=True,
                isolation_level=None,
                timeout=BUSY_TIMEOUT_S,
                check_same_thread=False,
            )
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
