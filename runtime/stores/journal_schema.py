"""The tables of the journal's database, and the checksums of the lines that are not rows of records."""

import json
from collections.abc import Iterable
from zlib import crc32

from ...actors.ports import Record, RecordKind

APPLICATION_ID = 0x534A524E  # "SJRN"
FORMAT = 4  # 1: nothing was ever released; 2: what was released had no checksums; 3: there were no marks that stand
FORMAT_CHECKED = 3  # from this one on
# Of the owner's connection, which only adds at the end: more than most commits write is kept for nothing. Reads have another,
# with more: of a large row they take many pieces, and go through all of it for each.
CACHE_KIB = 512
PAGE_BYTES = 8192  # a row of 90 KB commits in 0.4 ms (0.5 ms at 4,096), a row of 350 B in 0.3 ms at either

# By session the seq up to which its events were released, and the last row that may hold a record from before it was
# forgotten (0: it never was). `releases` counts the changes, for readers beside the owner.
_RELEASED = """
CREATE TABLE released(session_id TEXT PRIMARY KEY, seq INTEGER NOT NULL, gone INTEGER NOT NULL) WITHOUT ROWID;
ALTER TABLE head ADD COLUMN releases INTEGER NOT NULL DEFAULT 0;
"""
# Of each line's other columns. A line of an older format gets its own when that is brought to this one.
_CHECKED = """
ALTER TABLE released ADD COLUMN crc INTEGER;
ALTER TABLE head ADD COLUMN crc INTEGER;
"""
# By session and number the mark that stands there. Not in the rows of records: those go by what is released of sessions,
# and one mark would keep a whole row, or have to be carried from row to row.
_MARKED = """
CREATE TABLE mark(session_id TEXT NOT NULL, number INTEGER NOT NULL, kind INTEGER NOT NULL, epoch INTEGER NOT NULL,
    payload BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (session_id, number)) WITHOUT ROWID;
"""
_BASE = """
CREATE TABLE journal(row INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE head(one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL);
"""
STEPS = (_BASE, _RELEASED, _CHECKED, _MARKED)  # step n makes format n + 1 of format n
CREATE = f"""
PRAGMA page_size = {PAGE_BYTES};
PRAGMA application_id = {APPLICATION_ID};
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
{"".join(STEPS)}
INSERT INTO head VALUES (1, 0, 0, {crc32(b"0 0")});
PRAGMA user_version = {FORMAT};
COMMIT;
"""
WRITE_HEAD = "INSERT OR REPLACE INTO head(one, epoch, releases, crc) VALUES (1, ?1, ?2, ?3)"
WRITE_RELEASED = """
INSERT OR REPLACE INTO released(session_id, seq, gone, crc)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?1)
"""
WRITE_MARK = "INSERT OR REPLACE INTO mark(session_id, number, kind, epoch, payload, crc) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
DELETE_MARK = "DELETE FROM mark WHERE session_id = ?1 AND number = ?2"
READ_MARKS = "SELECT session_id, number, kind, epoch, payload, crc FROM mark ORDER BY session_id, number"


def head_values(epoch: int, releases: int) -> tuple[int, int, int]:
    """For `WRITE_HEAD`."""
    return epoch, releases, crc32(f"{epoch} {releases}".encode())


def released_crc(session_id: str, seq: int, gone: int) -> int:
    """Of one line of `released`."""
    return crc32(f"{session_id} {seq} {gone}".encode("utf-8", "replace"))


def mark_values(record: Record) -> tuple[str, int, int, int, bytes, int]:
    """For `WRITE_MARK`."""
    told = (record.session_id, record.first_seq, int(record.kind), record.epoch)
    return (*told, record.payload, _mark_crc(*told, record.payload))


def mark_record(
    session_id: str, number: int, kind: int, epoch: int, payload: bytes, crc: int
) -> Record | None:
    """The mark of one line of `READ_MARKS`; None where it does not carry its checksum."""
    if not isinstance(payload, bytes) or crc != _mark_crc(session_id, number, kind, epoch, payload):
        return None
    return Record(session_id, number, 0, epoch, payload, RecordKind(kind))


def _mark_crc(session_id: str, number: int, kind: int, epoch: int, payload: bytes) -> int:
    return crc32(payload, crc32(f"{session_id} {number} {kind} {epoch}".encode("utf-8", "replace")))


def released_document(lines: Iterable[tuple[str, int, int]]) -> str:
    """Session ids with seq and gone, for `WRITE_RELEASED`."""
    return json.dumps([(*line, released_crc(*line)) for line in lines])
