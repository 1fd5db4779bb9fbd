"""The bounded journal: events leave it for segments while sessions go on, and everything reads as before."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, evolve

from sojourn.actors.compaction import BEGIN_SHARE, bytes_to_free
from sojourn.actors.errors import Missing, SetAside, StorageFull, StoreError
from sojourn.actors.ports import CatalogQuery, Record, Resting
from sojourn.actors.session.actor import Done
from sojourn.actors.session.codec import encode_events, encode_snapshot
from sojourn.actors.session.commands import AppendLog, Command, Create, Event
from sojourn.actors.session.core import fold
from sojourn.actors.session.model import Limits
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.event_log import EventLog
from sojourn.runtime.layout import session_folder, snapshot_name
from sojourn.runtime.opening import Stores, SystemClock
from sojourn.runtime.recovery import Recovery
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.segments import encode_segment, parse_name, segment_name
from sojourn.runtime.settings import Settings
from sojourn.runtime.shelves import Shelves
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryObjects

from ..support.faulty import FaultyJournal
from ..support.tiers import SESSION, memory_stores, overtaken
from ..support.wait import await_until

pytestmark = pytest.mark.anyio

BOUND = 256 * 1024


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data", journal_bytes_max=BOUND, snapshot_interval_s=3600.0, mirror="none"
    )


async def new_session(runtime: Runtime) -> str:
    record, _ = await runtime.create(read_create({"plan": "p", "title": "t"}))
    session_id: str = record["session_id"]
    await runtime.ask(session_id, read_command({"type": "session.start"}))
    return session_id


def log_line(n: int, characters: int = 1_000) -> Command:
    text = f"{n} ".ljust(characters, "x")
    return Command("log.append", AppendLog(stream="stdout", text=text), None, "", "rep", n)


async def seqs(runtime: Runtime, session_id: str) -> list[int]:
    return [line.seq async for line in runtime.events(session_id)]


async def fill(runtime: Runtime, session_id: str, first: int, last: int) -> None:
    for n in range(first, last + 1):
        await runtime.ask(session_id, log_line(n))


def segments_of(settings: Settings, session_id: str) -> list[tuple[int, int]]:
    found = [
        parse_name(path.as_posix())
        for path in sorted((settings.data_dir / session_folder(session_id)).glob("events-*"))
    ]
    return [(segment.first_seq, segment.last_seq) for segment in found if segment is not None]


async def test_the_journal_stays_within_its_bound_and_the_history_whole(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        idle = await new_session(runtime)
        largest = 0
        for start in range(1, 1_200, 50):
            await fill(runtime, session_id, start, start + 49)
            largest = max(largest, runtime.statistics().compaction.journal_bytes)
        before = await runtime.state(session_id)
        assert largest <= BOUND + 100_000  # what was under way when the bound was met
        assert runtime.statistics().compaction.segments_written > 0
        assert await seqs(runtime, session_id) == list(range(1, 1_203))
        assert await seqs(runtime, idle) == [1, 2]
    async with Runtime.open(settings) as runtime:
        assert await runtime.state(session_id) == before
        assert await seqs(runtime, session_id) == list(range(1, 1_203))
        assert await seqs(runtime, idle) == [1, 2]
        assert await runtime.ask(session_id, log_line(1_200)) == Done(1_202, True)
        assert await runtime.ask(session_id, log_line(1_201)) == Done(1_203)


async def test_an_idle_session_gives_its_rows_up_without_coming_back_to_memory(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        idle = await new_session(runtime)
        assert runtime._kernel.passivate(idle)
        busy = await new_session(runtime)
        await fill(runtime, busy, 1, 400)
        await await_until(lambda: runtime._journal.released(idle) == 2)
        assert idle not in runtime._kernel.cells
        assert segments_of(settings, idle) == [(1, 2)]
        assert await runtime.ask(idle, log_line(1)) == Done(3)


async def test_many_sessions_that_rest_are_left_in_the_journal_while_a_busy_one_frees_as_much(
    settings: Settings,
) -> None:
    async with Runtime.open(evolve(settings, journal_bytes_max=8 * BOUND)) as runtime:
        resting = [await new_session(runtime) for _ in range(300)]
        busy = await new_session(runtime)
        await fill(runtime, busy, 1, 1_200)
        await await_until(lambda: runtime._journal.freed_bytes > BOUND)
        assert segments_of(settings, busy)
        assert not any(segments_of(settings, session_id) for session_id in resting)
        assert runtime.statistics().compaction.journal_bytes < 8 * BOUND * BEGIN_SHARE
        assert await runtime.ask(resting[0], log_line(1)) == Done(3)
        assert await seqs(runtime, busy) == list(range(1, 1_203))
    async with Runtime.open(settings) as runtime:
        assert await seqs(runtime, resting[-1]) == [1, 2]


async def test_small_segments_are_taken_into_the_next_one_and_seldom_written_anew(settings: Settings) -> None:
    moves = 200
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        for n in range(1, moves + 1):
            await runtime.ask(session_id, log_line(n, 10))
            async with runtime._shelves.alone(session_id):
                snapshots = await runtime._snapshotter.level(session_id, n + 2)
                upto = await runtime._compactor.move(session_id, snapshots)
            await runtime._journal.release({session_id: upto})
            lengths = [last - first + 1 for first, last in segments_of(settings, session_id)]
            assert sum(lengths) == n + 2
            assert all(length > 2 * following for length, following in pairwise(lengths))
        assert runtime.statistics().compaction.events_moved <= (moves + 2) * log2(moves + 2)
        assert await seqs(runtime, session_id) == list(range(1, moves + 3))


async def test_a_segment_that_was_written_wrong_once_does_not_stop_compaction(settings: Settings) -> None:
    """A store may take an object and give something else back: then it is written again, under another name by then."""
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        n = released = 0
        # Until compaction rests where it has written more than it has released.
        while not (
            0 < released < segments_of(settings, session_id)[-1][1]
            and bytes_to_free(runtime._journal.size_bytes, BOUND) == 0
        ):
            n += 10
            assert n < 4_000
            await fill(runtime, session_id, n - 9, n)
            released = runtime._journal.released(session_id)
    async with Runtime.open(settings) as runtime:
        assert runtime._journal.released(session_id) == released
        folder = settings.data_dir / session_folder(session_id)
        (folder / f"events-{1:012d}-{released:012d}.ndjson.zst").touch()
        await fill(runtime, session_id, n + 1, n + 400)
        await await_until(lambda: runtime._journal.released(session_id) > released)
        assert await seqs(runtime, session_id) == list(range(1, n + 403))


async def test_a_damaged_newest_snapshot_costs_nothing_after_compaction(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        folder = settings.data_dir / session_folder(session_id)
        await fill(runtime, session_id, 1, 700)
        await await_until(lambda: bytes_to_free(runtime._journal.size_bytes, BOUND) == 0)
        await await_until(lambda: len(list(folder.glob("snapshot-*"))) == 2)
        before = await runtime.state(session_id)
    snapshots = sorted(folder.glob("snapshot-*"))
    assert len(snapshots) == 2
    for snapshot in reversed(snapshots):  # the newest, then both
        snapshot.write_bytes(snapshot.read_bytes()[:-100])
        async with Runtime.open(settings) as runtime:
            assert await runtime.state(session_id) == before


async def test_a_session_that_was_set_aside_goes_on_once_what_it_lost_is_put_back(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        n = 0
        # Until there are two segments, and the journal has let go of both.
        while (
            len(ends := segments_of(settings, session_id)) < 2
            or runtime._journal.released(session_id) < ends[1][1]
        ):
            n += 10
            assert n < 4_000
            await fill(runtime, session_id, n - 9, n)
        record = await runtime.record(session_id)
    folder = settings.data_dir / session_folder(session_id)
    some = [*sorted(folder.glob("events-*"))[1:], *folder.glob("snapshot-*")]
    lost = {path: path.read_bytes() for path in some}
    for path in (*lost, *settings.data_dir.glob("catalog.db*")):
        path.unlink()  # the row is made anew, from what there is
    async with Runtime.open(settings) as runtime:
        (listed,) = await runtime.page(CatalogQuery(limit=1))
        assert listed["damaged"] is not None
        with pytest.raises(SetAside):
            await runtime.ask(session_id, log_line(n + 1))
        for path, data in lost.items():
            path.write_bytes(data)
        with pytest.raises(SetAside):  # it is not looked for again before a person says so, or it left memory
            await runtime.ask(session_id, log_line(n + 1))
        assert await runtime.accept_loss(session_id) == Done(record["seq"], True)
        (listed,) = await runtime.page(CatalogQuery(limit=1))
        assert not runtime._is_set_aside(session_id)
        again = await runtime.record(session_id)
        assert (again["seq"], again["damaged"], again["losses"]) == (record["seq"], None, [])
        assert (listed["seq"], listed["damaged"], listed["logs"]) == (record["seq"], None, record["logs"])
        assert await runtime.ask(session_id, log_line(n + 1)) == Done(record["seq"] + 1)


async def test_a_lost_segment_sets_the_session_aside_until_the_loss_is_accepted(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        other = await new_session(runtime)
        await fill(runtime, session_id, 1, 700)
        before = await runtime.state(session_id)
    folder = settings.data_dir / session_folder(session_id)
    for lost in folder.glob("events-*"):
        lost.unlink()
    async with Runtime.open(settings) as runtime:
        last_lost = runtime._journal.released(session_id)
        with pytest.raises(SetAside, match="accept-loss") as caught:
            await runtime.ask(session_id, log_line(701))
        assert (caught.value.first_seq, caught.value.last_seq) == (1, last_lost)
        assert await runtime.state(session_id) == before
        record = await runtime.record(session_id)
        assert record["damaged"] == {"first_seq": 1, "last_seq": last_lost}
        await runtime.ask(other, log_line(1))
        done = await runtime.accept_loss(session_id)
        assert done == Done(before[0] + 1)
        assert await runtime.accept_loss(session_id) == Done(done.seq, True)
        assert await runtime.ask(session_id, log_line(701)) == Done(done.seq + 1)
        assert (await runtime.record(session_id))["damaged"] is None
    async with Runtime.open(settings) as runtime:
        assert await seqs(runtime, session_id) == list(range(last_lost + 1, done.seq + 2))
        record = await runtime.record(session_id)
        assert [(loss["first_seq"], loss["last_seq"]) for loss in record["losses"]] == [(1, last_lost)]
        assert await runtime.ask(session_id, log_line(702)) == Done(done.seq + 2)


async def test_what_stands_on_both_sides_of_a_hole_goes_into_a_segment_each(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        await fill(runtime, session_id, 1, 6)
        read = runtime._history.read

        class Holed:
            async def read(self, session_id: str, after: int = 0, *, bytes_max: int | None = None) -> Any:
                if after in (3, 4):
                    raise Missing(session_id, after + 1, 5)
                found = await read(session_id, after, bytes_max=1)
                return [record for record in found if record.first_seq not in (4, 5)]

        # As if two records between had been damaged on the disk.
        runtime._compactor._history = Holed()  # type: ignore[assignment]
        async with runtime._shelves.alone(session_id):
            assert await runtime._compactor.write_segments(session_id, over_holes=True) == 8
        assert segments_of(settings, session_id) == [(1, 3), (6, 8)]


async def test_a_journal_that_lost_its_end_sets_the_session_aside(settings: Settings) -> None:
    settings = evolve(settings, snapshot_journal_bytes_min=1)
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
    older = {path: path.read_bytes() for path in settings.data_dir.glob("journal.db*")}
    async with Runtime.open(settings) as runtime:
        await fill(runtime, session_id, 1, 3)
        await runtime._snapshotter.write_due()
        before = await runtime.state(session_id)
    for path, data in older.items():
        path.write_bytes(data)
    async with Runtime.open(settings) as runtime:
        with pytest.raises(SetAside) as caught:
            await runtime.ask(session_id, log_line(4))
        assert (caught.value.first_seq, caught.value.last_seq) == (3, 5)
        assert await runtime.state(session_id) == before  # the snapshot holds it; the history does not
        assert await runtime.accept_loss(session_id) == Done(6)
        assert await runtime.ask(session_id, log_line(4)) == Done(7)
    async with Runtime.open(settings) as runtime:
        assert await seqs(runtime, session_id) == [1, 2, 6, 7]


async def test_a_journal_that_cannot_be_emptied_refuses_what_would_exceed_its_bound(
    settings: Settings,
) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await new_session(runtime)
        (settings.data_dir / "sessions").write_text("no folder")
        refused: list[Any] = []
        n = 0
        while not refused and n < 2_000:
            n += 1
            try:
                await runtime.ask(session_id, log_line(n))
            except StorageFull as error:
                refused.append(error)
        assert "journal_bytes_max" in str(refused[0])
        assert await seqs(runtime, session_id) == list(range(1, n + 2))
        (settings.data_dir / "sessions").unlink()
        with anyio.fail_after(30):
            while True:
                try:
                    assert await runtime.ask(session_id, log_line(n)) == Done(n + 2)
                    break
                except StorageFull:
                    await anyio.sleep(0.05)


async def test_a_commit_larger_than_the_bound_does_not_refuse_all_that_follow(settings: Settings) -> None:
    """Its row is the newest and stays; only a newer one makes it go."""
    async with Runtime.open(evolve(settings, journal_bytes_max=20_000)) as runtime:
        session_id = await new_session(runtime)
        await runtime.ask_batch(session_id, [log_line(n) for n in range(1, 41)])
        for n in range(41, 44):
            assert await runtime.ask(session_id, log_line(n)) == Done(n + 2)
        await await_until(lambda: runtime.statistics().journal.size_bytes <= 20_000)
        assert await seqs(runtime, session_id) == list(range(1, 46))


@define(eq=False)
class UnreleasingJournal(FaultyJournal):
    """Its releases wait for `release_hold`, and fail with `release_fault` while that is set."""

    release_hold: anyio.Event | None = None
    release_fault: StoreError | None = None
    releases: int = 0

    async def release(self, upto: Mapping[str, int], rest: Resting | None = None) -> None:
        self.releases += 1
        if self.release_hold is not None:
            await self.release_hold.wait()
        if self.release_fault is not None:
            raise self.release_fault
        await self.inner.release(upto, rest)


def stores_over(journal: UnreleasingJournal) -> Stores:
    return Stores(journal=journal, catalog=MemoryCatalog(), objects=MemoryObjects(), archive=MemoryObjects())


async def test_a_session_is_not_handed_over_between_its_compaction_and_its_release(
    settings: Settings,
) -> None:
    """Or it would be in the journal's care again, and be looked for where it is no more."""
    journal = UnreleasingJournal(release_hold=anyio.Event())
    async with Runtime.over(settings, stores_over(journal), SystemClock()) as runtime:
        ended = await new_session(runtime)
        await runtime.ask(ended, read_command({"type": "session.complete", "outcome": "passed"}))
        busy = await new_session(runtime)
        await fill(runtime, busy, 1, 150)
        await await_until(lambda: journal.releases)
        assert ended in runtime._shelves._writing
        await runtime.ask(ended, read_command({"type": "session.seal"}))
        journal.release_hold.set()  # type: ignore[union-attr]
        await await_until(lambda: runtime.statistics().tiering.handed_over == 1)
        await await_until(lambda: not runtime._shelves._writing)
        assert ended not in journal.heads()
        assert (await runtime.record(ended))["tier"] == "recent"
        assert await seqs(runtime, ended) == [1, 2, 3, 4]


