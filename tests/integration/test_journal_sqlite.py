"""The journal on SQLite: what only a file can do and suffer."""

import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from sojourn.actors.errors import Damaged, StaleEpoch, StoreUnavailable, UnusableFolder
from sojourn.actors.ports import Record, RecordKind
from sojourn.runtime.stores import journal_sqlite
from sojourn.runtime.stores.frames import scan
from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from tests.support import stores

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


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


async def test_a_journal_opened_again_holds_what_was_appended(path: Path) -> None:
    records = [event("a", 1), event("b", 1), event("a", 2)]
    await filled(path, [Record("", 0, 0, 4, b"", RecordKind.EPOCH)], [event("a", 1, epoch=4)])
    await filled(path, [event("b", 1, epoch=4), event("a", 2, epoch=4)])
    journal = await SqliteJournal.open(path)
    assert (journal.epoch, dict(journal.heads())) == (4, {"a": 2, "b": 1})
    assert [record.first_seq for record in await journal.read("a")] == [1, 2]
    assert journal.statistics().events == len(records)
    await journal.close()


async def test_a_closed_journal_is_one_file(path: Path) -> None:
    await filled(path, [event("a", 1)])
    assert [file.name for file in path.parent.iterdir()] == ["journal.db"]


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
    page = data.index(content * (journal_sqlite.PAGE_BYTES - 4)) - 4
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


async def test_a_journal_of_a_newer_format_is_left_alone(path: Path) -> None:
    await filled(path, [event("a", 1)])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(UnusableFolder, match=r"format 7.*up to format 1.*newer Sojourn"):
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
        with pytest.raises(Damaged, match="move it aside"):
            await SqliteJournal.open(path, read_only=read_only)


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(UnusableFolder, match="nowhere"):
            await SqliteJournal.open(tmp_path / "nowhere" / "journal.db", read_only=read_only)


async def test_an_owner_is_fenced_by_the_epoch_that_another_has_raised(path: Path) -> None:
    old = await SqliteJournal.open(path)
    await old.append([event("a", 1, epoch=1)])
    new = await SqliteJournal.open(path)
    await new.append([Record("", 0, 0, 2, b"", RecordKind.EPOCH)])
    with pytest.raises(StaleEpoch, match="raised it to 2"):
        await old.append([event("a", 2, epoch=1)])
    with pytest.raises(StaleEpoch, match="raised it to 2"):
        await old.append([event("b", 1, epoch=1), event("c", 1, epoch=2)])
    assert dict(old.heads()) == {"a": 1}
    await new.append([event("a", 2, epoch=2)])
    await old.close()
    assert [record.epoch for record in await new.read("a")] == [1, 2]
    await new.close()


async def test_a_reader_beside_the_writer_sees_its_commits_when_it_refreshes(path: Path) -> None:
    writer = await SqliteJournal.open(path)
    await writer.append([event("a", 1)])
    reader = await SqliteJournal.open(path, read_only=True)
    await writer.append([event("a", 2), event("b", 1)])
    assert dict(reader.heads()) == {"a": 1}
    await reader.refresh()
    assert dict(reader.heads()) == {"a": 2, "b": 1}
    assert await reader.read("a") == [event("a", 1), event("a", 2)]
    await reader.close()
    await writer.append([event("a", 3)])
    await writer.close()


async def test_a_reader_cannot_append(path: Path) -> None:
    await filled(path, [event("a", 1)])
    reader = await SqliteJournal.open(path, read_only=True)
    with pytest.raises(UnusableFolder, match="read only"):
        await reader.append([event("a", 2)])
    assert await reader.read("a") == [event("a", 1)]
    await reader.close()


def test_a_reader_finds_what_a_killed_writer_left(tmp_path: Path) -> None:
    stores.run("leave", tmp_path)
    heads, records, rows = stores.run("heads", tmp_path)
    assert heads == {f"s{n}": 2 for n in range(stores.SESSIONS)}
    assert (records, rows) == (2, 0)


def test_a_reader_finds_it_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    stores.run("leave", tmp_path)
    for file in tmp_path.glob("*-shm"):
        file.unlink()
    read_only = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"'
    heads, records, rows = stores.run_mounted(read_only, "heads", tmp_path)
    assert heads == {f"s{n}": 2 for n in range(stores.SESSIONS)}
    assert (records, rows) == (2, 0)
    assert not list(tmp_path.glob("*-shm"))


