"""What every catalog must do, whatever it is made of."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from sojourn.actors.errors import NotOpen
from sojourn.actors.ports import Catalog, CatalogQuery, CatalogRow
from sojourn.runtime.stores.catalog_sqlite import SqliteCatalog
from sojourn.runtime.stores.memory import MemoryCatalog

pytestmark = pytest.mark.anyio
NOON = datetime(2026, 11, 22, 12, 0, 0, 123_456, tzinfo=UTC)


def row(session_id: str, *, age_s: float = 0, **fields: Any) -> CatalogRow:
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
        created_at=NOON - timedelta(seconds=age_s),
        updated_at=NOON,
        record=b'{"session_id":"..."}',
    )
    return evolve(plain, **fields)


def ids(rows: list[CatalogRow]) -> list[str]:
    return [one.session_id for one in rows]


class CatalogContract:
    async def test_a_row_comes_back_as_it_was_put(self, catalog: Catalog) -> None:
        ended = row("b", outcome="passed", title='"; DROP TABLE session; --', record=b"\0\xff")
        await catalog.put([row("a"), ended])
        assert await catalog.get("a") == row("a")
        assert await catalog.get("b") == ended
        assert await catalog.get("c") is None

    async def test_times_are_the_same_moment_to_the_microsecond(self, catalog: Catalog) -> None:
        early = datetime(1969, 7, 20, 20, 17, 40, 1, tzinfo=UTC)
        east = NOON.astimezone(timezone(timedelta(hours=9)))
        await catalog.put([row("a", created_at=early, updated_at=east)])
        found = await catalog.get("a")
        assert found is not None
        assert (found.created_at, found.updated_at) == (early, NOON)

    async def test_a_newer_row_replaces_an_older_one(self, catalog: Catalog) -> None:
        await catalog.put([row("a", seq=3)])
        await catalog.put([row("a", seq=4, status="paused")])
        await catalog.put([row("a", seq=1, epoch=2, status="failed")])
        assert await catalog.get("a") == row("a", seq=1, epoch=2, status="failed")

    async def test_an_older_row_is_left_out_and_the_others_are_put(self, catalog: Catalog) -> None:
        await catalog.put([row("a", seq=3, epoch=2)])
        await catalog.put([row("a", seq=2, epoch=2), row("b"), row("a", seq=9, epoch=1)])
        assert await catalog.get("a") == row("a", seq=3, epoch=2)
        assert await catalog.get("b") == row("b")

    async def test_the_same_row_may_be_put_again(self, catalog: Catalog) -> None:
        await catalog.put([row("a", title="first")])
        await catalog.put([row("a", title="second")])
        found = await catalog.get("a")
        assert found is not None
        assert found.title == "second"

    async def test_pages_are_newest_first_and_by_id_at_one_moment(self, catalog: Catalog) -> None:
        await catalog.put([row("old", age_s=9), row("a"), row("c"), row("b"), row("mid", age_s=5)])
        assert ids(await catalog.page(CatalogQuery())) == ["c", "b", "a", "mid", "old"]

    async def test_a_walk_meets_every_row_once_while_others_come(self, catalog: Catalog) -> None:
        standing = [row(f"s{n:02}", age_s=n // 3) for n in range(20)]
        await catalog.put(standing)
        met: list[CatalogRow] = []
        before = None
        while page := await catalog.page(CatalogQuery(limit=3, before=before)):
            met += page
            before = (page[-1].created_at, page[-1].session_id)
            await catalog.put([row(f"new{len(met)}", age_s=-1)])
        assert sorted(ids(met)) == ids(standing)

    async def test_a_query_selects_by_plan_and_status(self, catalog: Catalog) -> None:
        await catalog.put(
            [
                row("a", age_s=1, plan="x", status="running"),
                row("b", age_s=2, plan="x", status="failed"),
                row("c", age_s=3, plan="y", status="failed"),
                row("d", age_s=4, plan="x", status="paused"),
            ]
        )
        assert ids(await catalog.page(CatalogQuery(plan="x"))) == ["a", "b", "d"]
        assert ids(await catalog.page(CatalogQuery(plan="z"))) == []
        both = frozenset({"failed", "running"})
        assert ids(await catalog.page(CatalogQuery(status=both))) == ["a", "b", "c"]
        assert ids(await catalog.page(CatalogQuery(status=both, limit=2))) == ["a", "b"]
        assert ids(await catalog.page(CatalogQuery(status=both, plan="x"))) == ["a", "b"]
        after_a = (NOON - timedelta(seconds=1), "a")
        assert ids(await catalog.page(CatalogQuery(status=both, before=after_a, limit=1))) == ["b"]
        assert ids(await catalog.page(CatalogQuery(status=frozenset()))) == []

    async def test_heads_and_epoch_tell_of_all_rows(self, catalog: Catalog) -> None:
        assert (await catalog.heads(), await catalog.epoch()) == ({}, 0)
        await catalog.put([row("a", seq=7, epoch=3), row("b", seq=2, epoch=9)])
        assert (await catalog.heads(), await catalog.epoch()) == ({"a": 7, "b": 2}, 9)

    async def test_putting_nothing_does_nothing(self, catalog: Catalog) -> None:
        await catalog.put([])
        assert await catalog.page(CatalogQuery()) == []

    async def test_a_closed_catalog_does_nothing(self, catalog: Catalog) -> None:
        await catalog.close()
        await catalog.close()
        with pytest.raises(NotOpen):
            await catalog.put([row("a")])
        with pytest.raises(NotOpen):
            await catalog.get("a")


class TestMemoryCatalog(CatalogContract):
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def catalog(self) -> Catalog:
        return MemoryCatalog()


class TestSqliteCatalog(CatalogContract):
    @pytest.fixture
    async def catalog(self, anyio_backend: str, tmp_path: Path) -> AsyncIterator[Catalog]:
        catalog = await SqliteCatalog.open(tmp_path / "catalog.db")
        yield catalog
        await catalog.close()
