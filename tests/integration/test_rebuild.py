"""The catalog built anew: after it was lost, after it was damaged, and by hand; row for row the one that stood there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from sojourn.actors.errors import FolderInUse, StoreUnavailable
from sojourn.actors.ports import CatalogQuery, CatalogRow
from sojourn.runtime.layout import manifest_name
from sojourn.runtime.opening import open_stores
from sojourn.runtime.reader import Reader
from sojourn.runtime.rebuild import rebuild_catalog, write_rows
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.catalog_sqlite import SqliteCatalog
from sojourn.runtime.stores.memory import MemoryCatalog

from ..support import owner
from ..support.tiers import Mover, Plan, fallible, memory_stores, record_session
from ..support.wait import await_until

pytestmark = pytest.mark.anyio
ALL = CatalogQuery(limit=1_000)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", seal_after_s=0.0, mirror="none")


async def tiers(runtime: Runtime) -> list[str]:
    return [record["tier"] for record in await runtime.page(ALL)]


async def fill(settings: Settings) -> list[CatalogRow]:
    """Active, recent and archived sessions, facts among them, written by three owners; the rows that are there then."""
    for recent_days in (0.0, 30.0):
        async with Runtime.open(evolve(settings, recent_days=recent_days)) as runtime:
            before = len(await tiers(runtime))
            _, second, third = await owner.fill(runtime)
            await owner.ask(runtime, third, type="session.cancel")
            tier = "recent" if recent_days else "archive"

            async def moved(runtime: Runtime = runtime, before: int = before, tier: str = tier) -> bool:
                return (await tiers(runtime))[: len(await tiers(runtime)) - before] == [tier] * 3

            await await_until(moved)
            await runtime.set_facts(second, title="named anew", tags=["slow"])
    async with Runtime.open(evolve(settings, seal_after_s=3_600.0)) as runtime:
        await owner.fill(runtime)
        assert sorted(await tiers(runtime)) == ["active"] * 3 + ["archive"] * 3 + ["recent"] * 3
    return await rows(settings)


async def rows(settings: Settings) -> list[CatalogRow]:
    catalog = await SqliteCatalog.open(settings.data_dir / "catalog.db")
    try:
        return await catalog.page(ALL)
    finally:
        await catalog.close()


def quarantined(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.data_dir / "quarantine").glob("*.db"))


async def test_rebuilt_rows_are_those_that_stood_there(settings: Settings) -> None:
    """I11."""
    before = await fill(settings)
    assert await rebuild_catalog(settings) == 9
    assert await rows(settings) == before
    assert len(quarantined(settings)) == 1
    assert await rebuild_catalog(settings) == 9
    assert len(quarantined(settings)) == 2
    assert not list(settings.data_dir.glob("catalog.db.new*"))


@pytest.mark.parametrize("lost", ["missing", "no database", "a page of it"])
async def test_a_catalog_that_is_lost_is_there_again_at_the_next_start(settings: Settings, lost: str) -> None:
    before = await fill(settings)
    path = settings.data_dir / "catalog.db"
    if lost == "missing":
        path.unlink()
    elif lost == "no database":
        path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    else:
        data = bytearray(path.read_bytes())
        for page in range(4096, len(data), 4096):
            data[page : page + 8] = b"\xff" * 8
        path.write_bytes(data)
    settings = evolve(settings, seal_after_s=3_600.0)
    async with Runtime.open(settings) as runtime:
        assert len(await tiers(runtime)) == 9
        for row in before:
            assert (await runtime.record(row.session_id))["tier"] == row.tier
    assert await rows(settings) == before
    assert len(quarantined(settings)) == (lost != "missing")


async def test_a_folder_without_its_catalog_lists_every_tier_to_a_reader(settings: Settings) -> None:
    await fill(settings)
    async with Reader.open(settings.data_dir) as reader:
        before = await reader.page(ALL)
    (settings.data_dir / "catalog.db").unlink()
    async with Reader.open(settings.data_dir) as reader:
        after = await reader.page(ALL)
        ids = [record["session_id"] for record in before]
        assert [record["session_id"] for record in after] == ids
        assert [record["tier"] for record in after] == [record["tier"] for record in before]
        for session_id in ids:
            assert (await reader.state(session_id))[0] > 0
    assert not (settings.data_dir / "catalog.db").exists()


async def test_a_folder_in_use_is_not_rebuilt(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        await owner.create(runtime)
        with pytest.raises(FolderInUse):
            await rebuild_catalog(settings)


async def test_a_new_folder_has_nothing_to_rebuild(settings: Settings) -> None:
    async with open_stores(settings):
        pass
    assert not (settings.data_dir / "quarantine").exists()


async def test_a_build_that_broke_off_is_begun_again(settings: Settings) -> None:
    before = await fill(settings)
    (settings.data_dir / "catalog.db.new").write_bytes(b"half of it")
    os.replace(settings.data_dir / "catalog.db", settings.data_dir / "elsewhere")
    async with Runtime.open(evolve(settings, seal_after_s=3_600.0)) as runtime:
        assert len(await tiers(runtime)) == 9
    assert await rows(settings) == before


def program(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "sojourn", "rebuild-catalog", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_the_program_says_how_many_sessions_there_are_and_why_it_cannot(settings: Settings) -> None:
    nowhere = await anyio.to_thread.run_sync(program, "--data", str(settings.data_dir))
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "there is no data folder" in nowhere.stderr
    async with Runtime.open(settings) as runtime:
        await owner.create(runtime)
        in_use = await anyio.to_thread.run_sync(program, "--data", str(settings.data_dir))
        assert "in use by pid" in in_use.stderr
    done = await anyio.to_thread.run_sync(program, "--data", str(settings.data_dir), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"data_dir": str(settings.data_dir), "sessions": 1}


# -- over memory ----------------------------------------------------------------------------------------------------


async def written(stores: Any) -> list[CatalogRow]:
    catalog = MemoryCatalog()
    await write_rows(
        catalog,
        journal=stores.journal,
        recent=stores.objects,
        archive=stores.archive,
        with_active=True,
    )
    return await catalog.page(ALL)


async def test_complete_in_two_places_the_later_tier_wins() -> None:
    stores = memory_stores()
    await record_session(stores)
    mover = Mover(stores)
    session_id = "sess_" + "1" * 32
    await mover.tiering.hand_off(session_id)
    recent = {name: await stores.objects.get(name) async for name in stores.objects.list("")}
    await mover.tiering.archive(session_id)
    for name, data in recent.items():
        await stores.objects.put(name, data)
    assert [row.tier for row in await written(stores)] == ["archive"]


async def test_an_archive_manifest_that_is_damaged_leaves_the_recent_session_listed() -> None:
    stores = memory_stores()
    for n in (1, 2):
        await record_session(stores, f"sess_{n:032x}", epoch=n)
        await Mover(stores).tiering.hand_off(f"sess_{n:032x}")
    await stores.archive.put(manifest_name(f"sess_{1:032x}"), b"{}")
    await stores.objects.put(manifest_name(f"sess_{2:032x}"), b"{}")
    assert [row.session_id for row in await written(stores)] == [f"sess_{1:032x}"]


async def test_a_session_between_hand_off_and_the_end_of_it_is_recent() -> None:
    stores = memory_stores()
    await record_session(stores)
    await Mover(stores).seal("sess_" + "1" * 32)
    await Mover(stores).tiering._complete_recent("sess_" + "1" * 32, ())
    assert [row.tier for row in await written(stores)] == ["recent"]


async def test_an_archive_that_does_not_answer_is_no_empty_one() -> None:
    stores = memory_stores()
    await record_session(stores)
    mover = Mover(stores)
    await mover.tiering.hand_off("sess_" + "1" * 32)
    await mover.tiering.archive("sess_" + "1" * 32)
    away = fallible(stores, Plan(fault_at=2, fault=StoreUnavailable("gone")))
    with pytest.raises(StoreUnavailable, match="start again once it does"):
        await written(away)