def test_a_full_disk_refuses_loses_nothing_and_goes_on_by_itself(tmp_path: Path) -> None:
    said = stores.run_mounted('mount -t tmpfs -o size=1m tmpfs "$1"', "full", tmp_path)
    assert said["acknowledged"] > 3
    assert said["found"] == [said["acknowledged"] + 1]
    assert said["read"] == said["acknowledged"] + 1


@contextmanager
def files_may_not_grow_beyond(size: int) -> Iterator[None]:
    """The kernel refuses writes beyond it (EFBIG; Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("settle", ["append", "read"])
async def test_after_a_failed_write_the_journal_finds_out_what_exists(path: Path, settle: str) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([event("a", 1)])
    with files_may_not_grow_beyond(1_000):
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await journal.append([event("a", 2, bytes(20_000))])
    await (journal.append([]) if settle == "append" else journal.read("a"))
    assert dict(journal.heads()) == {"a": 1}
    await journal.append([event("a", 2, b"again")])
    assert await journal.read("a") == [event("a", 1), event("a", 2, b"again")]
    await journal.close()


@pytest.mark.parametrize("there", ["nothing", "an older copy"])
async def test_a_journal_whose_file_went_away_is_never_made_anew(path: Path, there: str) -> None:
    """A volume that was unmounted under us: what is written into its mount point would be lost to everyone."""
    journal = await SqliteJournal.open(path)
    older = path.with_name("older.db")
    await journal.append([event("a", 1)])
    with sqlite3.connect(path) as connection, sqlite3.connect(older) as copy:
        connection.backup(copy)
    connection.close()
    copy.close()
    await journal.append([event("a", 2)])
    with files_may_not_grow_beyond(1_000), pytest.raises(StoreUnavailable):
        await journal.append([event("a", 3, bytes(20_000))])
    away = path.with_name("away")
    away.mkdir()
    for file in path.parent.glob("journal.db*"):
        file.rename(away / file.name)
    if there == "an older copy":
        older.rename(path)
    for _ in range(2):
        with pytest.raises(UnusableFolder if there == "nothing" else Damaged):
            await journal.append([event("a", 3)])
    assert path.exists() == (there == "an older copy")
    path.unlink(missing_ok=True)
    for file in away.iterdir():
        file.rename(path.with_name(file.name))
    await journal.append([event("a", 3)])
    assert [record.first_seq for record in await journal.read("a")] == [1, 2, 3]
    await journal.close()


def test_after_a_failed_sync_the_journal_finds_out_what_exists(tmp_path: Path) -> None:
    inject = ["-P", str(tmp_path / "journal.db-wal"), "-e", "inject=fdatasync:error=EIO:when=5..7"]
    said, _ = stores.traced(inject, "failing_sync", tmp_path)
    assert said["failures"] > 0
    assert said["found"] == list(range(1, 11))


def test_every_append_syncs_the_log(tmp_path: Path) -> None:
    said, calls = stores.traced(["-e", "trace=fdatasync"], "failing_sync", tmp_path)
    assert said["failures"] == 0
    assert len([call for call in calls if "journal.db-wal" in call]) >= 10


async def test_a_cancelled_append_is_carried_out(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await journal.append([event("a", 1)])
    assert scope.cancelled_caught
    assert await journal.read("a") == [event("a", 1)]
    await journal.close()


async def test_a_cancelled_open_leaves_nothing_open(path: Path) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await SqliteJournal.open(path)
    assert scope.cancelled_caught
    assert not path.with_name("journal.db-wal").exists()


async def test_the_log_is_written_back_when_nothing_waits_and_never_grows_beyond_its_limit(
    path: Path,
) -> None:
    journal = await SqliteJournal.open(path)
    size = 1024 * 1024
    for seq in range(1, 41):
        await journal.append([event("a", seq, bytes(size))])
    wal = path.with_name("journal.db-wal").stat().st_size
    assert wal < journal_sqlite.WAL_BYTES_MAX * 1.5
    assert path.stat().st_size > 16 * size
    assert len(await journal.read("a")) == 40
    await journal.close()
