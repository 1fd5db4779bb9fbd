"""Reading a data folder without owning it: beside its owner, after it was killed, and after it closed."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from sojourn.actors.errors import NoSuchSession, UnusableFolder
from sojourn.actors.ports import CatalogQuery
from sojourn.runtime.reader import Reader
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from tests.support import owner

pytestmark = pytest.mark.anyio
# What depends on the moment of reading and on who reads.
COMPUTED = ("duration_s", "last_sign_at", "lost", "storage")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("killed")
    return folder, owner.killed_owner(folder)


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in COMPUTED}
    return {**kept, "metadata": {**record["metadata"], "duration_minutes": None}}


async def ids(reader: Reader, **query: Any) -> list[str]:
    return [record["session_id"] for record in await reader.page(CatalogQuery(**query))]


async def test_a_reader_beside_the_owner_sees_what_the_owner_sees(tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime:
        session_ids = await owner.fill(runtime)
        async with Reader.open(tmp_path) as reader:
            for session_id in session_ids:
                assert await reader.state(session_id) == await runtime.state(session_id)
                assert lasting(await reader.record(session_id)) == lasting(await runtime.record(session_id))
                seen = [line async for line in reader.events(session_id, after=2)]
                assert seen == [line async for line in runtime.events(session_id, after=2)]
            mine = [lasting(record) for record in await reader.page(CatalogQuery())]
            assert mine == [lasting(record) for record in await runtime.page(CatalogQuery())]
            assert not (await reader.record(session_ids[2]))["lost"]
        assert runtime.statistics().epoch == 1


async def test_a_reader_takes_in_what_was_committed_since_when_it_is_refreshed(tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime:
        session_id = await owner.create(runtime, plan="live")
        async with Reader.open(tmp_path) as reader:
            await owner.record_cases(runtime, session_id, [("a", "passed", 0.0)])
            await reader.refresh()
            assert [line.seq async for line in reader.events(session_id, after=2)] == [3]
            (row,) = await reader.page(CatalogQuery())
            assert (row["seq"], row["results"]["passed"]) == (3, 1)


async def test_what_a_killed_owner_acknowledged_is_there_and_its_open_session_is_lost(
    killed: tuple[Path, list[str]],
) -> None:
    folder, (first, second, third) = killed
    async with Reader.open(folder) as reader:
        records = {record["session_id"]: record for record in await reader.page(CatalogQuery())}
        assert list(records) == [third, second, first]
        assert {session_id for session_id, record in records.items() if record["lost"]} == {third}
        assert records[first]["status"] == "completed"
        assert records[first]["results"]["failed"] == 1
        assert await reader.record(first) == records[first]
        assert [line.seq async for line in reader.events(third)] == [1, 2, 3]


async def test_reading_leaves_every_file_as_it_was(tmp_path: Path) -> None:
    owner.killed_owner(tmp_path)

    def contents() -> dict[str, str]:
        # The index of the write-ahead log is shared memory that any reader of SQLite may make anew.
        files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = contents()
    async with Reader.open(tmp_path) as reader:
        for session_id in await ids(reader):
            await reader.record(session_id)
    assert contents() == before


async def test_pages_filter_by_what_the_journal_says_where_the_catalog_is_behind(tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime:
        first, second, third = await owner.fill(runtime)
        await runtime.page(CatalogQuery())  # the catalog is level now
        async with Reader.open(tmp_path) as reader:
            await owner.ask(runtime, third, type="session.complete", outcome="passed")
            await reader.refresh()
            assert await ids(reader, status=frozenset({"running"})) == []
            assert await ids(reader, status=frozenset({"completed"})) == [third, second, first]
            assert await ids(reader, status=frozenset({"completed"}), limit=1) == [third]
            assert await ids(reader, plan="nightly") == [second, first]
            assert await ids(reader, plan="none of them") == []


async def test_walking_in_small_pages_meets_every_session_once(killed: tuple[Path, list[str]]) -> None:
    folder, session_ids = killed
    async with Reader.open(folder) as reader:
        walked = [record["session_id"] async for record in reader.walk(CatalogQuery(limit=1))]
    assert walked == session_ids[::-1]


async def test_a_closed_folder_without_its_catalog_lists_the_same(tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path, mirror="none")) as runtime:
        session_ids = await owner.fill(runtime)
    async with Reader.open(tmp_path) as reader:
        with_catalog = await reader.page(CatalogQuery())
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    async with Reader.open(tmp_path) as reader:
        without = await reader.page(CatalogQuery())
    assert [record["session_id"] for record in without] == session_ids[::-1]
    assert [lasting(record) for record in without] == [lasting(record) for record in with_catalog]


async def test_a_catalog_that_is_damaged_costs_no_session(tmp_path: Path) -> None:
    session_ids = owner.killed_owner(tmp_path)
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    (tmp_path / "catalog.db").write_bytes(b"no database" * 500)
    async with Reader.open(tmp_path) as reader:
        assert await ids(reader) == session_ids[::-1]


async def test_a_session_that_is_not_there_is_named(killed: tuple[Path, list[str]]) -> None:
    absent = "sess_" + "0" * 32
    async with Reader.open(killed[0]) as reader:
        with pytest.raises(NoSuchSession, match=absent):
            await reader.record(absent)
        with pytest.raises(NoSuchSession, match=absent):
            await reader.state(absent)
        with pytest.raises(NoSuchSession, match=absent):
            [line async for line in reader.events(absent)]


@pytest.mark.parametrize("made", [False, True])
async def test_a_folder_without_sessions_says_so_and_what_to_do(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "data"
    if made:
        folder.mkdir()
    said = "holds no sessions" if made else "there is no data folder"
    with pytest.raises(UnusableFolder, match=f"{said}.*; record one with `sojourn record"):
        async with Reader.open(folder):
            pass
    assert folder.exists() == made


async def test_a_folder_of_a_newer_format_is_not_read(tmp_path: Path) -> None:
    owner.killed_owner(tmp_path)
    (tmp_path / "format").write_text("99\n")
    with pytest.raises(UnusableFolder, match="of format 99"):
        async with Reader.open(tmp_path):
            pass
