"""The runtime over its stores: durability, recovery, snapshots, lists, live readers, refusing stores, passivation."""

import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from sojourn.actors.errors import (
    Damaged,
    DeadlineExceeded,
    DurabilityUnavailable,
    FolderInUse,
    IdempotencyMismatch,
    IllegalInStatus,
    InvalidCommand,
    NoSuchSession,
    NotOpen,
    SetAside,
    StaleEpoch,
    StorageFull,
    StoreError,
    StoreUnavailable,
    UnusableFolder,
)
from sojourn.actors.ports import CatalogQuery, CatalogRow, Objects, Record, RecordKind
from sojourn.actors.session.actor import Done
from sojourn.actors.session.commands import AppendLog, Command
from sojourn.actors.session.model import Ack
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime import recovery
from sojourn.runtime.layout import session_folder
from sojourn.runtime.opening import Stores, SystemClock
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryObjects

from ..support.faulty import FaultyJournal, TestClock
from ..support.wait import await_until

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", mirror="none")


async def new_session(runtime: Runtime, **fields: Any) -> str:
    record, _ = await runtime.create(read_create({"plan": "p", "title": "t", **fields}))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, read_command({"type": "session.start"}))
    return session_id


def log_line(n: int, text: str = "x") -> Command:
    return Command("log.append", AppendLog(stream="stdout", text=text), None, "", "rep", n)


