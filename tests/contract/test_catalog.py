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

    async def test_a_query_selects_by_tier(self, catalog: Catalog) -> None:
        await catalog.put(
            [
                row("a", age_s=1, tier="recent", status="failed"),
                row("b", age_s=2, tier="active", status="failed"),
                row("c", age_s=3, tier="recent", status="running"),
                row("d", age_s=4, tier="archive", status="failed"),
            ]
        )
        two = frozenset({"recent", "archive"})
        failed = frozenset({"failed"})
        assert ids(await catalog.page(CatalogQuery(tier=two))) == ["a", "c", "d"]
        assert ids(await catalog.page(CatalogQuery(tier=two, limit=2))) == ["a", "c"]
        assert ids(await catalog.page(CatalogQuery(tier=two, status=failed))) == ["a", "d"]
        assert ids(await catalog.page(CatalogQuery(tier=two, status=failed, plan="other"))) == []
        assert ids(await catalog.page(CatalogQuery(tier=frozenset()))) == []
        assert ids(await catalog.page(CatalogQuery(tier=frozenset(), status=failed))) == []

    async def test_a_switch_replaces_the_row_of_that_tier_and_seq(self, catalog: Catalog) -> None:
        await catalog.put([row("a", seq=7, epoch=3), row("b")])
        moved = row("a", seq=7, epoch=2, tier="recent", record=b"moved")
        assert await catalog.switch(moved, from_tier="active")
        assert await catalog.get("a") == moved
        assert await catalog.get("b") == row("b")

    async def test_the_same_switch_again_is_granted_and_changes_nothing(self, catalog: Catalog) -> None:
        await catalog.put([row("a")])
        for _ in range(2):
            assert await catalog.switch(row("a", tier="recent"), from_tier="active")
        assert await catalog.get("a") == row("a", tier="recent")

    @pytest.mark.parametrize(
        "stands",
        [
            row("a", seq=8),
            row("a", seq=6),
            row("a", seq=7, tier="recent", record=b"another"),
            row("a", seq=7, tier="archive"),
            row("b", seq=7),
        ],
        ids=["newer", "older", "of another's making", "further on", "not there"],
    )
    async def test_a_switch_from_what_does_not_stand_there_changes_nothing(
        self, catalog: Catalog, stands: CatalogRow
    ) -> None:
        await catalog.put([stands])
        assert not await catalog.switch(row("a", seq=7, tier="recent"), from_tier="active")
        assert await catalog.page(CatalogQuery()) == [stands]

    async def test_a_row_of_an_earlier_tier_is_left_out(self, catalog: Catalog) -> None:
        """I8. A projector that lags does not bring a session back."""
        await catalog.put([row("a", tier="recent"), row("b", tier="archive")])
        await catalog.put([row("a", epoch=9, seq=9), row("b", tier="recent", epoch=9), row("c")])
        assert await catalog.get("a") == row("a", tier="recent")
        assert await catalog.get("b") == row("b", tier="archive")
        assert await catalog.get("c") == row("c")
        await catalog.put([row("a", tier="recent", title="named anew")])
        assert await catalog.get("a") == row("a", tier="recent", title="named anew")

    async def test_a_tier_is_met_longest_unchanged_first(self, catalog: Catalog) -> None:
        def changed(session_id: str, seconds: int, tier: str = "recent") -> CatalogRow:
            return row(session_id, tier=tier, updated_at=NOON + timedelta(seconds=seconds))

        await catalog.put([changed("new", 5), changed("b", 1), changed("a", 1), changed("old", 0)])
        await catalog.put([changed("active", 0, "active"), changed("archived", 0, "archive")])
        late = NOON + timedelta(seconds=5)
        assert await catalog.in_tier("recent", updated_before=late, limit=9) == ["old", "a", "b"]
        assert await catalog.in_tier("recent", updated_before=late, limit=2) == ["old", "a"]
        assert await catalog.in_tier("recent", updated_before=NOON, limit=9) == []

    async def test_sessions_are_met_in_the_order_in_which_they_are_due(self, catalog: Catalog) -> None:
        def due(session_id: str, seconds: int) -> CatalogRow:
            return row(session_id, next_due_at=NOON + timedelta(seconds=seconds))

        await catalog.put([due("late", 9), due("b", 1), due("a", 1), due("past", -9), row("never")])
        late, places = NOON + timedelta(seconds=9), list[str]()
        after = None
        while page := await catalog.due(before=late, after=after, limit=1):
            (after,) = page
            places.append(after[1])
        assert places == ["past", "a", "b"]
        assert await catalog.due(before=late, after=None, limit=9) == [
            (NOON - timedelta(seconds=9), "past"),
            (NOON + timedelta(seconds=1), "a"),
            (NOON + timedelta(seconds=1), "b"),
        ]

    async def test_a_session_is_due_when_its_last_row_says(self, catalog: Catalog) -> None:
        await catalog.put([row("a", next_due_at=NOON), row("b", next_due_at=NOON), row("c")])
        later = row("a", seq=2, next_due_at=NOON + timedelta(days=9, microseconds=1))
        await catalog.put([later, row("b", seq=2), row("c", seq=2, next_due_at=NOON)])
        assert await catalog.get("a") == later
        assert ids(await catalog.page(CatalogQuery())) == ["c", "b", "a"]
        day = NOON + timedelta(days=1)
        assert await catalog.due(before=day, after=None, limit=9) == [(NOON, "c")]
        moved = row("c", seq=2, tier="recent")
        assert await catalog.switch(moved, from_tier="active")
        assert await catalog.due(before=day, after=None, limit=9) == []

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
        with pytest.raises(NotOpen):
            await catalog.switch(row("a", tier="recent"), from_tier="active")
        with pytest.raises(NotOpen):
            await catalog.in_tier("active", updated_before=NOON, limit=1)
        with pytest.raises(NotOpen):
            await catalog.due(before=NOON, after=None, limit=1)


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
