"""The journal on SQLite: what only a file can do and suffer."""

import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import pytest
from attrs import define, field

from sojourn.actors.errors import Damaged, StaleEpoch, StoreUnavailable, UnusableFolder
from sojourn.actors.ports import Record, RecordKind
from sojourn.runtime.stores import journal_database
from sojourn.runtime.stores.journal_reader import Stretch
from sojourn.runtime.stores.journal_schema import WRITE_HEAD, head_values, released_crc
from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from sojourn.runtime.stores.journal_sweep import STEP_SESSIONS
from tests.support import stores

from ..support.journals import event, filled, flip_payload, lines

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def test_a_journal_opened_again_holds_what_was_appended(path: Path) -> None:
    records = [event("a", 1), event("b", 1), event("a", 2)]
    await filled(path, [Record("", 0, 0, 4, b"", RecordKind.EPOCH)], [event("a", 1, epoch=4)])
    await filled(path, [event("b", 1, epoch=4), event("a", 2, epoch=4)])
    journal = await SqliteJournal.open(path)
    assert (journal.epoch, dict(journal.heads())) == (4, {"a": 2, "b": 1})
    assert [record.first_seq for record in await journal.read("a")] == [1, 2]
    assert journal.statistics().events == len(records)
    await journal.close()


async def test_a_closed_journal_is_one_file_and_its_mark(path: Path) -> None:
    await filled(path, [event("a", 1)])
    assert sorted(file.name for file in path.parent.iterdir()) == ["journal.db", "journal.db-mark"]


