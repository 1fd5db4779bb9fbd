"""Damaged bytes are seen, healed or declared: a small sample of the proof `damage`, and each of its rules by itself."""

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from attrs import evolve

from sojourn.actors.errors import Damaged, Missing, SojournError
from sojourn.actors.ports import CatalogQuery, Record
from sojourn.runtime.reader import Reader
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from sojourn.runtime.verify import verify_folder

from ..prove import damage
from ..support import owner
from ..support.wait import await_until

ALL = CatalogQuery(limit=1_000)
SEEDS = range(16)


@pytest.fixture(scope="module")
def bases() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory(prefix="sojourn-", dir=damage.scratch()) as name:
        yield damage.build(Path(name))


@pytest.fixture(scope="module")
def truths(bases: dict[str, Path]) -> dict[str, damage.Seen]:
    return damage.truths_of(bases)


def test_no_damage_of_a_sample_is_served_as_if_it_were_none(
    bases: dict[str, Path], truths: dict[str, damage.Seen]
) -> None:
    found = damage.run(bases, truths, list(SEEDS))
    assert [one for one in found if one[1].outcome == "WRONG"] == []
    assert {verdict.outcome for _, verdict in found} >= {"declared", "held nothing"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two ended sessions and one that runs, closed."""

    async def fill() -> None:
        async with Runtime.open(settings(tmp_path / "data")) as runtime:
            await owner.fill(runtime)

    asyncio.run(fill())
    return tmp_path / "data"


def settings(folder: Path) -> Settings:
    return Settings(data_dir=folder, seal_after_s=3_600.0, mirror="none")


async def records(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What is listed, and the warnings and errors that were logged."""
    with structlog.testing.capture_logs() as logs:
        async with Runtime.open(settings(folder)) as runtime:
            listed = {record["session_id"]: damage._plain(record) for record in await runtime.page(ALL)}
    return listed, [line["event"] for line in logs if line["log_level"] in ("warning", "error")]


async def flaws(folder: Path) -> list[tuple[str, str]]:
    return [(found.name, found.remedy) async for found in verify_folder(folder) if found is not None]


def execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE session SET title = 'another'",
        "UPDATE session SET record = CAST(record AS TEXT)",
        "UPDATE session SET checksum = NULL",
        "UPDATE head SET synced = 7",
        "DROP INDEX session_by_age",
    ],
)
async def test_a_catalog_that_says_something_else_is_named_and_built_anew(
    folder: Path, statement: str
) -> None:
    before, _ = await records(folder)
    execute(folder / "catalog.db", statement)
    assert {name for name, _ in await flaws(folder)} == {"catalog.db"}
    with structlog.testing.capture_logs() as logs:
        async with Reader.open(folder) as reader:
            listed = {record["session_id"] for record in await reader.page(ALL)}
    assert listed == before.keys()
    assert "catalog.damaged" in [line["event"] for line in logs]
    after, said = await records(folder)
    assert after.keys() == before.keys()
    assert "catalog.damaged" in said
    assert await flaws(folder) == []


@pytest.mark.anyio
async def test_a_row_damaged_while_the_catalog_is_open_is_answered_as_it_should_be_and_written_anew(
    folder: Path,
) -> None:
    async with Runtime.open(settings(folder)) as runtime:
        before = {record["session_id"]: damage._plain(record) for record in await runtime.page(ALL)}
        execute(folder / "catalog.db", "UPDATE session SET title = 'another', plan = 'another'")
        damaged: list[int] = []
        for _ in range(2):
            with structlog.testing.capture_logs() as logs:
                after = {record["session_id"]: damage._plain(record) for record in await runtime.page(ALL)}
            assert {one: record["title"] for one, record in after.items()} == {
                one: record["title"] for one, record in before.items()
            }
            said = [line["event"] for line in logs]
            damaged.append(said.count("catalog.row_damaged"))
        assert damaged[0] >= len(before)
        assert damaged[1] == 0
    assert await flaws(folder) == []


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["journal.db", "catalog.db"])
async def test_an_older_copy_is_told_by_its_mark(folder: Path, name: str) -> None:
    older = (folder / name).read_bytes()
    async with Runtime.open(evolve(settings(folder), seal_after_s=0.0)) as runtime:
        session_id = await owner.create(runtime, plan="smoke", title="later")
        await owner.ask(runtime, session_id, type="session.cancel")
        await owner.ask(runtime, session_id, type="session.seal")

        async def moved() -> bool:
            return bool((await runtime.record(session_id))["tier"] == "recent")

        await await_until(moved)
    (folder / name).write_bytes(older)
    assert name in {flaw for flaw, _ in await flaws(folder)}
    listed, said = await records(folder)
    assert session_id in listed
    assert f"{name.removesuffix('.db')}.damaged" in said


