"""The moves between the tiers: what they keep, and what a kill or a fault at any of their calls leaves."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from attrs import evolve

from sojourn.actors.errors import (
    Damaged,
    NoSuchSession,
    ObjectMissing,
    SetAside,
    StorageFull,
    StoreUnavailable,
)
from sojourn.actors.ports import CatalogQuery, Record
from sojourn.actors.session.codec import encode_event
from sojourn.actors.session.commands import Event, HistoryLost
from sojourn.actors.session.record import decode_record
from sojourn.actors.tiering.core import Work
from sojourn.runtime.layout import facts_name, manifest_name, session_folder, snapshot_name
from sojourn.runtime.manifest import decode_manifest
from sojourn.runtime.opening import Stores
from sojourn.runtime.segments import parse_name

from ..support.tiers import (
    SESSION,
    START,
    Killed,
    Mover,
    Plan,
    clone,
    compact,
    contents,
    fallible,
    memory_stores,
    overtaken,
    record_session,
)

pytestmark = pytest.mark.anyio
LATER = timedelta(days=31)


async def recorded(*ends: int, snapshot_at: int = 0) -> Stores:
    """Stores with one ended session, compacted up to some seqs."""
    stores = memory_stores()
    await record_session(stores)
    await compact(stores, *ends, snapshot_at=snapshot_at)
    return stores


async def tier_of(stores: Stores) -> str:
    row = await stores.catalog.get(SESSION)
    assert row is not None
    return row.tier


def names(stores: Stores, shelf: str = "objects") -> list[str]:
    store: Any = getattr(stores, shelf)
    return [name.removeprefix(session_folder(SESSION) + "/") for name in sorted(store._objects)]


async def test_a_session_is_the_same_to_the_byte_in_every_tier() -> None:
    stores = await recorded(10, 14, snapshot_at=12)
    mover = Mover(stores)
    await mover.seal(SESSION)
    state, events = await mover.state(), await mover.events()
    assert events.count(b"\n") == 34
    await mover.tiering.hand_off(SESSION)
    assert await tier_of(stores) == "recent"
    assert (await mover.state(), await mover.events()) == (state, events)
    await mover.tiering.archive(SESSION)
    assert await tier_of(stores) == "archive"
    assert (await mover.state(), await mover.events()) == (state, events)
    for fresh in (Mover(stores), Mover(clone(stores))):
        assert (await fresh.state(), await fresh.events()) == (state, events)


async def test_hand_off_seals_merges_and_leaves_nothing_else() -> None:
    stores = await recorded(2, 4, 6, 8, snapshot_at=7)
    await Mover(stores).tiering.hand_off(SESSION)
    listed = names(stores)
    assert listed[-2:] == ["manifest.json", "snapshot-000000000035.json"]
    spans = [(s.first_seq, s.last_seq) for name in listed[:-2] if (s := parse_name(name))]
    assert spans == [(1, 9), (10, 16), (17, 23), (24, 30), (31, 35)]
    assert stores.journal.heads() == {}


async def test_the_record_says_where_the_session_is() -> None:
    stores = await recorded()
    mover = Mover(stores)
    folder = session_folder(SESSION)
    await mover.tiering.hand_off(SESSION)
    row = await stores.catalog.get(SESSION)
    assert row is not None
    record = decode_record(row.record)
    assert record["storage"] == {
        "active": False,
        "archive_path": None,
        "snapshot_path": f"{folder}/snapshot-000000000035.json",
    }
    await mover.tiering.archive(SESSION)
    row = await stores.catalog.get(SESSION)
    assert row is not None
    archived = decode_record(row.record)
    assert archived["storage"] == {
        "active": False,
        "archive_path": f"archive/{folder}/manifest.json",
        "snapshot_path": None,
    }
    assert {**archived, "storage": None, "tier": None} == {**record, "storage": None, "tier": None}
    assert mover.moved == [SESSION, SESSION]


async def test_segments_that_are_large_enough_stay_as_they_are() -> None:
    stores = await recorded(2, 10, 18, snapshot_at=12)
    plan = Plan()
    before = {name for name in names(stores) if parse_name(f"x/{name}") and "000000000001-" not in name}
    await Mover(fallible(stores, plan)).tiering.hand_off(SESSION)
    assert before <= set(names(stores))
    assert "events-000000000001-000000000002.ndjson.zst" in names(stores)


async def test_a_segment_that_is_damaged_is_written_anew_from_the_journal() -> None:
    stores = await recorded(10)
    name = f"{session_folder(SESSION)}/events-000000000001-000000000010.ndjson.zst"
    await stores.objects.put(name, b"damaged")
    mover = Mover(stores)
    await mover.seal(SESSION)
    events = await mover.events()
    await mover.tiering.hand_off(SESSION)
    assert await mover.events() == events


async def test_a_session_that_has_lost_events_stays_active() -> None:
    stores = await recorded(10, 14, snapshot_at=12)
    await Mover(stores).seal(SESSION)
    await stores.objects.delete(f"{session_folder(SESSION)}/events-000000000001-000000000010.ndjson.zst")
    before = await contents(stores)
    with pytest.raises(SetAside):
        await Mover(stores).tiering.hand_off(SESSION)
    assert await contents(stores) == before


async def test_an_accepted_loss_is_a_gap_between_segments_in_every_tier() -> None:
    stores = await recorded(3, 10, 14, snapshot_at=12)
    folder = session_folder(SESSION)
    mover = Mover(stores)
    lost = f"{folder}/events-000000000004-000000000010.ndjson.zst"
    await stores.objects.delete(lost)
    state = (await mover.recovery.recover(SESSION, losses_accepted=True)).state
    loss = HistoryLost(first_seq=4, last_seq=10)
    event = Event(state.updated_at or START, None, loss, state.seq + 1, "history.lost")
    epoch = stores.journal.epoch
    await stores.journal.append([Record(SESSION, event.seq, 1, epoch, encode_event(event) + b"\n")])
    await mover.seal(SESSION)
    before = await mover.state()
    await mover.tiering.hand_off(SESSION)
    manifest = decode_manifest(await stores.objects.get(manifest_name(SESSION)), SESSION)
    assert [(loss.first_seq, loss.last_seq) for loss in manifest.losses] == [(4, 10)]
    assert [(s.first_seq, s.last_seq) for s in manifest.segments][:2] == [(1, 3), (11, 14)]
    await mover.tiering.archive(SESSION)
    assert await Mover(stores).state() == before


async def test_a_session_that_is_not_there_is_no_move() -> None:
    mover = Mover(memory_stores())
    with pytest.raises(NoSuchSession):
        await mover.tiering.hand_off(SESSION)
    with pytest.raises(NoSuchSession):
        await mover.tiering.archive(SESSION)


async def test_a_recent_object_that_is_not_the_listed_one_is_not_archived() -> None:
    stores = await recorded()
    mover = Mover(stores)
    await mover.tiering.hand_off(SESSION)
    manifest = decode_manifest(await stores.objects.get(manifest_name(SESSION)), SESSION)
    await stores.objects.put(manifest.segments[0].name, b"another")
    with pytest.raises(Damaged, match="put it back"):
        await mover.tiering.archive(SESSION)
    assert await tier_of(stores) == "recent"
    assert set(names(stores)) > {"manifest.json"}


async def test_what_an_archive_does_not_give_back_is_not_deleted_here() -> None:
    """I10. The archive takes everything and returns something else."""

    class Forgetful:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        async def get(self, name: str) -> bytes:
            data: bytes = await self._inner.get(name)
            return data[:-1]

    stores = await recorded()
    await Mover(stores).tiering.hand_off(SESSION)
    before = names(stores)
    wrong: Any = Forgetful(stores.archive)
    lying = Stores(journal=stores.journal, catalog=stores.catalog, objects=stores.objects, archive=wrong)
    with pytest.raises(StoreUnavailable, match="does not read back"):
        await Mover(lying).tiering.archive(SESSION)
    assert (await tier_of(stores), names(stores)) == ("recent", before)
    await Mover(stores).tiering.archive(SESSION)
    assert names(stores) == []


# -- a kill, or a fault, at every call ------------------------------------------------------------------------------


async def both_moves(mover: Mover) -> None:
    await mover.tiering.hand_off(SESSION)
    await mover.tiering.archive(SESSION)


async def calls_of_both_moves(stores: Stores) -> int:
    plan = Plan()
    await both_moves(Mover(fallible(clone(stores), plan)))
    return plan.calls


async def test_a_kill_at_every_call_of_both_moves_leaves_one_whole_session() -> None:
    """I8, I9, I10. After each kill the session reads as before it; the next process finishes, and then nothing changes."""
    stores = await recorded(3, 10, 14, snapshot_at=12)
    await Mover(stores).seal(SESSION)
    state, events = await Mover(stores).state(), await Mover(stores).events()
    done = clone(stores)
    await both_moves(Mover(done))
    expected = await contents(done)
    calls = await calls_of_both_moves(stores)
    assert calls > 60
    for kill_at in range(1, calls + 1):
        left = clone(stores)
        with pytest.raises(Killed):
            await both_moves(Mover(fallible(left, Plan(kill_at=kill_at))))
        fresh = Mover(left)
        assert (await fresh.state(), await fresh.events()) == (state, events), kill_at
        await fresh.settle()
        assert await tier_of(left) in ("recent", "archive")
        assert (await fresh.state(), await fresh.events()) == (state, events), kill_at
        fresh.clock.pass_time(LATER.total_seconds())
        await fresh.settle()
        assert await contents(left) == expected, kill_at
        again = Plan()
        await Mover(fallible(left, again), clock=fresh.clock).settle()
        assert not {name for name in again.names if name.split(".")[1] in ("put", "delete", "switch")}


@pytest.mark.parametrize("fault_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fault", [StoreUnavailable("gone"), StorageFull()], ids=["unavailable", "full"])
async def test_a_fault_at_every_call_of_both_moves_is_told_and_the_next_try_finishes(
    fault: Exception, fault_done: bool
) -> None:
    stores = await recorded(3, 10, 14, snapshot_at=12)
    await Mover(stores).seal(SESSION)
    state, events = await Mover(stores).state(), await Mover(stores).events()
    done = clone(stores)
    await both_moves(Mover(done))
    expected = await contents(done)
    for fault_at in range(1, await calls_of_both_moves(stores) + 1):
        left = clone(stores)
        mover = Mover(fallible(left, Plan(fault_at=fault_at, fault=fault, fault_done=fault_done)))
        with pytest.raises(type(fault)):
            await both_moves(mover)
        assert (await mover.state(), await mover.events()) == (state, events), fault_at
        await both_moves(mover)
        assert await contents(left) == expected, fault_at


@pytest.mark.parametrize("move", ["hand_off", "archive"])
async def test_a_move_that_overtakes_a_reader_at_any_of_its_calls_changes_nothing_for_it(move: str) -> None:
    """It looks where the session was, and would find nothing there: no event is lost, it has moved."""
    at = 0
    while True:
        at += 1
        stores = await recorded(10, 20, snapshot_at=15)
        mover = Mover(stores)
        await mover.seal(SESSION)
        if move == "archive":
            await mover.tiering.hand_off(SESSION)
        expected = (await mover.state(), await mover.events())
        seen, count = overtaken(stores, at, partial(getattr(Mover(stores).tiering, move), SESSION))
        reader = Mover(seen)
        assert (await reader.state(), await reader.events()) == expected, f"overtaken at call {at}"
        if next(count) <= at:
            return


async def test_complete_in_both_places_the_archive_wins_and_the_rest_is_swept() -> None:
    stores = await recorded()
    mover = Mover(stores)
    await mover.tiering.hand_off(SESSION)
    recent = clone(stores)
    await mover.tiering.archive(SESSION)
    expected = await contents(stores)
    for name in [name async for name in recent.objects.list("")]:
        await stores.objects.put(name, await recent.objects.get(name))
    assert [w.work for w in await mover.tiering.look(frozenset(), dict.fromkeys(Work, 9), True)] == [
        Work.ARCHIVE
    ]
    await mover.settle()
    assert await contents(stores) == expected


async def test_nothing_is_deleted_here_that_the_archive_does_not_have() -> None:
    stores = await recorded()
    mover = Mover(stores)
    await mover.tiering.hand_off(SESSION)
    recent = clone(stores)
    await mover.tiering.archive(SESSION)
    for name in [name async for name in recent.objects.list("")]:
        await stores.objects.put(name, await recent.objects.get(name))
    await stores.archive.delete(manifest_name(SESSION))
    with pytest.raises(ObjectMissing):
        await mover.tiering.archive(SESSION)
    assert names(stores) == names(recent)


async def test_a_catalog_that_never_heard_of_the_hand_off_hears_of_it_again() -> None:
    stores = await recorded()
    before = clone(stores)
    await Mover(stores).tiering.hand_off(SESSION)
    expected = await contents(stores)
    for catalog in (before.catalog, memory_stores().catalog):
        older = Stores(
            journal=stores.journal, catalog=catalog, objects=stores.objects, archive=stores.archive
        )
        await Mover(older).settle()
        assert await contents(older) == expected


async def test_a_catalog_that_is_older_than_the_archive_is_told_by_it() -> None:
    stores = await recorded()
    mover = Mover(stores)
    await mover.tiering.hand_off(SESSION)
    older = clone(stores).catalog
    state = await mover.state()
    await mover.tiering.archive(SESSION)
    expected = await contents(stores)
    restored = Stores(journal=stores.journal, catalog=older, objects=stores.objects, archive=stores.archive)
    await Mover(restored).settle()
    assert await contents(restored) == expected
    assert await Mover(restored).state() == state


async def test_what_was_added_to_a_recent_session_is_handed_over_again() -> None:
    """As when a person accepts the loss of events of one."""
    stores = await recorded()
    mover = Mover(stores)
    await mover.tiering.hand_off(SESSION)
    await stores.journal.release({SESSION: 35})
    event = Event(START, None, HistoryLost(first_seq=1, last_seq=1), 36, "history.lost")
    epoch = stores.journal.epoch
    await stores.journal.append([Record(SESSION, 36, 1, epoch, encode_event(event) + b"\n")])
    fresh = Mover(stores)
    state, events = await fresh.state(), await fresh.events()
    await fresh.settle()
    row = await stores.catalog.get(SESSION)
    assert row is not None
    assert (row.tier, row.seq, dict(stores.journal.heads())) == ("recent", 36, {})
    assert (await fresh.state(), await fresh.events()) == (state, events)
    assert [name for name in names(stores) if "snapshot" in name] == ["snapshot-000000000036.json"]


async def test_a_catalog_that_knows_more_than_the_session_holds_stops_the_move() -> None:
    stores = await recorded()
    mover = Mover(stores)
    await mover.seal(SESSION)
    row = await stores.catalog.get(SESSION)
    assert row is not None
    await stores.catalog.put([evolve(row, seq=99)])
    with pytest.raises(StoreUnavailable, match="rebuild-catalog"):
        await mover.tiering.hand_off(SESSION)
    assert stores.journal.heads() == {SESSION: 35}


async def test_a_damaged_manifest_keeps_nobody_else_from_being_found() -> None:
    stores = await recorded()
    other = "sess_" + "2" * 32
    await record_session(stores, other, epoch=stores.journal.epoch)
    mover = Mover(stores)
    for session_id in (SESSION, other):
        await mover.tiering.hand_off(session_id)
    await stores.objects.put(manifest_name(SESSION), b"{}")
    empty = memory_stores().catalog
    lost = Stores(journal=stores.journal, catalog=empty, objects=stores.objects, archive=stores.archive)
    found = await Mover(lost).tiering.look(frozenset(), dict.fromkeys(Work, 9), True)
    assert {waiting.session_id for waiting in found} == {SESSION, other}
    assert [row.session_id for row in await empty.page(CatalogQuery())] == [other]
    await stores.objects.put(manifest_name(SESSION), b"{}")
    with pytest.raises(Damaged):
        await mover.tiering.archive(SESSION)


# -- finding what waits ---------------------------------------------------------------------------------------------


async def test_what_waits_is_found_within_the_room_there_is() -> None:
    stores = memory_stores()
    ids = [f"sess_{n:032x}" for n in range(6)]
    for session_id in ids:
        await record_session(stores, session_id, lines=1, epoch=stores.journal.epoch)
    mover = Mover(stores)
    rooms = {Work.HAND_OFF: 2, Work.ARCHIVE: 1}
    found = await mover.tiering.look(frozenset(ids[3:]), rooms, False)
    assert [w.session_id for w in found] == [ids[2], ids[1]]
    assert {w.work for w in found} == {Work.HAND_OFF}
    for session_id in ids[:4]:
        await mover.tiering.hand_off(session_id)
    assert await mover.tiering.look(frozenset(ids[4:]), rooms, False) == []
    mover.clock.pass_time(LATER.total_seconds())
    found = await mover.tiering.look(frozenset({*ids[4:], ids[0]}), rooms, False)
    assert [(w.session_id, w.work) for w in found] == [(ids[1], Work.ARCHIVE)]


async def test_an_unsealed_session_waits_for_the_rest_of_its_time() -> None:
    stores = await recorded()
    mover = Mover(stores)
    row = await stores.catalog.get(SESSION)
    assert row is not None
    mover.clock.wall = row.updated_at + timedelta(seconds=12)
    rooms = dict.fromkeys(Work, 9)
    (waiting,) = await mover.tiering.look(frozenset(), rooms, False)
    assert waiting.due_in_s == 18
    mover.clock.wall = row.updated_at - timedelta(days=1)  # the wall clock was set back
    (waiting,) = await mover.tiering.look(frozenset(), rooms, False)
    assert waiting.due_in_s == 30


async def test_a_look_goes_on_behind_what_is_known() -> None:
    stores = await recorded()
    row = await stores.catalog.get(SESSION)
    assert row is not None
    ids = [f"sess_{n:032x}" for n in range(450)]
    await stores.catalog.put([evolve(row, session_id=session_id) for session_id in ids])
    rooms = {Work.HAND_OFF: 500, Work.ARCHIVE: 0}
    found = await Mover(stores).tiering.look(frozenset(ids[20:]), rooms, False)
    assert {waiting.session_id for waiting in found} == {SESSION, *ids[:20]}


async def test_damaged_facts_cost_no_more_than_themselves() -> None:
    stores = await recorded()
    mover = Mover(stores)
    await mover.seal(SESSION)
    await mover.tiering.set_facts(SESSION, "named anew", ["slow"])
    await stores.objects.put(facts_name(SESSION), b"{}")
    await mover.tiering.archive(SESSION)
    row = await stores.catalog.get(SESSION)
    assert row is not None
    assert (row.tier, row.title) == ("archive", "a title")
    record = await mover.tiering.set_facts(SESSION, "again", None)
    assert (record["title"], record["tags"]) == ("again", [])


async def test_facts_move_along_and_an_older_session_shows_them() -> None:
    stores = await recorded()
    mover = Mover(stores)
    await mover.seal(SESSION)
    record = await mover.tiering.set_facts(SESSION, "named anew", ["slow", "flaky"])
    assert (record["title"], record["tags"], record["tier"]) == ("named anew", ["slow", "flaky"], "recent")
    await mover.tiering.archive(SESSION)
    assert facts_name(SESSION) in [name async for name in stores.archive.list("")]
    row = await stores.catalog.get(SESSION)
    assert row is not None
    assert (row.title, decode_record(row.record)["tags"]) == ("named anew", ["slow", "flaky"])
    record = await mover.tiering.set_facts(SESSION, None, ["slow"])
    assert (record["title"], record["tags"], record["tier"]) == ("a title", ["slow"], "archive")


async def test_a_last_snapshot_that_rots_at_any_call_of_the_hand_over_costs_nothing() -> None:
    """Until it stands in the manifest it is written anew; from then on the events are read instead."""
    at = anew = 0
    while True:
        at += 1
        stores = memory_stores()
        await record_session(stores)
        await Mover(stores).seal(SESSION)
        head = stores.journal.heads()[SESSION]
        await compact(stores, head, snapshot_at=head)
        name, before = snapshot_name(SESSION, head), await Mover(stores).state()
        rotten = (await stores.objects.get(name)).replace(b"nightly", b"nightlz")

        async def rot(stores: Stores = stores, name: str = name, rotten: bytes = rotten) -> None:
            await stores.objects.put(name, rotten)

        seen, count = overtaken(stores, at, rot)
        await Mover(seen).tiering.hand_off(SESSION)
        if next(count) <= at:
            break
        assert await tier_of(stores) == "recent"
        assert await Mover(stores).state() == before
        anew += await stores.objects.get(name) != rotten
    assert 0 < anew < at - 1