async def test_what_was_released_and_forgotten_is_known_after_opening_again(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([Record("a", 1, 3, 0, b"1"), Record("b", 1, 3, 0, b"2"), event("c", 1)])
    await journal.append([Record("a", 4, 3, 0, b"3"), event("d", 1), event("stays", 1)])
    await journal.append([event("c", 2)])
    await journal.release({"a": 5, "b": 9, "d": 1})
    await journal.forget(["c"])
    size = journal.size_bytes
    await journal.close()
    for _ in range(2):
        journal = await SqliteJournal.open(path)
        assert dict(journal.heads()) == {"a": 6, "b": 9, "d": 1, "stays": 1}
        assert [journal.released(name) for name in "abcd"] == [5, 9, 0, 1]
        assert await journal.read("a") == [Record("a", 4, 3, 0, b"3")]
        assert await journal.read("c") == []
        assert journal.size_bytes == size
        assert journal.oldest(1) == {"a": 6, "stays": 1}
        with pytest.raises(ValueError, match="follow"):
            await journal.append([event("b", 4)])
        await journal.close()


async def test_a_session_that_began_anew_is_not_mistaken_for_the_forgotten_one(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([Record("a", 1, 9, 0, b"old"), event("holds the row", 1)])
    await journal.forget(["a"])
    await journal.append([Record("a", 1, 3, 0, b"new"), Record("a", 4, 1, 0, b"newer")])
    await journal.release({"a": 3})
    await journal.append([event("b", 1)])
    await journal.close()
    for _ in range(2):
        journal = await SqliteJournal.open(path)
        assert (journal.heads()["a"], journal.released("a")) == (4, 3)
        assert await journal.read("a") == [Record("a", 4, 1, 0, b"newer")]
        await journal.close()


async def test_nothing_is_kept_of_a_forgotten_session_once_no_row_may_hold_it(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([event("a", 1), event("b", 1)])
    await journal.append([event("b", 2)])
    await journal.forget(["a"])
    await journal.append([event("c", 1)])
    assert lines(path) == ["a"]
    await journal.release({"b": 2})
    assert lines(path) == ["b"]
    await journal.forget(["b"])
    await journal.append([event("c", 2)])
    await journal.release({"c": 1})
    assert lines(path) == ["c"]
    await journal.close()


async def test_rows_that_a_crash_left_although_nothing_needs_them_go_when_it_is_opened(path: Path) -> None:
    await filled(path, [event("a", 1)], [event("a", 2), event("b", 1)], [event("b", 2)])
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO released VALUES ('a', 2, 0, ?)", (released_crc("a", 2, 0),))
    connection.execute(WRITE_HEAD, head_values(0, 1))
    connection.commit()
    reader = await SqliteJournal.open(path, read_only=True)
    assert (dict(reader.heads()), await reader.read("a")) == ({"a": 2, "b": 2}, [])
    assert connection.execute("SELECT row FROM journal").fetchall() == [(1,), (2,), (3,)]
    await reader.close()
    journal = await SqliteJournal.open(path)
    assert connection.execute("SELECT row FROM journal").fetchall() == [(2,), (3,)]
    assert await journal.read("b") == [event("b", 1), event("b", 2)]
    await journal.close()
    connection.close()


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


async def test_an_owner_that_was_fenced_releases_nothing(path: Path) -> None:
    old = await SqliteJournal.open(path)
    await old.append([event("a", 1, epoch=1)])
    await old.append([event("a", 2, epoch=1)])
    new = await SqliteJournal.open(path)
    await new.append([Record("", 0, 0, 2, b"", RecordKind.EPOCH)])
    for work in (old.release({"a": 1}), old.forget(["a"])):
        with pytest.raises(StaleEpoch, match="newer owner"):
            await work
    assert (old.released("a"), lines(path)) == (0, [])
    assert await new.read("a") == [event("a", 1, epoch=1), event("a", 2, epoch=1)]
    await new.release({"a": 1})
    await old.close()
    await new.close()


async def test_a_reader_follows_what_is_released_and_forgotten(path: Path) -> None:
    writer = await SqliteJournal.open(path)
    await writer.append([event("a", 1), event("b", 1), event("c", 1), event("d", 1)])
    await writer.append([event("a", 2), event("b", 2)])
    reader = await SqliteJournal.open(path, read_only=True)
    await writer.release({"a": 2, "b": 1, "e": 7})
    await writer.forget(["c", "d"])
    await writer.append([Record("d", 1, 2, 0, b"anew"), event("a", 3)])
    await reader.refresh()
    for _ in range(2):
        assert dict(reader.heads()) == dict(writer.heads()) == {"a": 3, "b": 2, "d": 2, "e": 7}
        for name in "abcde":
            assert await reader.read(name) == await writer.read(name)
            assert reader.released(name) == writer.released(name)
        await reader.close()
        reader = await SqliteJournal.open(path, read_only=True)
    # Everything goes, and with it the line that says so.
    await writer.forget(["b", "d"])
    await writer.append([event("b", 1), event("a", 4)])
    await writer.append([event("a", 5)])
    await writer.release({"a": 4})
    assert lines(path) == ["a", "e"]
    await reader.refresh()
    assert dict(reader.heads()) == dict(writer.heads()) == {"a": 5, "b": 1, "e": 7}
    assert await reader.read("b") == [event("b", 1)]
    await reader.close()
    await writer.close()


async def test_rows_that_go_while_a_reader_reads_are_no_damage(path: Path) -> None:
    writer = await SqliteJournal.open(path)
    for seq in range(1, 5):
        await writer.append([event("a", seq), event("b", seq)])
    reader = await SqliteJournal.open(path, read_only=True)
    await writer.release({"a": 3, "b": 2})
    await writer.forget(["b"])
    assert await reader.read("a") == [event("a", 4)]
    assert await reader.read("b") == []
    assert dict(reader.heads()) == {"a": 4}
    await writer.release({"a": 4})
    await writer.append([event("a", 5)])
    assert await reader.read("a", 3) == [event("a", 4)]  # the row still stood there when it was last looked
    await writer.release({})
    assert await reader.read("a", 3) == [event("a", 5)]
    await reader.close()
    await writer.close()


async def test_a_read_during_which_events_are_released_has_no_gap(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    for seq in range(1, 41):
        await journal.append([event("a", seq, bytes(300_000))])
    found: list[Record] = []

    async def read() -> None:
        found.extend(await journal.read("a"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(journal.release, {"a": 30})
    seqs = [record.first_seq for record in found]
    assert seqs == list(range(seqs[0], 41))
    assert seqs[0] in (1, 31)
    await journal.close()


async def test_a_commit_does_not_wait_for_a_read(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([event("a", 1)])
    held = threading.Event()
    found: list[Record] = []

    async def read() -> None:
        found.extend(await journal.read("a"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal._reads.run, held.wait)
        tasks.start_soon(read)
        await anyio.lowlevel.checkpoint()
        await journal.append([event("a", 2)])
        await journal.append([event("a", 3)])
        assert not found
        held.set()
    assert [record.first_seq for record in found] == [1, 2, 3]  # as of when it was read
    await journal.close()


async def test_sessions_that_wait_to_be_read_are_read_together_and_each_is_told_its_own(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    long = [event("long", seq) for seq in range(1, 201)]
    small = [event(name, 1) for name in ("a", "b", "c", "d")]
    await journal.append(small)
    await journal.append(long)
    flip_payload(path, 1, 1)  # of b
    held = threading.Event()
    found: dict[str, object] = {}

    async def read(name: str) -> None:
        try:
            found[name] = await journal.read(name)
        except Damaged as error:
            found[name] = str(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal._reads.run, held.wait)
        await anyio.wait_all_tasks_blocked()
        for name in ("a", "b", "long", "c", "nobody", "d"):
            tasks.start_soon(read, name)
            await anyio.wait_all_tasks_blocked()
        held.set()
    # What is long has a statement of its own.
    together = journal._database.reader.read_together([(name, 0, None) for name in ("a", "c", "long", "d")])
    assert together == [Stretch(small[:1], False), Stretch(small[2:3], False)]
    await journal.close()
    assert str(found.pop("b")).startswith("session b: events 1 to 1")
    assert found == {"a": small[:1], "c": small[2:3], "d": small[3:], "long": long, "nobody": []}


async def test_of_several_sessions_that_are_read_at_once_a_damaged_one_ends_before_its_damage(
    path: Path,
) -> None:
    journal = await SqliteJournal.open(path)
    for seq in range(1, 9):  # of half a MiB each: some are read, then some more
        await journal.append([event(name, seq, bytes(160_000)) for name in ("a", "b", "c")])
    flip_payload(path, 5, 1)  # of b
    with closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM journal WHERE row = 7")
        other.commit()
    found = await journal.read_several({"a": 1, "b": 0, "c": 6})
    assert {name: [record.first_seq for record in records] for name, records in found.items()} == {
        "a": [2, 3, 4, 5, 6],
        "b": [1, 2, 3, 4],
        "c": [],
    }
    with pytest.raises(Damaged, match="session b: events 5 to 5"):
        await journal.read("b", 4)
    await journal.close()


async def test_records_of_several_sessions_come_joined_but_not_to_very_long_ones(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    line = b"x" * 999 + b"\n"
    for seq in range(1, 201):
        await journal.append([event("a", seq, line), event("b", seq, b"{}\n")])
    await journal.append([event("a", 201, line * 100), event("a", 202, line)])
    found = await journal.read_several({"a": 0, "b": 150})
    assert found["b"] == [Record("b", 151, 50, 0, b"{}\n" * 50)]
    assert [(record.first_seq, record.count) for record in found["a"]] == [
        (1, 65), (66, 65), (131, 65), (196, 5), (201, 1), (202, 1)
    ]  # fmt: skip
    assert b"".join(record.payload for record in found["a"]) == line * 301
    await journal.close()


@define(eq=False)
class Counted:
    """Rests that take no time: how much the journal held at each, and which share was said to be done."""

    journal: SqliteJournal
    at_once: int = 1
    sizes: list[int] = field(factory=list)
    shares: list[float] = field(factory=list)

    async def __call__(self, share: float = 0.0) -> None:
        self.sizes.append(self.journal.size_bytes)
        self.shares.append(share)


async def test_what_takes_steps_rests_between_them_less_often_in_a_hurry(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    sessions = [f"s{n}" for n in range(2 * STEP_SESSIONS + 1)]
    for seq in range(1, 7):
        await journal.append(
            [event(session_id, seq, bytes(300_000 // len(sessions))) for session_id in sessions]
        )
    full = journal.size_bytes
    rests: list[int] = []
    for at_once in (1, 8):
        rest = Counted(journal, at_once)
        found = await journal.read_several(dict.fromkeys(sessions, 0), None, rest)
        assert [records[-1].last_seq for records in found.values()] == [6] * len(sessions)
        assert rest.shares == sorted(rest.shares)
        assert rest.shares[-1] == 1
        rests.append(len(rest.sizes))
    # Three steps to look for the sessions; 1.8 MB are read by half a MiB, and three steps each take what is in it.
    assert rests == [3 + 3 * 3, 1 + 3]
    rest = Counted(journal)
    await journal.release(dict.fromkeys(sessions, 6), rest)
    # Some rows were gone, and not yet all.
    assert [size for size in rest.sizes if journal.size_bytes < size < full]
    await journal.close()


async def test_what_a_disk_that_does_not_answer_would_give_of_several_sessions_is_left_out(
    path: Path,
) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([event("a", 1), event("b", 1)])
    with closing(sqlite3.connect(path)) as other:
        other.execute("ALTER TABLE journal RENAME TO elsewhere")
    found = await journal.read_several({"a": 0, "b": 0})
    assert [len(run) for run in found.values()] == [0, 0]
    with closing(sqlite3.connect(path)) as other:
        other.execute("ALTER TABLE elsewhere RENAME TO journal")
    assert len(await journal.read("a")) == 1
    await journal.close()


async def test_reads_that_never_pause_do_not_keep_the_log_from_beginning_anew(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([event("a", seq, bytes(1_000)) for seq in range(1, 1_001)])
    stopped = False
    reads = 0

    async def read() -> None:
        nonlocal reads
        while not stopped:
            assert len(await journal.read("a")) == 1_000
            reads += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(read)
        for seq in range(1, 81):
            await journal.append([event("b", seq, bytes(1024 * 1024))])
        stopped = True
    assert reads > 4
    assert path.with_name("journal.db-wal").stat().st_size < journal_database.WAL_BYTES_MAX * 1.5
    await journal.close()


async def test_reads_beside_releases_and_commits_are_runs_without_a_gap(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([event("a", seq) for seq in range(1, 501)])
    stopped = False

    async def read() -> None:
        while not stopped:
            begun = journal.released("a")
            head = journal.heads()["a"]
            seqs = [record.first_seq for record in await journal.read("a")]
            assert seqs == list(range(seqs[0], seqs[-1] + 1))
            assert seqs[0] > begun
            assert seqs[-1] >= head

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(read)
        for seq in range(501, 1_501):
            await journal.append([event("a", seq, bytes(1_000))])
            if not seq % 10:
                await journal.release({"a": seq - 300})
        stopped = True
    await journal.close()


async def test_after_a_failed_release_the_journal_finds_out_what_was_released(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    await journal.append([event("a", 1), event("b", 1)])
    await journal.append([event("a", 2)])
    with files_may_not_grow_beyond(1_000):
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await journal.release({"a": 1})
    assert await journal.read("a") == [event("a", 1), event("a", 2)]
    await journal.release({"a": 1, "b": 1})
    assert await journal.read("a") == [event("a", 2)]
    assert lines(path) == ["a", "b"]
    await journal.append([event("a", 3)])
    await journal.close()


def test_a_full_disk_refuses_a_release_and_loses_nothing(tmp_path: Path) -> None:
    said = stores.run_mounted('mount -t tmpfs -o size=1m tmpfs "$1"', "full_release", tmp_path)
    assert said["refused"]
    assert said["found"] == said["acknowledged"]
    assert said["left"] == 1


async def test_a_journal_of_constant_size_stays_so_on_disk(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    sizes = []
    for cycle in range(50):
        for seq in range(10 * cycle + 1, 10 * cycle + 11):
            await journal.append([event("a", seq, bytes(60_000)), event("b", seq, bytes(100))])
        await journal.release(journal.oldest(journal.size_bytes - 1_200_000))
        assert journal.size_bytes < 1_900_000
        sizes.append(path.stat().st_size + path.with_name("journal.db-wal").stat().st_size)
    assert max(sizes[25:]) <= max(sizes[:25])
    assert [record.first_seq for record in await journal.read("a")][-10:] == list(range(491, 501))
    await journal.close()
    assert path.stat().st_size < 6_000_000


async def test_a_long_release_lets_commits_through(path: Path) -> None:
    journal = await SqliteJournal.open(path)
    for seq in range(1, 13):
        await journal.append([event("a", seq, bytes(1_000_000))])
    seen: list[int] = []

    async def release() -> None:
        await journal.release({"a": 11})
        seen.append(-1)

    async def append() -> None:
        for seq in range(13, 16):
            await journal.append([event("a", seq)])
            seen.append(seq)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(release)
        tasks.start_soon(append)
    assert seen == [13, 14, 15, -1]
    await journal.close()


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
    for work in (reader.append([event("a", 2)]), reader.release({"a": 1}), reader.forget(["a"])):
        with pytest.raises(UnusableFolder, match="read only"):
            await work
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
    await journal.release({"a": 2})  # the newest row tells all the same
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
    assert (await journal.read("a"), journal.released("a")) == ([event("a", 3)], 2)
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
    assert wal < journal_database.WAL_BYTES_MAX * 1.5
    assert path.stat().st_size > 16 * size
    assert len(await journal.read("a")) == 40
    await journal.close()