async def test_a_commit_that_waits_for_room_while_a_release_is_under_way_is_not_refused(
    settings: Settings,
) -> None:
    """Whether or not a session was moved meanwhile: what is released makes room, too."""
    journal = UnreleasingJournal(release_hold=anyio.Event())
    async with Runtime.over(settings, stores_over(journal), SystemClock()) as runtime:
        session_id = await new_session(runtime)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fill, runtime, session_id, 1, 400)
            await await_until(lambda: journal.releases and runtime._compactor.is_waited_for)
            journal.release_hold.set()  # type: ignore[union-attr]
        assert await seqs(runtime, session_id) == list(range(1, 403))
        assert not runtime._compactor.is_waited_for


async def test_a_release_that_the_journal_refuses_is_no_crash_and_is_tried_again(settings: Settings) -> None:
    journal = UnreleasingJournal(release_fault=StorageFull())
    async with Runtime.over(settings, stores_over(journal), SystemClock()) as runtime:
        session_id = await new_session(runtime)
        await fill(runtime, session_id, 1, 150)
        await await_until(lambda: journal.releases >= 2)
        assert [child.restarts for child in runtime.statistics().children if child.restarts] == []
        journal.release_fault = None
        await await_until(lambda: journal.size_bytes < BOUND // 2)
        assert await seqs(runtime, session_id) == list(range(1, 153))


async def test_a_merge_that_overtakes_a_reader_at_any_of_its_calls_changes_nothing_for_it() -> None:
    """What it has listed goes away, and is read from the segment that took its place."""
    records = [Record(SESSION, n, 1, 1, b'{"seq":%d}\n' % n) for n in range(1, 6)]
    name = partial(segment_name, session_folder(SESSION))
    at = 0
    while True:
        at += 1
        stores = memory_stores()
        await stores.journal.append(records)
        await stores.objects.put(name(1, 2), encode_segment(SESSION, records[:2]))
        await stores.journal.release({SESSION: 2})

        async def merge(stores: Stores = stores) -> None:
            await stores.objects.put(name(1, 4), encode_segment(SESSION, records[:4]))
            await stores.objects.delete(name(1, 2))
            await stores.journal.release({SESSION: 4})

        seen, count = overtaken(stores, at, merge)
        shelves = Shelves(
            journal=seen.journal, catalog=seen.catalog, recent=seen.objects, archive=seen.archive
        )
        event_log, found = EventLog(seen.journal, shelves), list[int]()
        while some := await event_log.read(SESSION, len(found)):
            found += range(len(found) + 1, some[-1].last_seq + 1)
        assert found == [1, 2, 3, 4, 5], f"overtaken at call {at}"
        if next(count) <= at:
            return


async def test_snapshots_that_overtake_a_reader_at_any_of_its_calls_change_nothing_for_it() -> None:
    """What it has listed goes away, and a newer one is read."""
    now = datetime(2026, 11, 22, tzinfo=UTC)
    events = [Event(now, None, Create(plan="p"), 1, "session.created")]
    events += [
        Event(now, None, AppendLog(stream="stdout", text=str(n)), n, "log.appended") for n in range(2, 7)
    ]
    records = [Record(SESSION, event.seq, 1, 1, encode_events([event])) for event in events]

    def snapshot(seq: int) -> bytes:
        return encode_snapshot(fold(SESSION, events[:seq], limits=Limits()), 1)

    at = 0
    while True:
        at += 1
        stores = memory_stores()
        await stores.journal.append(records)
        await stores.objects.put(snapshot_name(SESSION, 2), snapshot(2))

        async def write_newer(stores: Stores = stores) -> None:
            for seq in (4, 6):
                await stores.objects.put(snapshot_name(SESSION, seq), snapshot(seq))
            await stores.objects.delete(snapshot_name(SESSION, 2))

        seen, count = overtaken(stores, at, write_newer)
        shelves = Shelves(
            journal=seen.journal, catalog=seen.catalog, recent=seen.objects, archive=seen.archive
        )
        recovery = Recovery(
            journal=seen.journal,
            event_log=EventLog(seen.journal, shelves),
            shelves=shelves,
            limits=Limits(),
            known_heads={},
        )
        recovered = await recovery.recover(SESSION)
        assert (recovered.state.seq, recovered.missing) == (6, None), f"overtaken at call {at}"
        if next(count) <= at:
            return
