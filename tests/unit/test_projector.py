"""The catalog is caught up in slices with rests between them, and at once where somebody waits for it."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sojourn.actors.ports import CatalogQuery, CatalogRow
from sojourn.runtime.projector import REST_FACTOR, ROWS_A_SLICE, ROWS_A_WRITE, CatalogProjector
from sojourn.runtime.stores.memory import MemoryCatalog

from ..support.virtual import NOON

pytestmark = pytest.mark.trio
WRITE_S = 0.001
CHANGED = [f"s{number:04}" for number in range(2_000)]


class Slow(MemoryCatalog):
    """Notes how many rows each write had."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[int] = []

    async def put(self, rows: Sequence[CatalogRow]) -> None:
        await trio.sleep(WRITE_S)
        self.writes.append(len(rows))
        await super().put(rows)


async def record(session_id: str) -> dict[str, Any]:
    absent = dict.fromkeys(["outcome", "user_id", "next_due_at"])
    names = {"session_id": session_id, "tier": "active", "status": "running", "plan": "p", "title": "t"}
    return {**absent, **names, "seq": 1, "epoch": 1, "created_at": NOON, "updated_at": NOON}


async def test_who_does_not_hurry_leaves_others_two_thirds_of_the_time(autojump_clock: MockClock) -> None:
    catalog = Slow()
    projector = CatalogProjector(catalog, record)
    projector.mark(CHANGED)
    began = trio.current_time()
    await projector.level()
    assert set(catalog.writes) == {ROWS_A_SLICE}
    slices = len(CHANGED) / ROWS_A_SLICE
    assert trio.current_time() - began == pytest.approx(WRITE_S * (slices + (slices - 1) * REST_FACTOR))
    assert projector.behind == 0
    assert (await catalog.heads()).keys() == set(CHANGED)


async def test_a_list_that_is_asked_for_meanwhile_has_the_rest_written_at_once(
    autojump_clock: MockClock,
) -> None:
    catalog = Slow()
    projector = CatalogProjector(catalog, record)
    projector.mark(CHANGED)
    async with trio.open_nursery() as tasks:
        tasks.start_soon(projector.level)
        await trio.sleep(10 * WRITE_S)
        assert projector.is_behind(CHANGED[-1]) is False  # it is being written
        page = await projector.page(CatalogQuery(limit=len(CHANGED)))
        assert [row.session_id for row in page] == CHANGED[::-1]
    assert max(catalog.writes) == ROWS_A_WRITE
    assert len(catalog.writes) < 12
