"""The catalog on SQLite: versions, damage, cancellation."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from sojourn.actors.errors import Damaged, StoreUnavailable, UnusableFolder
from sojourn.actors.ports import CatalogQuery, CatalogRow
from sojourn.runtime.stores import catalog_rows, catalog_schema
from sojourn.runtime.stores.catalog_schema import MIGRATIONS, VERSION
from sojourn.runtime.stores.catalog_sqlite import SqliteCatalog

pytestmark = pytest.mark.anyio
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


def row(session_id: str, **fields: Any) -> CatalogRow:
    plain = CatalogRow(
        session_id=session_id,
        seq=1,
        epoch=1,
        tier="active",
        status="running",
        outcome=None,
        plan="nightly",
        title="a title",
        user_id="ann",
        created_at=NOON,
        updated_at=NOON,
        record=b"{}",
    )
    return evolve(plain, **fields)


async def filled(path: Path, *rows: CatalogRow) -> None:
    catalog = await SqliteCatalog.open(path)
    await catalog.put(rows)
    await catalog.close()


Open = Callable[..., Awaitable[SqliteCatalog]]


@pytest.fixture
async def opened(anyio_backend: str) -> AsyncIterator[Open]:
    """Opens catalogs that are closed whatever happens: one left open would keep the tests from ending."""
    async with AsyncExitStack() as stack:

        async def open_one(path: Path, **options: Any) -> SqliteCatalog:
            catalog = await SqliteCatalog.open(path, **options)
            stack.push_async_callback(catalog.close)
            return catalog

        yield open_one


def schema(path: Path) -> tuple[int, set[tuple[str, str]]]:
    connection = sqlite3.connect(path)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    objects = set(connection.execute("SELECT type, name FROM sqlite_schema WHERE sql IS NOT NULL"))
    connection.close()
    return version, objects


async def test_a_catalog_opened_again_holds_its_rows(path: Path, opened: Open) -> None:
    await filled(path, row("a"), row("b"))
    catalog = await opened(path)
    assert await catalog.heads() == {"a": 1, "b": 1}
    await catalog.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["catalog.db", "catalog.db-mark"]


@pytest.mark.parametrize("version", range(VERSION))
async def test_a_catalog_of_every_older_version_is_brought_up_to_date(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    for script in MIGRATIONS[:version]:
        connection.executescript(script)
    if version >= catalog_schema.HEAD_VERSION:
        connection.execute(catalog_schema.WRITE_HEAD, catalog_rows.head_values(0, 0))
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()
    await filled(path, row("a"))
    new = path.with_name("new.db")
    await filled(new, row("a"))
    assert schema(path) == schema(new)
    assert schema(path)[0] == VERSION


async def test_a_reader_of_an_older_version_is_told_who_migrates(path: Path) -> None:
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(UnusableFolder, match="version 0, this Sojourn reads version 1 and up"):
        await SqliteCatalog.open(path, read_only=True)


async def test_a_reader_reads_the_rows_of_a_catalog_that_lacks_the_newest_indexes(
    path: Path, opened: Open
) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(MIGRATIONS[0])
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    *values, _, record, _ = catalog_rows.to_sql(row("a", tier="recent"))
    values.append(record)
    connection.execute(f"INSERT INTO session VALUES ({', '.join('?' * len(values))})", values)
    connection.commit()
    connection.close()
    catalog = await opened(path, read_only=True)
    assert await catalog.page(CatalogQuery(tier=frozenset({"recent"}))) == [row("a", tier="recent")]
    assert await catalog.in_tier("recent", updated_before=NOON + timedelta(days=1), limit=1) == ["a"]


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_row_of_the_version_without_timers_keeps_its_checksum(
    path: Path, opened: Open, read_only: bool
) -> None:
    connection = sqlite3.connect(path)
    for script in MIGRATIONS[:3]:
        connection.executescript(script)
    connection.execute("PRAGMA user_version = 3")
    connection.execute(catalog_schema.WRITE_HEAD, catalog_rows.head_values(0, 0))
    *values, _, record, checksum = catalog_rows.to_sql(row("a"))
    values += [record, checksum]
    connection.execute(f"INSERT INTO session VALUES ({', '.join('?' * len(values))})", values)
    connection.commit()
    connection.close()
    catalog = await opened(path, read_only=read_only)
    assert await catalog.damaged_rows() == []
    assert await catalog.page(CatalogQuery()) == [row("a")]
    if not read_only:
        await catalog.put([row("a", seq=2, next_due_at=NOON)])
        assert await catalog.due(before=NOON + timedelta(days=1), after=None, limit=1) == [(NOON, "a")]
        assert await catalog.damaged_rows() == []


async def test_finding_the_sessions_that_are_due_reads_an_index_and_no_table(
    path: Path, opened: Open
) -> None:
    await opened(path)
    connection = sqlite3.connect(path)
    plan = connection.execute(f"EXPLAIN QUERY PLAN {catalog_schema.DUE}", (0, 0, "", 1)).fetchall()
    connection.close()
    assert [step[-1].split("(")[0].strip() for step in plan] == [
        "SEARCH session USING COVERING INDEX session_by_due"
    ]


async def test_a_newer_version_is_left_alone(path: Path) -> None:
    await filled(path, row("a"))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(UnusableFolder, match=rf"version 99.*up to {VERSION}.*newer Sojourn"):
            await SqliteCatalog.open(path, read_only=read_only)
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_damaged_and_can_be_built_anew(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    for read_only in (False, True):
        with pytest.raises(Damaged, match="built anew"):
            await SqliteCatalog.open(path, read_only=read_only)


async def test_a_schema_whose_names_are_no_text_is_damaged(path: Path) -> None:
    await filled(path, row("a"))
    data = path.read_bytes()
    data = data.replace(b"indexsession_by_epoch", b"indexsession_by_\xe9poch")
    path.write_bytes(data.replace(b"CREATE INDEX session_by_epoch", b"CREATE!INDEX session_by_epoch"))
    for read_only in (False, True):
        with pytest.raises(Damaged, match="built anew"):
            await SqliteCatalog.open(path, read_only=read_only)


async def test_a_schema_of_a_format_that_does_not_exist_is_damaged(path: Path) -> None:
    await filled(path, row("a"))
    data = bytearray(path.read_bytes())
    data[47] = 0x40  # https://sqlite.org/fileformat2.html#schema_format_number
    path.write_bytes(data)
    for read_only in (False, True):
        with pytest.raises(Damaged, match="built anew"):
            await SqliteCatalog.open(path, read_only=read_only)


async def test_a_damaged_page_is_damage_when_it_is_read(path: Path, opened: Open) -> None:
    # More than SQLite's cache holds, so that pages are read again.
    await filled(path, *(row(f"s{n}", record=b"x" * 3_000) for n in range(2_000)))
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 8] = b"\xff" * 8
    catalog = await opened(path, read_only=True)
    path.write_bytes(data)
    with pytest.raises(Damaged, match="built anew"):
        await catalog.page(CatalogQuery(limit=2_000))
    for read_only in (False, True):
        with pytest.raises(Damaged, match="built anew"):
            await opened(path, read_only=read_only)


async def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(UnusableFolder, match="nowhere"):
            await SqliteCatalog.open(tmp_path / "nowhere" / "catalog.db", read_only=read_only)


async def test_a_reader_beside_the_writer_sees_what_is_committed_and_writes_nothing(
    path: Path, opened: Open
) -> None:
    writer = await opened(path)
    await writer.put([row("a")])
    reader = await opened(path, read_only=True)
    await writer.put([row("b")])
    assert await reader.heads() == {"a": 1, "b": 1}
    with pytest.raises(UnusableFolder, match="read only"):
        await reader.put([row("c")])


async def test_a_cancelled_put_is_carried_out(path: Path, opened: Open) -> None:
    catalog = await opened(path)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await catalog.put([row("a"), row("b")])
    assert scope.cancelled_caught
    await catalog.put([row("c")])
    assert sorted(await catalog.heads()) == ["a", "b", "c"]


async def test_closing_waits_for_the_puts_whose_callers_have_gone(path: Path, opened: Open) -> None:
    catalog = await opened(path)
    async with anyio.create_task_group() as tasks:
        for n in range(10):
            tasks.start_soon(catalog.put, [row(f"s{n}")])
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    await catalog.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM session").fetchone() == (10,)
    connection.close()


async def test_a_put_that_fails_leaves_nothing_and_the_next_one_succeeds(path: Path, opened: Open) -> None:
    catalog = await opened(path)
    with pytest.raises(StoreUnavailable):
        await catalog.put([row("a"), row("b", title=None)])
    assert await catalog.heads() == {}
    await catalog.put([row("c")])
    assert await catalog.heads() == {"c": 1}


async def test_many_puts_at_once_are_each_whole(path: Path, opened: Open) -> None:
    catalog = await opened(path)
    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(catalog.put, [row(f"{n}-{part}") for part in range(3)])
    assert len(await catalog.heads()) == 60


@pytest.mark.parametrize(
    "query",
    [
        CatalogQuery(),
        CatalogQuery(before=(NOON, "x")),
        CatalogQuery(plan="nightly", before=(NOON, "x")),
        CatalogQuery(status=frozenset({"failed", "running"}), before=(NOON, "x")),
        CatalogQuery(tier=frozenset({"active"}), before=(NOON, "x")),
        CatalogQuery(tier=frozenset({"active", "recent"}), status=frozenset({"failed"})),
    ],
)
async def test_no_list_walks_or_sorts_all_rows(path: Path, query: CatalogQuery) -> None:
    await filled(path, *(row(f"s{n}", created_at=NOON + timedelta(seconds=n)) for n in range(10)))
    sql, values = catalog_schema.page_sql(query)
    connection = sqlite3.connect(path)
    plan = [detail for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    connection.close()
    assert any("USING INDEX session_by_" in step for step in plan), plan
    if query.status is None and query.tier is None:
        assert not [step for step in plan if "TEMP B-TREE" in step], plan


async def test_a_tier_is_walked_by_its_index(path: Path) -> None:
    await filled(path, *(row(f"s{n}") for n in range(10)))
    connection = sqlite3.connect(path)
    sql = f"EXPLAIN QUERY PLAN {catalog_schema.IN_TIER_AT_REST}"
    plan = [detail for *_, detail in connection.execute(sql, ("recent", 0, 9))]
    assert len(plan) == 1
    assert "COVERING INDEX session_by_tier_and_change" in plan[0]
    sql = f"EXPLAIN QUERY PLAN {catalog_schema.IN_TIER}"
    plan = [detail for *_, detail in connection.execute(sql, ("active", 0, 9))]
    assert "INDEX session_by_tier" in plan[0]
    connection.close()


async def test_a_switch_is_synced_and_a_put_is_not(path: Path, opened: Open) -> None:
    catalog = await opened(path)
    await catalog.put([row("a")])

    async def level() -> Any:
        assert catalog._writer is not None
        ((level,),) = await catalog._writer.execute_fetchall("PRAGMA synchronous")
        return level

    assert await catalog.switch(row("a", tier="recent"), from_tier="active")
    assert await level() == 2
    await catalog.put([row("b")])
    assert await level() == 1


async def test_a_reader_does_not_switch(path: Path, opened: Open) -> None:
    await filled(path, row("a"))
    catalog = await opened(path, read_only=True)
    with pytest.raises(UnusableFolder, match="read only"):
        await catalog.switch(row("a", tier="recent"), from_tier="active")


CHANGES: list[dict[str, Any]] = [
    {"seq": 2, "record": b'{"n": 2}', "updated_at": NOON + timedelta(seconds=1)},
    {"seq": 2, "title": "another"},
    {"seq": 2, "user_id": "bob", "outcome": "passed"},
    {"seq": 2, "status": "completed"},
    {"seq": 2, "plan": "weekly"},
    {"seq": 2, "tier": "recent"},
    {"seq": 2, "created_at": NOON - timedelta(days=1)},
    {"seq": 2, "next_due_at": NOON},
    {"seq": 1, "epoch": 2},
    {"title": "changed at the same seq"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: " ".join(change))
async def test_what_a_row_says_anew_is_read_by_every_way_to_it(
    path: Path, opened: Open, change: dict[str, Any]
) -> None:
    before = row("s", next_due_at=NOON - timedelta(days=2))
    after = evolve(before, **change)
    catalog = await opened(path)
    await catalog.put([before, row("other")])
    await catalog.put([after])
    assert await catalog.get("s") == after
    for query in (
        CatalogQuery(limit=9),
        CatalogQuery(limit=9, plan=after.plan),
        CatalogQuery(limit=9, status=frozenset({after.status})),
        CatalogQuery(limit=9, tier=frozenset({after.tier})),
        CatalogQuery(limit=9, tier=frozenset({after.tier}), status=frozenset({after.status})),
    ):
        assert after in await catalog.page(query)
    later = NOON + timedelta(days=1)
    assert "s" in await catalog.in_tier(after.tier, updated_before=later, limit=9)
    assert await catalog.due(before=later, after=None, limit=9) == [(after.next_due_at, "s")]
    await catalog.put([before])  # an older one, or the same again
    assert (await catalog.get("s") == after) == ("seq" in change or "epoch" in change)
    await catalog.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_progress_of_an_active_session_writes_its_row_and_no_index(path: Path, opened: Open) -> None:
    catalog = await opened(path)
    await catalog.put([row(f"s{n}") for n in range(500)])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    later = evolve(row("s7"), seq=2, updated_at=NOON + timedelta(hours=1))
    await catalog.put([later])
    ((_, pages, _),) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    connection.close()
    assert (await catalog.get("s7"), pages) == (later, 2)  # the page with the row, and the head


async def test_a_row_that_was_altered_is_made_right_by_the_same_row(path: Path, opened: Open) -> None:
    catalog = await opened(path)
    await catalog.put([row("s")])
    for change in ("plan = 'x'", "title = 'x'", "seq = 0", "checksum = 1", "record = x'00'", "status = 'x'"):
        connection = sqlite3.connect(path)
        with connection:
            connection.execute(f"UPDATE session SET {change}")
        connection.close()
        await catalog.put([row("s")])
        assert await catalog.get("s") == row("s")
