"""What every journal must do, whatever it is made of."""

from collections.abc import AsyncIterator, Iterable
from itertools import groupby
from pathlib import Path

import anyio
import pytest

from sojourn.actors.errors import NotOpen, StaleEpoch
from sojourn.actors.ports import Journal, Record, RecordKind
from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from sojourn.runtime.stores.memory import MemoryJournal

pytestmark = pytest.mark.anyio


def events(session_id: str, first_seq: int, count: int = 1, *, epoch: int = 0) -> Record:
    lines = [b'{"seq":%d}\n' % seq for seq in range(first_seq, first_seq + count)]
    return Record(session_id, first_seq, count, epoch, b"".join(lines))


def claim(epoch: int) -> Record:
    return Record("", 0, 0, epoch, b"{}", RecordKind.EPOCH)


def mark(
    session_id: str, number: int, payload: bytes, kind: RecordKind = RecordKind.QUARANTINE, *, epoch: int = 1
) -> Record:
    return Record(session_id, number, 0, epoch, payload, kind)


def joined(records: Iterable[Record]) -> list[tuple[int, int, bytes]]:
    """Where each epoch begins, its events, and their lines, however many records they come in."""
    found: list[tuple[int, int, bytes]] = []
    for epoch, some in groupby(records, lambda record: record.epoch):
        first, *rest = some
        last_seq = first.last_seq
        for record in rest:
            assert record.first_seq == last_seq + 1
            last_seq = record.last_seq
        payload = first.payload + b"".join(record.payload for record in rest)
        found.append((epoch, first.first_seq, payload))
        assert payload.count(b"\n") == last_seq - first.first_seq + 1
    return found


