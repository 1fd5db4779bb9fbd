"""Journals in SQLite: what is appended to them, and what is done to their files."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from sojourn.actors.ports import Record
from sojourn.runtime.stores.frames import scan
from sojourn.runtime.stores.journal_sqlite import SqliteJournal


def event(session_id: str, seq: int, payload: bytes = b"{}\n", *, epoch: int = 0) -> Record:
    return Record(session_id, seq, 1, epoch, payload)


async def filled(path: Path, *groups: list[Record]) -> None:
    journal = await SqliteJournal.open(path)
    for group in groups:
        await journal.append(group)
    await journal.close()


def change_row(path: Path, number: int, change: Callable[[bytearray], None]) -> None:
    """Changes the bytes of a row as a failing disk would, without a trace elsewhere."""
    connection = sqlite3.connect(path)
    (data,) = connection.execute("SELECT data FROM journal WHERE row = ?", (number,)).fetchone()
    changed = bytearray(data)
    change(changed)
    connection.execute("UPDATE journal SET data = ? WHERE row = ?", (bytes(changed), number))
    connection.commit()
    connection.close()


def flip_payload(path: Path, number: int, at: int) -> None:
    """Flips a bit in the payload of the record that is `at` in the row."""

    def change(data: bytearray) -> None:
        row = scan(bytes(data))
        assert row is not None
        data[row.offsets[at]] ^= 0x10

    change_row(path, number, change)


def lines(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    found = [session_id for (session_id,) in connection.execute("SELECT session_id FROM released")]
    connection.close()
    return found
