"""Journals whose bytes, pages, marks or format are not what they should be."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sojourn.actors.errors import Damaged, UnusableFolder
from sojourn.actors.ports import Record, RecordKind
from sojourn.runtime.stores.journal_schema import PAGE_BYTES
from sojourn.runtime.stores.journal_sqlite import SqliteJournal

from ..support.journals import change_row, event, filled, flip_payload

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def test_a_damaged_record_costs_its_session_from_there_and_no_other(path: Path) -> None:
    await filled(path, [event("a", 1), event("b", 1)], [event("a", 2), event("b", 2)], [event("a", 3)])
    flip_payload(path, 2, 0)
    journal = await SqliteJournal.open(path)
    assert dict(journal.heads()) == {"a": 3, "b": 2}
    assert journal.statistics().damaged == 1
    with pytest.raises(Damaged, match="session a: events 2 to 2"):
        await journal.read("a")
    assert await journal.read("a", bytes_max=1) == [event("a", 1)]
    assert await journal.read("a", 2) == [event("a", 3)]
    assert await journal.read("b") == [event("b", 1), event("b", 2)]
    await journal.append([event("a", 4)])
    await journal.close()


async def test_damage_that_comes_while_the_journal_is_open_shows_when_it_is_read(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([event("a", 1), event("b", 1)])
    flip_payload(path, 1, 1)
    with pytest.raises(Damaged, match="session b: events 1 to 1"):
        await journal.read("b")
    assert await journal.read("a") == [event("a", 1)]
    await journal.close()


async def test_a_row_without_directories_costs_what_is_in_it(path: Path) -> None:
    await filled(path, [event("a", 1), event("b", 1)], [event("a", 2), event("c", 1)], [event("a", 3)])
    change_row(path, 2, lambda data: data.__setitem__(slice(None), bytes(len(data))))
    journal = await SqliteJournal.open(path)
    assert journal.statistics().damaged == 1
    with pytest.raises(Damaged, match="session a: events 2 to 2"):
        await journal.read("a")
    assert await journal.read("b") == [event("b", 1)]
    assert dict(journal.heads()) == {"a": 3, "b": 1}
    await journal.close()


def damage_page(path: Path, content: bytes) -> None:
    """Breaks the chain of pages of a row at one that is full of `content`: a page begins with the number of the next."""
    data = bytearray(path.read_bytes())
    page = data.index(content * (PAGE_BYTES - 4)) - 4
    data[page : page + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)


async def test_a_damaged_page_costs_its_row(path: Path) -> None:
    records = {name: event(name, 1, name.encode() * 100_000) for name in "abc"}
    await filled(path, *([record] for record in records.values()))
    damage_page(path, b"b")
    journal = await SqliteJournal.open(path)
    assert sorted(journal.heads()) == ["a", "c"]
    assert journal.statistics().damaged == 1
    assert await journal.read("c") == [records["c"]]
    await journal.close()


async def test_a_page_damaged_while_the_journal_is_open_names_the_events_it_held(path: Path) -> None:
    # Larger than SQLite's cache, so that the page is read again.
    records = [event("a", seq, fill * 3_000_000) for seq, fill in enumerate((b"x", b"y", b"z"), 1)]
    await filled(path, *([record] for record in records))
    journal = await SqliteJournal.open(path, read_only=True)
    damage_page(path, b"y")
    with pytest.raises(Damaged, match="session a: events 2 to 2"):
        await journal.read("a")
    assert await journal.read("a", 2) == records[2:]
    await journal.close()


def to_format_1(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(
        "DROP TABLE mark; DROP TABLE released; ALTER TABLE head DROP COLUMN releases; ALTER TABLE head DROP COLUMN crc; "
        "PRAGMA user_version = 1"
    )
    connection.close()


async def test_a_journal_of_format_1_is_read_as_it_is_and_brought_to_this_one_by_its_owner(
    path: Path,
) -> None:
    await filled(path, [event("a", 1, epoch=2)], [event("a", 2, epoch=2)])
    to_format_1(path)
    before = path.read_bytes()
    reader = await SqliteJournal.open(path, read_only=True)
    assert (reader.epoch, dict(reader.heads()), reader.released("a")) == (2, {"a": 2}, 0)
    assert path.read_bytes() == before
    journal = await SqliteJournal.open(path)
    assert (journal.epoch, dict(journal.heads())) == (2, {"a": 2})
    await journal.release({"a": 1})
    await journal.append([event("a", 3, epoch=2)])
    await reader.refresh()
    assert await reader.read("a") == await journal.read("a") == [event("a", seq, epoch=2) for seq in (2, 3)]
    await reader.close()
    await journal.close()


async def test_a_journal_of_format_3_has_no_marks_until_its_owner_has_brought_it_to_this_one(
    path: Path,
) -> None:
    await filled(path, [event("a", 1, epoch=2)])
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE mark; PRAGMA user_version = 3")
    reader = await SqliteJournal.open(path, read_only=True)
    assert await reader.marks() == []
    journal = await SqliteJournal.open(path)
    mark = Record("a", 1, 0, 2, b"x", RecordKind.QUARANTINE)
    await journal.append([mark])
    assert await reader.marks() == await journal.marks() == [mark]
    await reader.close()
    await journal.close()


async def test_a_mark_that_does_not_carry_its_checksum_is_left_out_and_costs_no_other(path: Path) -> None:
    marks = [Record("a", number, 0, 1, b"payload", RecordKind.QUARANTINE) for number in (1, 2)]
    await filled(path, [event("a", 1, epoch=1), *marks])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE mark SET payload = CAST('paxload' AS BLOB) WHERE number = 1")
    journal = await SqliteJournal.open(path)
    assert journal.flaws == ("1 marks do not carry their checksum",)
    assert await journal.marks() == marks[1:]
    assert await journal.read("a") == [event("a", 1, epoch=1)]
    await journal.close()


async def test_a_journal_of_a_newer_format_is_left_alone(path: Path) -> None:
    await filled(path, [event("a", 1)])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(UnusableFolder, match=r"format 7.*up to format 4.*newer Sojourn"):
            await SqliteJournal.open(path, read_only=read_only)
    assert path.read_bytes() == before


async def test_a_database_of_someone_else_is_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    with pytest.raises(UnusableFolder, match="no Sojourn journal"):
        await SqliteJournal.open(path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


async def test_a_file_that_is_no_database_is_damaged(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    for read_only in (False, True):
        with pytest.raises(Damaged, match="move both aside"):
            await SqliteJournal.open(path, read_only=read_only)


async def test_a_schema_whose_names_are_no_text_is_damaged(path: Path) -> None:
    await filled(path, [event("a", 1)])
    data = path.read_bytes().replace(b"tablejournaljournal", b"tablejour\xe9aljournal")
    path.write_bytes(data.replace(b"CREATE TABLE journal(", b"CREATE!TABLE journal("))
    for read_only in (False, True):
        with pytest.raises(Damaged, match="move both aside"):
            await SqliteJournal.open(path, read_only=read_only)


async def test_a_schema_of_a_format_that_does_not_exist_is_damaged(path: Path) -> None:
    await filled(path, [event("a", 1)])
    data = bytearray(path.read_bytes())
    data[47] = 0x40  # https://sqlite.org/fileformat2.html#schema_format_number
    path.write_bytes(data)
    for read_only in (False, True):
        with pytest.raises(Damaged, match="move both aside"):
            await SqliteJournal.open(path, read_only=read_only)


async def test_damage_does_not_keep_a_row(path: Path) -> None:
    groups = [[event("a", seq), event("b", seq)] for seq in range(1, 6)]
    await filled(path, *groups)
    flip_payload(path, 1, 0)
    change_row(path, 2, lambda data: data.__setitem__(slice(None), bytes(len(data))))
    journal = await SqliteJournal.open(path)
    size = journal.size_bytes // 5
    assert journal.oldest(1) == {"a": 1, "b": 1}
    assert journal.oldest(2 * size) == {"a": 3, "b": 3}
    await journal.release({"b": 3})
    assert journal.size_bytes == 5 * size
    await journal.release({"a": 3})
    assert journal.size_bytes == 2 * size
    assert await journal.read("a") == [event("a", 4), event("a", 5)]
    await journal.close()


async def test_a_row_whose_pages_are_damaged_while_it_is_open_stays_and_holds_up_no_other(path: Path) -> None:
    # Larger than SQLite's cache, so that the pages are read again.
    size = 3_000_000
    await filled(path, *([event(name, 1, name.encode() * size)] for name in "abcd"))
    journal = await SqliteJournal.open(path)
    damage_page(path, b"b")
    await journal.release({"a": 1, "b": 1, "c": 1})
    assert dict(journal.heads()) == dict.fromkeys("abcd", 1)
    assert await journal.read("d") == [event("d", 1, b"d" * size)]
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT row FROM journal").fetchall() == [(2,), (4,)]
    connection.close()
    await journal.close()