class JournalContract:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    async def test_a_mark_stands_until_another_takes_its_place_or_releases_it(self, journal: Journal) -> None:
        await journal.append([claim(1)])
        assert await journal.marks() == []
        first, other = mark("a", 1, b"x"), mark("b", 1, b"", RecordKind.ATTEMPT)
        await journal.append([events("a", 1, epoch=1), other, first])
        assert await journal.marks() == [first, other]
        instead = mark("a", 1, bytes(range(256)))
        await journal.append([instead, mark("a", 2, b"y")])
        assert await journal.marks() == [instead, mark("a", 2, b"y"), other]
        await journal.append([mark("a", 1, b"", RecordKind.RELEASE), mark("c", 9, b"", RecordKind.RELEASE)])
        assert await journal.marks() == [mark("a", 2, b"y"), other]

    async def test_a_mark_is_no_event_and_stays_when_events_go(self, journal: Journal) -> None:
        await journal.append([claim(1), events("a", 1, 2, epoch=1), mark("a", 0, b"x"), mark("b", 7, b"y")])
        assert dict(journal.heads()) == {"a": 2}
        assert await journal.read("b") == []
        await journal.append([events("a", 3, epoch=1)])
        await journal.release({"a": 3})
        await journal.forget(["a"])
        assert await journal.marks() == [mark("a", 0, b"x"), mark("b", 7, b"y")]

    async def test_a_mark_of_a_lower_epoch_is_fenced_with_its_batch(self, journal: Journal) -> None:
        await journal.append([claim(2)])
        stale = mark("a", 1, b"x")
        with pytest.raises(StaleEpoch):
            await journal.append([stale])
        with pytest.raises(StaleEpoch):
            await journal.append([events("a", 1, epoch=2), stale])
        assert await journal.marks() == []
        assert dict(journal.heads()) == {}

    async def test_a_new_journal_is_empty(self, journal: Journal) -> None:
        assert journal.epoch == 0
        assert dict(journal.heads()) == {}
        assert await journal.read("a") == []
        assert journal.pending_bytes("a", 0) == 0

    async def test_what_was_appended_is_read_by_seq(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 2), events("b", 1), events("a", 3)])
        await journal.append([events("b", 2, 5)])
        assert await journal.read("a") == [events("a", 1, 2), events("a", 3)]
        assert await journal.read("b") == [events("b", 1), events("b", 2, 5)]

    async def test_reading_above_a_seq_gives_whole_records(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 3), events("a", 4, 3), events("a", 7)])
        assert await journal.read("a", 3) == [events("a", 4, 3), events("a", 7)]
        assert await journal.read("a", 5) == [events("a", 4, 3), events("a", 7)]
        assert await journal.read("a", 7) == []

    async def test_a_read_ends_with_the_record_that_reaches_its_bytes(self, journal: Journal) -> None:
        records = [events("a", seq) for seq in range(1, 10)]
        size = len(records[0].payload)
        await journal.append(records)
        assert await journal.read("a", bytes_max=1) == records[:1]
        assert await journal.read("a", 2, bytes_max=2 * size) == records[2:4]
        assert await journal.read("a", 2, bytes_max=2 * size + 1) == records[2:5]
        assert await journal.read("a", bytes_max=1_000_000) == records

    async def test_a_long_session_is_read_whole(self, journal: Journal) -> None:
        records = [events("a", seq) for seq in range(1, 701)]
        for start in range(0, 700, 7):
            await journal.append(records[start : start + 7])
        assert await journal.read("a") == records

    async def test_payloads_come_back_to_the_byte(self, journal: Journal) -> None:
        payloads = [b"", b"\0", bytes(range(256)), b"\xffSJ1" * 100, b"x" * 100_000]
        records = [Record("a", seq, 1, 0, payload) for seq, payload in enumerate(payloads, 1)]
        await journal.append(records)
        assert await journal.read("a") == records

    async def test_heads_show_each_session_at_its_last_seq(self, journal: Journal) -> None:
        heads = journal.heads()
        await journal.append([events("a", 1, 3), events("b", 1)])
        await journal.append([events("a", 4)])
        assert dict(heads) == {"a": 4, "b": 1}
        assert heads.get("c") is None
        assert len(heads) == 2

    async def test_a_session_may_begin_at_any_seq(self, journal: Journal) -> None:
        await journal.append([events("a", 41, 2)])
        assert await journal.read("a", 7) == [events("a", 41, 2)]
        assert journal.heads()["a"] == 42

    async def test_pending_bytes_count_whole_records(self, journal: Journal) -> None:
        records = [events("a", 1, 2), events("a", 3, 2), events("a", 5)]
        sizes = [len(record.payload) for record in records]
        await journal.append(records)
        assert [journal.pending_bytes("a", seq) for seq in (0, 1, 2, 3, 4, 5)] == [
            sum(sizes),
            sum(sizes),
            sum(sizes[1:]),
            sum(sizes[1:]),
            sizes[2],
            0,
        ]

    async def test_a_claim_raises_the_epoch_and_is_no_session(self, journal: Journal) -> None:
        await journal.append([claim(3)])
        assert journal.epoch == 3
        assert dict(journal.heads()) == {}

    async def test_events_of_a_higher_epoch_raise_it_too(self, journal: Journal) -> None:
        await journal.append([events("a", 1, epoch=2), events("b", 1, epoch=5)])
        assert journal.epoch == 5
        assert (await journal.read("a"))[0].epoch == 2

    async def test_a_batch_with_one_stale_epoch_writes_nothing(self, journal: Journal) -> None:
        await journal.append([claim(2)])
        with pytest.raises(StaleEpoch):
            await journal.append([events("a", 1, epoch=2), events("b", 1, epoch=1)])
        assert dict(journal.heads()) == {}
        await journal.append([events("a", 1, epoch=2)])
        assert await journal.read("a") == [events("a", 1, epoch=2)]

    async def test_a_batch_whose_epochs_fall_writes_nothing(self, journal: Journal) -> None:
        with pytest.raises(StaleEpoch):
            await journal.append([events("a", 1, epoch=5), events("b", 1, epoch=4)])
        assert (journal.epoch, dict(journal.heads())) == (0, {})

    @pytest.mark.parametrize(
        "batch",
        [
            [events("b", 1), events("a", 2)],
            [events("b", 1), events("a", 4)],
            [events("b", 1), events("b", 3)],
            [events("b", 1), events("a", 3), events("a", 3)],
            [events("b", 1), Record("c", 1, 0, 0, b"")],
            [events("b", 1), Record("c", 0, 1, 0, b"")],
        ],
    )
    async def test_a_record_that_does_not_follow_is_refused_with_its_batch(
        self, journal: Journal, batch: list[Record]
    ) -> None:
        await journal.append([events("a", 1, 2)])
        with pytest.raises(ValueError, match="follow"):
            await journal.append(batch)
        assert dict(journal.heads()) == {"a": 2}

    async def test_appending_nothing_commits_nothing(self, journal: Journal) -> None:
        await journal.append([])
        assert journal.statistics().commits == 0

    async def test_statistics_count_what_is_held(self, journal: Journal) -> None:
        records = [events("a", 1, 2), events("b", 1), events("a", 3)]
        await journal.append([claim(0)])
        await journal.append(records)
        statistics = journal.statistics()
        assert (statistics.sessions, statistics.records, statistics.events) == (2, 3, 4)
        assert statistics.payload_bytes == sum(len(record.payload) for record in records)
        assert (statistics.commits, statistics.damaged) == (2, 0)
        assert statistics.size_bytes == journal.size_bytes > statistics.payload_bytes
        await journal.release({"a": 2})
        statistics = journal.statistics()
        assert (statistics.sessions, statistics.records, statistics.events) == (2, 2, 2)
        assert statistics.payload_bytes == sum(len(record.payload) for record in records[1:])

    async def test_released_events_are_not_read(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 2), events("b", 1)])
        await journal.append([events("a", 3, 2), events("a", 5)])
        assert journal.released("a") == 0
        await journal.release({"a": 2})
        assert (journal.released("a"), journal.released("b")) == (2, 0)
        assert await journal.read("a") == [events("a", 3, 2), events("a", 5)]
        assert await journal.read("b") == [events("b", 1)]
        assert dict(journal.heads()) == {"a": 5, "b": 1}

    async def test_a_record_that_was_released_in_part_is_read_whole(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 3), events("a", 4, 3)])
        await journal.release({"a": 5})
        assert await journal.read("a") == [events("a", 4, 3)]
        assert journal.pending_bytes("a", 0) == len(events("a", 4, 3).payload)

    async def test_the_epoch_of_a_session_is_that_of_its_last_record(self, journal: Journal) -> None:
        assert journal.epoch_of("a") == 0
        await journal.append([claim(1), events("a", 1, epoch=1), events("b", 1, epoch=1)])
        await journal.append([claim(3)])
        await journal.append([events("a", 2, epoch=3)])
        assert (journal.epoch_of("a"), journal.epoch_of("b")) == (3, 1)
        await journal.release({"b": 1})
        await journal.forget(["b"])
        assert journal.epoch_of("b") == 0

    async def test_released_events_are_not_pending(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 2), events("a", 3)])
        await journal.release({"a": 2})
        assert [journal.pending_bytes("a", seq) for seq in (0, 2, 3)] == [
            len(events("a", 3).payload),
            len(events("a", 3).payload),
            0,
        ]
        await journal.release({"a": 3})
        assert journal.pending_bytes("a", 0) == 0

    async def test_a_session_that_was_released_whole_keeps_its_head(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 3)])
        await journal.append([events("b", 1)])
        await journal.release({"a": 3})
        assert dict(journal.heads()) == {"a": 3, "b": 1}
        assert await journal.read("a") == []
        with pytest.raises(ValueError, match="follow"):
            await journal.append([events("a", 1)])
        await journal.append([events("a", 4, 2)])
        assert await journal.read("a") == [events("a", 4, 2)]
        assert await journal.read("a", 4) == [events("a", 4, 2)]
        assert dict(journal.heads()) == {"a": 5, "b": 1}

    async def test_a_release_beyond_the_head_moves_it(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 3), events("b", 1)])
        await journal.release({"a": 7, "c": 4})
        assert dict(journal.heads()) == {"a": 7, "b": 1, "c": 4}
        for session_id, seq in (("a", 4), ("c", 1)):
            with pytest.raises(ValueError, match="follow"):
                await journal.append([events(session_id, seq)])
        await journal.append([events("a", 8), events("c", 5)])
        assert await journal.read("a") == [events("a", 8)]
        assert await journal.read("c") == [events("c", 5)]

    async def test_a_release_of_what_was_released_does_nothing(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 3)])
        await journal.append([events("a", 4)])
        await journal.release({"a": 3})
        before = journal.size_bytes
        await journal.release({"a": 2, "b": 0})
        await journal.release({})
        assert (journal.released("a"), journal.size_bytes, dict(journal.heads())) == (3, before, {"a": 4})

    async def test_a_row_goes_once_nothing_in_it_is_needed(self, journal: Journal) -> None:
        sizes = []
        for group in ([events("a", 1)], [events("a", 2), events("b", 1)], [events("b", 2)], [events("c", 1)]):
            before = journal.size_bytes
            await journal.append(group)
            sizes.append(journal.size_bytes - before)
        await journal.release({"b": 2})  # row 3, between others
        assert journal.size_bytes == sizes[0] + sizes[1] + sizes[3]
        await journal.release({"a": 1})
        assert journal.size_bytes == sizes[1] + sizes[3]
        await journal.release({"a": 2})
        assert journal.size_bytes == sizes[3]

    async def test_the_newest_row_stays_until_another_follows(self, journal: Journal) -> None:
        await journal.append([events("a", 1)])
        size = journal.size_bytes
        await journal.release({"a": 1})
        assert journal.size_bytes == size > 0
        await journal.append([events("a", 2)])
        await journal.release({})
        assert journal.size_bytes == size

    async def test_a_mark_holds_no_row(self, journal: Journal) -> None:
        await journal.append([claim(3)])
        await journal.append([events("a", 1, epoch=3)])
        older = journal.size_bytes
        await journal.append([claim(4), events("a", 2, epoch=4)])
        newest = journal.size_bytes - older
        await journal.release({"a": 1})
        assert (journal.size_bytes, journal.epoch) == (newest, 4)
        assert await journal.read("a") == [events("a", 2, epoch=4)]
        assert journal.oldest(10**6) == {}

    async def test_the_oldest_rows_say_what_they_need(self, journal: Journal) -> None:
        await journal.append([events("a", 1), events("b", 1, 2)])
        first = journal.size_bytes
        await journal.append([events("a", 2), events("a", 3, 2)])
        second = journal.size_bytes - first
        await journal.append([events("b", 3), events("c", 1)])
        await journal.append([events("a", 5)])
        assert journal.oldest(0) == {}
        assert journal.oldest(1) == journal.oldest(first) == {"a": 1, "b": 2}
        assert journal.oldest(first + 1) == journal.oldest(first + second) == {"a": 4, "b": 2}
        assert journal.oldest(10**6) == {"a": 4, "b": 3, "c": 1}
        await journal.release({"b": 2})
        assert journal.oldest(1) == {"a": 1}

    async def test_releasing_what_the_oldest_rows_need_lets_them_go(self, journal: Journal) -> None:
        for seq in range(1, 9):
            await journal.append([events("a", seq), events(f"b{seq % 3}", (seq + 2) // 3)])
        for quarter in range(3):
            before = journal.size_bytes
            await journal.release(journal.oldest(before // 4))
            assert journal.size_bytes <= before - before // 4, quarter
        await journal.release(journal.oldest(10**6))
        assert journal.oldest(10**6) == {}
        assert journal.size_bytes > 0
        assert await journal.read("a") == [events("a", 8)]

    async def test_a_forgotten_session_is_not_here(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 2), events("b", 1)])
        await journal.append([events("a", 3)])
        await journal.append([events("b", 2)])
        before = journal.size_bytes
        await journal.forget(["a", "nobody"])
        assert dict(journal.heads()) == {"b": 2}
        assert (await journal.read("a"), journal.pending_bytes("a", 0), journal.released("a")) == ([], 0, 0)
        assert await journal.read("b") == [events("b", 1), events("b", 2)]
        assert journal.size_bytes < before
        assert journal.oldest(10**6) == {"b": 1}
        assert journal.statistics().sessions == 1

    async def test_a_released_session_can_be_forgotten(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 2)])
        await journal.release({"a": 2, "b": 5})
        await journal.forget(["a", "b"])
        assert (dict(journal.heads()), journal.released("a")) == ({}, 0)

    async def test_a_forgotten_session_may_begin_anew_at_any_seq(self, journal: Journal) -> None:
        await journal.append([events("a", 1, 9), events("b", 1)])
        await journal.forget(["a"])
        await journal.append([events("a", 4, 2)])
        assert dict(journal.heads()) == {"a": 5, "b": 1}
        assert await journal.read("a") == [events("a", 4, 2)]
        await journal.release({"a": 4})
        assert await journal.read("a") == [events("a", 4, 2)]
        await journal.forget(["a"])
        await journal.append([events("a", 1)])
        assert await journal.read("a") == [events("a", 1)]

    async def test_many_sessions_are_released_at_once(self, journal: Journal) -> None:
        names = [f"s{n}" for n in range(5_000)]
        for seq in (1, 2):
            await journal.append([events(name, seq) for name in names])
        await journal.append([events("last", 1)])
        await journal.release(dict.fromkeys(names, 1))
        assert await journal.read(names[-1]) == [events(names[-1], 2)]
        last, before = journal.statistics().records, journal.size_bytes
        await journal.forget(names)
        assert (last, dict(journal.heads())) == (5_001, {"last": 1})
        assert journal.size_bytes < before / 100

    async def test_a_cancelled_release_is_carried_out(self, journal: Journal) -> None:
        await journal.append([events("a", 1)])
        await journal.append([events("a", 2)])
        before = journal.size_bytes
        with anyio.CancelScope() as scope:
            scope.cancel()
            await journal.release({"a": 2})
        await journal.release({"a": 1})
        assert journal.released("a") in (0, 1, 2)
        assert journal.size_bytes < before

    async def test_many_appends_at_once_are_committed_in_order(self, journal: Journal) -> None:
        async with anyio.create_task_group() as tasks:
            for session_id in map(str, range(50)):
                tasks.start_soon(journal.append, [events(session_id, 1), events(session_id, 2)])
        assert dict(journal.heads()) == {str(n): 2 for n in range(50)}

    async def test_a_cancelled_append_is_whole_or_not_there(self, journal: Journal) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await journal.append([events("a", 1), events("b", 1)])
        await journal.append([])
        assert dict(journal.heads()) in ({}, {"a": 1, "b": 1})

    async def test_a_closed_journal_does_nothing(self, journal: Journal) -> None:
        await journal.append([events("a", 1)])
        await journal.close()
        with pytest.raises(NotOpen):
            await journal.append([events("a", 2)])
        with pytest.raises(NotOpen):
            await journal.read("a")
        with pytest.raises(NotOpen):
            await journal.release({"a": 1})
        with pytest.raises(NotOpen):
            await journal.forget(["a"])

    async def test_several_sessions_are_read_at_once_as_each_is_by_itself(self, journal: Journal) -> None:
        for n in range(1, 41):
            epoch = n // 10
            more = [events("c", 1, 3, epoch=epoch)] if n == 20 else []
            await journal.append([events("b", n, epoch=epoch), *more, events("a", 2 * n - 1, 2, epoch=epoch)])
        await journal.release({"b": 10})
        asked = {"a": 7, "b": 3, "c": 1, "nobody": 0}
        found = {session_id: joined(run) for session_id, run in (await journal.read_several(asked)).items()}
        assert found == {
            session_id: joined(await journal.read(session_id, seq)) for session_id, seq in asked.items()
        }
        assert [len(epochs) for epochs in found.values()] == [5, 4, 1, 0]
        none = await journal.read_several({"a": 80, "c": 3})
        assert [(session_id, len(run)) for session_id, run in none.items()] == [("a", 0), ("c", 0)]
        assert not await journal.read_several({})
        tail = (await journal.read_several({"a": 0}))["a"][-1:]
        assert joined(tail)[0][2].endswith((await journal.read("a", 78))[0].payload)

    async def test_several_sessions_are_read_up_to_the_record_that_holds_the_last_seq_of_each(
        self, journal: Journal
    ) -> None:
        for n in range(1, 41):
            await journal.append([events("b", n), events("a", 2 * n - 1, 2)])
        found = await journal.read_several({"a": 6, "b": 3, "c": 0}, {"a": 11, "b": 100, "c": 5})
        assert {session_id: joined(run) for session_id, run in found.items()} == {
            "a": joined((await journal.read("a", 6))[:3]),
            "b": joined(await journal.read("b", 3)),
            "c": [],
        }

    async def test_closing_again_does_nothing(self, journal: Journal) -> None:
        await journal.close()
        await journal.close()


class TestMemoryJournal(JournalContract):
    @pytest.fixture
    def journal(self) -> Journal:
        return MemoryJournal()


class TestSqliteJournal(JournalContract):
    @pytest.fixture
    async def journal(self, anyio_backend: str, tmp_path: Path) -> AsyncIterator[Journal]:
        journal = await SqliteJournal.open(tmp_path / "journal.db")
        yield journal
        await journal.close()