@pytest.mark.anyio
async def test_a_journal_with_damaged_pages_becomes_a_new_one_of_what_can_be_read(folder: Path) -> None:
    before, _ = await records(folder)
    data = bytearray((folder / "journal.db").read_bytes())
    data[8192 + 3 : 8192 + 5] = b"\0\x01"  # of so many rows only one is told of
    (folder / "journal.db").write_bytes(data)
    assert "journal.db" in {name for name, _ in await flaws(folder)}
    _, said = await records(folder)
    assert "journal.damaged" in said
    (kept,) = (folder / "quarantine").glob("journal-*.db")
    assert kept.read_bytes()[: 2 * 8192] == bytes(data[: 2 * 8192])
    connection = sqlite3.connect(folder / "journal.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    async with Runtime.open(settings(folder)) as runtime:
        for session_id in before:
            # The rows are gone, and the catalog knows what should be there.
            with suppress(Damaged):
                await runtime.state(session_id)
                assert (await runtime.record(session_id))["damaged"] is not None
        await owner.create(runtime, plan="smoke", title="and it goes on")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "statement", ["UPDATE released SET seq = seq + 1", "UPDATE head SET epoch = 1 << 40"]
)
async def test_a_line_of_the_journal_beside_its_rows_that_says_something_else_is_told(
    tmp_path: Path, statement: str
) -> None:
    path = tmp_path / "journal.db"
    journal = await SqliteJournal.open(path)
    await journal.append([event("a", 1)])
    await journal.append([event("b", 1)])
    await journal.release({"a": 1})
    await journal.close()
    execute(path, statement)
    for read_only in (True, False):
        journal = await SqliteJournal.open(path, read_only=read_only)
        assert len(journal.flaws) == 1
        assert "checksum" in journal.flaws[0]
        assert (journal.epoch, journal.heads()["b"]) == (1, 1)
        await journal.close()


def event(session_id: str, seq: int) -> Record:
    return Record(session_id, seq, 1, 1, b'{"seq":%d}\n' % seq)


@pytest.mark.anyio
async def test_without_its_journal_a_folder_serves_what_snapshots_and_segments_hold_and_says_what_is_missing(
    bases: dict[str, Path], truths: dict[str, damage.Seen], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(bases["closed"], folder)
    data = bytearray((folder / "journal.db").read_bytes())
    data[:16] = bytes(16)
    (folder / "journal.db").write_bytes(data)
    with pytest.raises(Damaged, match="To go on without it, move both aside"):
        async with Runtime.open(settings(folder)):
            pass
    for path in folder.glob("journal.db*"):
        if not path.name.endswith("-mark"):
            shutil.move(path, tmp_path)
    truth = truths["closed"]
    seen = await damage.look(folder, list(truth.sessions))
    assert seen.refused is None
    assert "journal.damaged" in [line["event"] for line in seen.said]
    assert seen.listed.keys() == truth.listed.keys()
    whole = []
    for session_id, expected in truth.sessions.items():
        found = seen.sessions[session_id]
        lost = session_id in seen.damaged or isinstance(found["state"], SojournError)
        assert lost or found["state"] == expected["state"]
        if not lost:
            whole.append(truth.listed[session_id]["tier"])
        elif isinstance(found["events"], SojournError):
            assert isinstance(found["events"], Missing), found["events"]
    assert set(whole) >= {"archive", "recent"}
    assert len(whole) < len(truth.sessions)