async def test_what_was_acknowledged_is_there_after_a_restart(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        for n in range(1, 6):
            await runtime.ask(session_id, log_line(n))
        before = await runtime.state(session_id)
        events = [line async for line in runtime.events(session_id)]
    async with Runtime.open(settings) as runtime:
        assert await runtime.state(session_id) == before
        assert [line async for line in runtime.events(session_id)] == events
        assert await runtime.ask(session_id, log_line(5)) == Done(before[0], True)
        assert await runtime.ask(session_id, log_line(6)) == Done(before[0] + 1)


async def test_the_epoch_rises_with_every_owner(settings: Settings) -> None:
    epochs = []
    for _ in range(3):
        async with Runtime.open(settings) as runtime:
            epochs.append(runtime.epoch)
    assert epochs == [1, 2, 3]


async def test_a_second_owner_is_refused_and_the_first_goes_on(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        with pytest.raises(FolderInUse, match="in use by pid"):
            await Runtime.open(settings).__aenter__()
        assert await new_session(runtime)


async def test_a_session_is_recovered_from_its_snapshot_and_the_journal_above_it(settings: Settings) -> None:
    settings = evolve(settings, snapshot_journal_bytes_min=1)
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        for n in range(1, 4):
            await runtime.ask(session_id, log_line(n))
            await runtime._snapshotter.write_due()
        await runtime.ask(session_id, log_line(4))
        before = await runtime.state(session_id)
    folder = settings.data_dir / session_folder(session_id)
    snapshots = sorted(path.name for path in folder.iterdir())
    assert snapshots == ["snapshot-000000000004.json", "snapshot-000000000005.json"]
    assert json.loads((folder / snapshots[-1]).read_bytes())["seq"] == 5
    async with Runtime.open(settings) as runtime:
        assert await runtime.state(session_id) == before
    (folder / snapshots[-1]).write_bytes(b"{")  # the older one is used
    async with Runtime.open(settings) as runtime:
        assert await runtime.state(session_id) == before


async def test_a_short_session_of_this_process_comes_back_without_a_look_for_snapshots(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    listed = recovery.snapshot_names

    async def look(objects: Objects, session_id: str) -> list[str]:
        looked.append(session_id)
        return await listed(objects, session_id)

    monkeypatch.setattr(recovery, "snapshot_names", look)
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        await runtime.ask(session_id, log_line(1))
        before = await runtime.state(session_id)
        await runtime._drop(session_id)
        assert await runtime.state(session_id) == before
        assert looked == []
        await runtime.ask(session_id, log_line(2, "x" * settings.snapshot_journal_bytes_min))
        await runtime._drop(session_id)
        assert (await runtime.state(session_id))[0] == 4
        assert looked == [session_id]  # it may have one by now
    async with Runtime.open(settings) as runtime:
        await runtime.state(session_id)
        assert (
            looked == [session_id] * 2
        )  # what another process has left is compared with what it has snapshotted


async def test_a_journal_that_ends_below_a_snapshot_is_told_and_costs_no_other_session(
    settings: Settings,
) -> None:
    settings = evolve(settings, snapshot_journal_bytes_min=1)
    async with Runtime.open(settings) as runtime:
        behind = await new_session(runtime)
    older = {path: path.read_bytes() for path in settings.data_dir.glob("journal.db*")}
    async with Runtime.open(settings) as runtime:
        await runtime.ask(behind, log_line(1))
        await runtime._snapshotter.write_due()
    for path, data in older.items():
        path.write_bytes(data)
    async with Runtime.open(settings) as runtime:
        with pytest.raises(SetAside, match="put the damaged files back"):
            await runtime.ask(behind, log_line(2))
        assert (await runtime.state(behind))[0] == 3
        other = await new_session(runtime)
        assert [row["session_id"] for row in await runtime.page(CatalogQuery())] == [other, behind]
        assert set(runtime.readiness().values()) == {"ok"}


async def test_a_snapshot_is_written_only_for_a_tail_worth_a_file(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        await runtime.ask(session_id, log_line(1))
        await runtime._snapshotter.write_due()
        assert runtime.statistics().snapshots_written == 0
        await runtime.ask(session_id, log_line(2, "x" * 65_000))
        await runtime.ask(session_id, log_line(3, "x" * 65_000))
        await runtime._snapshotter.write_due()
        assert runtime.statistics().snapshots_written == 1


async def test_creating_with_the_same_command_id_finds_the_same_session(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        first, was_there = await runtime.create(read_create({"title": "t"}, "key"))
        again, is_there = await runtime.create(read_create({"title": "t"}, "key"))
        assert (was_there, is_there) == (False, True)
        assert first["session_id"] == again["session_id"]
        with pytest.raises(IdempotencyMismatch):
            await runtime.create(read_create({"title": "other"}, "key"))


async def test_each_line_of_a_batch_is_judged_by_itself(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(InvalidCommand) as invalid:
            read_command({"type": "nope"})
        unreadable = invalid.value
        answers = await runtime.ask_batch(
            session_id, [log_line(1), unreadable, read_command({"type": "session.start"}), log_line(2)]
        )
        assert answers[0] == Done(3)
        assert answers[1] is unreadable
        assert isinstance(answers[2], IllegalInStatus)
        assert answers[3] == Done(4)
        assert runtime.statistics().commit.records == 3  # created, started, and the batch as one


async def test_a_session_that_is_not_there_is_named_and_none_comes_to_be(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        for call in (runtime.record, runtime.state, runtime.heartbeat):
            with pytest.raises(NoSuchSession, match="sess_no"):
                await call("sess_no")
        with pytest.raises(NoSuchSession):
            await runtime.ask("sess_no", log_line(1))
        with pytest.raises(NoSuchSession):
            [line async for line in runtime.events("sess_no")]
        assert runtime.statistics().kernel.actors == 1  # the tiering supervisor


async def test_a_list_shows_what_was_durable_before_it_newest_first(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        ids = [await new_session(runtime, plan=f"p{n % 2}") for n in range(5)]
        assert [row["session_id"] for row in await runtime.page(CatalogQuery())] == ids[::-1]
        assert [row["status"] for row in await runtime.page(CatalogQuery(plan="p1"))] == [
            "running",
            "running",
        ]
        first = await runtime.page(CatalogQuery(limit=2))
        last = first[-1]
        rest = await runtime.page(CatalogQuery(before=(last["created_at"], last["session_id"])))
        assert [row["session_id"] for row in first + rest] == ids[::-1]


async def test_a_list_is_whole_and_current_although_the_catalog_cannot_be_written() -> None:
    class FullCatalog(MemoryCatalog):
        full = False

        async def put(self, rows: Sequence[CatalogRow]) -> None:
            if self.full:
                raise StorageFull
            await super().put(rows)

    catalog = FullCatalog()
    stores = Stores(
        journal=FaultyJournal(), catalog=catalog, objects=MemoryObjects(), archive=MemoryObjects()
    )
    async with Runtime.over(
        Settings(data_dir=Path("nowhere"), mirror="none"), stores, SystemClock()
    ) as runtime:
        ids = [await new_session(runtime) for _ in range(3)]
        await runtime.page(CatalogQuery())
        catalog.full = True
        ids.append(await new_session(runtime))
        await runtime.ask(ids[1], read_command({"type": "session.complete", "outcome": "passed"}))
        rows = await runtime.page(CatalogQuery(limit=3))
        assert [row["session_id"] for row in rows] == [ids[3], ids[2], ids[1]]
        assert [row["status"] for row in rows] == ["running", "running", "completed"]
        assert [
            row["session_id"] for row in await runtime.page(CatalogQuery(status=frozenset({"completed"})))
        ] == [ids[1]]
        catalog.full = False


async def test_the_catalog_is_caught_up_after_it_was_lost(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        before = await runtime.page(CatalogQuery())
    for path in settings.data_dir.glob("catalog.db*"):
        path.unlink()
    async with Runtime.open(settings) as runtime:
        (row,) = await runtime.page(CatalogQuery())
        assert row["session_id"] == session_id
        assert {**row, "epoch": 0, "duration_s": 0, "last_sign_at": 0, "metadata": 0} == {
            **before[0], "epoch": 0, "duration_s": 0, "last_sign_at": 0, "metadata": 0,
        }  # fmt: skip
        assert runtime.statistics().kernel.actors == 1  # read without bringing it into memory


async def test_a_live_reader_sees_history_and_news_once_and_in_order(settings: Settings) -> None:
    """I6. From any seq on, however reading and writing interleave."""
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        seen: dict[int, list[int]] = {}

        async def watch(after: int) -> None:
            async with runtime.stream(session_id, after=after) as lines:
                async for line in lines:
                    seen.setdefault(after, []).append(line.seq)
                    if line.seq == 202:
                        return

        async with anyio.create_task_group() as tasks:
            for after in (0, 1, 2, 50, 150):
                tasks.start_soon(watch, after)
            for n in range(1, 201):
                await runtime.ask(session_id, log_line(n, "x" * 20_000))
        assert seen == {after: list(range(after + 1, 203)) for after in (0, 1, 2, 50, 150)}
        assert runtime.statistics().live.subscribers == 0


async def test_a_reader_does_not_spin_while_an_event_is_durable_and_not_yet_published() -> None:
    journal = FaultyJournal()
    async with over(journal) as runtime:
        session_id = await new_session(runtime)
        async with runtime.stream(session_id, after=2) as lines:
            await runtime.ask(session_id, log_line(1))
            assert (await anext(lines)).seq == 3  # so the tail is not empty
            journal.hold_after = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runtime.ask, session_id, log_line(2))
                await await_until(lambda: journal.heads()[session_id] == 4)
                with anyio.fail_after(10):
                    assert (await anext(lines)).seq == 4
                journal.hold_after.set()
            journal.hold_after = None
            await runtime.ask(session_id, log_line(3))
            assert (await anext(lines)).seq == 5


async def test_closing_while_an_outcome_cannot_be_read_ends_and_tells_whoever_waits() -> None:
    journal = FaultyJournal()
    errors: list[Exception] = []

    async def ask(runtime: Runtime, session_id: str) -> None:
        try:
            await runtime.ask(session_id, log_line(1))
        except StoreUnavailable as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(10):
            async with over(journal) as runtime:
                session_id = await new_session(runtime)
                journal.fault_after, journal.unreadable = StoreUnavailable("lost the disk"), True
                tasks.start_soon(ask, runtime, session_id)
                await await_until(lambda: runtime.readiness()["journal"] != "ok")
    assert len(errors) == 1


@pytest.mark.parametrize("fault", [UnusableFolder("gone"), Damaged(), NotOpen()])
async def test_a_journal_that_cannot_be_opened_again_refuses_and_crashes_nothing(fault: StoreError) -> None:
    journal = FaultyJournal()
    async with over(journal) as runtime:
        session_id = await new_session(runtime)
        journal.fault = fault
        with pytest.raises(type(fault)):
            await runtime.ask(session_id, log_line(1))
        journal.fault = None
        await await_until(lambda: runtime.readiness()["journal"] == "ok")
        assert await runtime.ask(session_id, log_line(1)) == Done(3)
        assert not any(child.restarts for child in runtime.statistics().children)


async def test_a_short_deadline_is_kept_although_nothing_else_happens() -> None:
    journal = FaultyJournal()
    async with over(journal) as runtime:
        session_id = await new_session(runtime)
        journal.hold = anyio.Event()
        await runtime.ask(session_id, log_line(1), ack=Ack.APPLIED)
        with anyio.fail_after(10), pytest.raises(DeadlineExceeded):
            await runtime.ask(session_id, log_line(2), deadline_s=0.05)
        journal.hold.set()


async def test_what_is_created_under_an_id_made_just_now_is_looked_for_nowhere() -> None:
    looked_for: list[str] = []

    class Watched(MemoryCatalog):
        async def get(self, session_id: str) -> CatalogRow | None:
            looked_for.append(session_id)
            return await super().get(session_id)

    stores = Stores(
        journal=FaultyJournal(), catalog=Watched(), objects=MemoryObjects(), archive=MemoryObjects()
    )
    settings = Settings(data_dir=Path("nowhere"), mirror="none")
    async with Runtime.over(settings, stores, SystemClock()) as runtime:
        assert await new_session(runtime) not in looked_for
        assert await new_session(runtime, command_id="c-1") in looked_for


async def test_a_session_created_with_an_early_answer_is_answered() -> None:
    async with over(FaultyJournal()) as runtime:
        record, _ = await runtime.create(read_create({"title": "t"}), ack=Ack.APPLIED)
        assert record["status"] == "created"


async def test_a_reader_that_does_not_read_costs_no_memory_and_misses_nothing(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        async with runtime.stream(session_id, after=0) as lines:
            for n in range(1, 101):
                await runtime.ask(session_id, log_line(n, "x" * 60_000))
            assert runtime.statistics().live.tail_bytes < 2_000_000
            seen = []
            async for line in lines:
                seen.append(line.seq)
                if line.seq == 102:
                    break
        assert seen == list(range(1, 103))


def over(journal: FaultyJournal, clock: Any = None, **change: Any) -> AbstractAsyncContextManager[Runtime]:
    stores = Stores(
        journal=journal, catalog=MemoryCatalog(), objects=MemoryObjects(), archive=MemoryObjects()
    )
    settings = Settings(data_dir=Path("nowhere"), **change, mirror="none")
    return Runtime.over(settings, stores, clock or SystemClock())


async def test_nothing_leaves_before_its_commit(settings: Settings) -> None:
    """I7. Neither the answer nor a live reader is ahead of the journal; `applied` alone answers early."""
    journal = FaultyJournal()
    async with over(journal) as runtime:
        session_id = await new_session(runtime)
        journal.hold = anyio.Event()
        answers: list[Done] = []
        seen: list[int] = []

        async def ask() -> None:
            answers.append(await runtime.ask(session_id, log_line(1)))

        async def watch() -> None:
            async with runtime.stream(session_id, after=2) as lines:
                async for line in lines:
                    seen.append(line.seq)
                    return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            tasks.start_soon(ask)
            await await_until(lambda: runtime.statistics().kernel.awaiting_commit == 1)
            with anyio.move_on_after(0.05):
                await runtime.state(session_id)
                raise AssertionError("a read saw a state that is not durable")
            assert (answers, seen) == ([], [])
            journal.hold.set()
        assert answers == [Done(3)]
        assert seen == [3]


async def test_applied_is_answered_before_the_commit() -> None:
    journal = FaultyJournal()
    async with over(journal) as runtime:
        session_id = await new_session(runtime)
        journal.hold = anyio.Event()
        await runtime.ask(session_id, log_line(1), ack=Ack.APPLIED)
        assert runtime.statistics().kernel.awaiting_commit == 1
        journal.hold.set()


async def test_mirrored_is_refused_where_there_is_no_mirror() -> None:
    async with over(FaultyJournal()) as runtime:
        session_id = await new_session(runtime)
        with pytest.raises(DurabilityUnavailable, match="nothing was done"):
            await runtime.ask(session_id, log_line(1), ack=Ack.MIRRORED)
        assert (await runtime.state(session_id))[0] == 2


async def test_a_full_disk_refuses_changes_while_reads_go_on_and_recovers_by_itself() -> None:
    journal = FaultyJournal()
    async with over(journal) as runtime:
        session_id = await new_session(runtime)
        journal.fault = StorageFull()
        with pytest.raises(StorageFull):
            await runtime.ask(session_id, log_line(1))
        with pytest.raises(StorageFull):  # refused at admission now
            await runtime.ask(session_id, log_line(1))
        assert (await runtime.state(session_id))[0] == 2
        assert runtime.readiness()["journal"] != "ok"
        journal.fault = None
        await await_until(lambda: runtime.readiness()["journal"] == "ok")
        assert await runtime.ask(session_id, log_line(1)) == Done(3)
        assert runtime.statistics().kernel.crashes == 0


@pytest.mark.parametrize("written", [True, False])
async def test_a_commit_of_unknown_outcome_is_read_again_before_anyone_is_answered(written: bool) -> None:
    journal = FaultyJournal()
    async with over(journal) as runtime:
        session_id = await new_session(runtime)
        fault = StoreUnavailable("lost the disk")
        journal.fault, journal.fault_after = (None, fault) if written else (fault, None)
        if written:
            assert await runtime.ask(session_id, log_line(1)) == Done(3)
        else:
            with pytest.raises(StoreUnavailable):
                await runtime.ask(session_id, log_line(1))
            journal.fault = None
            await await_until(lambda: runtime.readiness()["journal"] == "ok")
            assert await runtime.ask(session_id, log_line(1)) == Done(3)


async def test_while_the_outcome_cannot_be_read_asks_end_unknown_and_nothing_is_claimed() -> None:
    journal = FaultyJournal()
    async with over(journal) as runtime:
        session_id = await new_session(runtime)
        journal.fault_after, journal.unreadable = StoreUnavailable("lost the disk"), True
        with pytest.raises(DeadlineExceeded):
            await runtime.ask(session_id, log_line(1), deadline_s=0.05)
        journal.unreadable = False
        await await_until(lambda: runtime.readiness()["journal"] == "ok")
        assert await runtime.ask(session_id, log_line(1)) == Done(3, True)


async def test_a_fenced_process_stops_and_has_written_nothing() -> None:
    """I3. Another owner raised the epoch: the late write is refused and the whole runtime ends."""
    journal = FaultyJournal()
    answers = []
    with pytest.raises(StaleEpoch):  # noqa: PT012 - it comes out of the runtime's context
        async with over(journal) as runtime:
            session_id = await new_session(runtime)
            await journal.inner.append([Record("", 0, 0, runtime.epoch + 1, b"", RecordKind.EPOCH)])
            answers.append(await runtime.ask(session_id, log_line(1)))
    assert journal.heads()[session_id] == 2
    assert answers == []


async def test_outside_its_context_a_runtime_refuses(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
    with pytest.raises(NotOpen):
        await runtime.ask(session_id, log_line(1))
    with pytest.raises(NotOpen):
        await runtime.page(CatalogQuery())


async def test_the_hosts_own_error_comes_out_as_it_was_raised(settings: Settings) -> None:
    with pytest.raises(KeyError, match="host"):
        async with Runtime.open(settings):
            raise KeyError("host")


async def test_an_idle_session_leaves_memory_and_comes_back_with_the_next_message() -> None:
    async with over(FaultyJournal(), passivate_after_s=0.02) as runtime:
        session_id = await new_session(runtime)
        await await_until(lambda: runtime.statistics().kernel.actors == 1)  # the tiering supervisor
        assert await runtime.ask(session_id, log_line(1)) == Done(3)


async def test_a_silent_session_is_lost_after_two_heartbeats_and_found_again() -> None:
    clock = TestClock()
    async with over(FaultyJournal(), clock) as runtime:
        session_id = await new_session(runtime)
        assert runtime.idle_for_s() == 0
        clock.pass_time(29)
        assert not (await runtime.record(session_id))["lost"]
        clock.pass_time(2)
        record = await runtime.record(session_id)
        assert (record["lost"], record["status"]) == (True, "running")
        assert runtime.idle_for_s() == 31
        await runtime.heartbeat(session_id)
        assert not (await runtime.record(session_id))["lost"]
        await runtime.ask(session_id, read_command({"type": "session.complete", "outcome": "passed"}))
        clock.pass_time(100)
        record = await runtime.record(session_id)
        assert (record["lost"], record["status"], record["duration_s"]) == (False, "completed", 31.0)
        assert runtime.idle_for_s() == 100


async def test_reading_the_history_page_by_page_gives_all_of_it(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        for first in range(1, 201, 40):
            await runtime.ask_batch(session_id, [log_line(n, "x" * 20_000) for n in range(first, first + 40)])
        assert [line.seq async for line in runtime.events(session_id, after=10)] == list(range(11, 203))
