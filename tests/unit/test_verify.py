"""The verification: what is whole passes, and each kind of damage is named with its session and what to do."""

from pathlib import Path

import pytest

from sojourn.actors.ports import Record
from sojourn.runtime.facts import Facts, encode_facts
from sojourn.runtime.layout import facts_name, manifest_name, session_folder
from sojourn.runtime.opening import Stores
from sojourn.runtime.verify import Flaw, verify_folder, verify_journal, verify_objects

from ..support.tiers import SESSION, Mover, memory_stores, record_session

pytestmark = pytest.mark.anyio


async def flaws(stores: Stores, *, archived: bool = False) -> list[Flaw]:
    objects = stores.archive if archived else stores.objects
    return [found async for found in verify_objects(objects) if found is not None]


@pytest.fixture
async def stores() -> Stores:
    """A session that was handed over, with facts."""
    stores = memory_stores()
    await record_session(stores)
    await Mover(stores).tiering.hand_off(SESSION)
    await stores.objects.put(facts_name(SESSION), encode_facts(Facts(title="named", version=1)))
    return stores


async def names(stores: Stores) -> list[str]:
    return [name async for name in stores.objects.list("")]


async def test_what_is_whole_has_no_flaw_in_any_tier(stores: Stores) -> None:
    count = len(await names(stores))
    assert [found async for found in verify_objects(stores.objects)] == [None] * count
    await Mover(stores).tiering.archive(SESSION)
    assert [found async for found in verify_objects(stores.archive)] == [None] * count


async def test_a_flipped_bit_in_every_kind_of_object_is_named_with_its_session_and_a_remedy(
    stores: Stores,
) -> None:
    for name in await names(stores):
        whole = await stores.objects.get(name)
        for bit in (1, 128):
            await stores.objects.put(name, whole[:20] + bytes([whole[20] ^ bit]) + whole[21:])
            found = await flaws(stores)
            assert {(flaw.name, flaw.session_id) for flaw in found} == {(name, SESSION)}
            assert all(flaw.remedy for flaw in found)
        await stores.objects.put(name, whole)
    assert await flaws(stores) == []


async def test_an_object_that_its_manifest_lists_and_is_not_there_is_named(stores: Stores) -> None:
    segment = next(name for name in await names(stores) if "/events-" in name)
    await stores.objects.delete(segment)
    (flaw,) = await flaws(stores)
    assert (flaw.name, flaw.detail) == (segment, "its manifest names it; it is not there")


async def test_a_whole_object_that_is_another_than_its_manifest_lists_is_named(stores: Stores) -> None:
    other = memory_stores()
    await record_session(other, lines=10)
    await Mover(other).tiering.hand_off(SESSION)
    await stores.objects.put(manifest_name(SESSION), await other.objects.get(manifest_name(SESSION)))
    assert {flaw.detail for flaw in await flaws(stores)} == {
        "it is not what its manifest says",
        "its manifest names it; it is not there",
    }


async def test_what_is_none_of_ours_or_lies_elsewhere_is_named(stores: Stores) -> None:
    await stores.objects.put(f"{session_folder(SESSION)}/notes.txt", b"")
    await stores.objects.put(f"sessions/zz/{SESSION}/facts.json", encode_facts(Facts()))
    assert [flaw.detail for flaw in await flaws(stores)] == [
        "its name is none of ours",
        f"sessions/zz/{SESSION}/facts.json lies in a folder that is not its session's",
    ]


async def test_a_journal_record_whose_events_are_not_its_own_is_named() -> None:
    stores = memory_stores()
    await record_session(stores, lines=2)
    assert [found async for found in verify_journal(stores.journal)] == [None]
    (first, *_) = await stores.journal.read(SESSION)
    await stores.journal.append([Record("sess_" + "2" * 32, 1, 2, 2, first.payload)])
    named = [found for found in [one async for one in verify_journal(stores.journal)] if found is not None]
    assert [(flaw.name, flaw.session_id) for flaw in named] == [("journal.db", "sess_" + "2" * 32)]


async def test_a_folder_without_anything_is_whole(tmp_path: Path) -> None:
    assert [found async for found in verify_folder(tmp_path) if found is not None] == []
