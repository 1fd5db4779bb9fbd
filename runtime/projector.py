"""Keeps the catalog level with the journal: a projection, a moment behind, that can always be caught up."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import anyio
import structlog
from anyio.lowlevel import checkpoint
from attrs import evolve

from ..actors.errors import CallerError, Damaged, IntensityExceeded, StoreError
from ..actors.ports import Catalog, CatalogQuery, CatalogRow
from ..actors.session.record import encode_record
from .resting import Rest

log = structlog.get_logger("sojourn.catalog")

INTERVAL_S = 5.0
ROWS_A_WRITE = 500
# Nobody waits for what is written every few seconds: it goes in slices of a fifth of a millisecond here and one in SQLite, and
# takes a third of the time, while it lasts. At 500 rows a write, p99 of what 10,000 sessions were asked meanwhile was 2.8 times
# that of 100; all at once, who asked was held up for a second.
ROWS_A_SLICE = 8
REST_FACTOR = 2.0


class CatalogProjector:
    """Collects which sessions changed and writes their rows every few seconds, however often they change.

    Args:
        read: the public record of a session, durable as it is; None where there is none to list.
    """

    def __init__(self, catalog: Catalog, read: Callable[[str], Awaitable[dict[str, Any] | None]]) -> None:
        self._catalog = catalog
        self._read = read
        self._dirty: set[str] = set()
        self._flushing = anyio.Lock()
        self._waited_for = 0  # by whom

    @property
    def behind(self) -> int:
        """How many sessions' rows are older than their state."""
        return len(self._dirty)

    def is_behind(self, session_id: str) -> bool:
        """Whether the session's row is older than its state, and not being written."""
        return session_id in self._dirty

    def mark(self, session_ids: Sequence[str]) -> None:
        """These have changed; called for every commit."""
        self._dirty.update(session_ids)

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor; runs until cancelled, and then writes what is left."""
        started()
        try:
            while True:
                await anyio.sleep(INTERVAL_S)
                await self._flushes()
        finally:
            with anyio.move_on_after(3, shield=True), self._in_a_hurry():
                await self._flushes()

    async def _flushes(self) -> None:
        try:
            await self.level()
        except (StoreError, CallerError) as error:
            log.error(
                "catalog.behind", sessions=self.behind, error=str(error), remedy="it is caught up later"
            )

    async def flush(self) -> None:
        """On return the catalog shows everything that was marked before the call. Raises StoreError; nothing is
        forgotten then."""
        with self._in_a_hurry():
            await self.level()

    async def level(self) -> None:
        """As `flush`, for those who are not in a hurry: seconds, where ten thousands of sessions have changed."""
        async with self._flushing:
            dirty, self._dirty = self._dirty, set()
            pending = sorted(dirty)
            try:
                while pending:
                    rest = Rest(REST_FACTOR)
                    size = ROWS_A_WRITE if self._waited_for else ROWS_A_SLICE
                    await self._catalog.put(await self._rows(pending[:size]))
                    del pending[:size]
                    if pending and not self._waited_for:
                        await rest()
            finally:
                self._dirty.update(pending)

    @contextmanager
    def _in_a_hurry(self) -> Iterator[None]:
        """Somebody waits for it."""
        self._waited_for += 1
        try:
            yield
        finally:
            self._waited_for -= 1

    async def page(self, query: CatalogQuery) -> list[CatalogRow]:
        """A page that shows everything that was marked before the call, be the catalog writable or not."""
        ahead = {}
        try:
            await self.flush()
        except StoreError as error:
            log.warning(
                "catalog.read_around",
                error=str(error),
                remedy="none is needed: lists come from the journal until it is caught up",
            )
            with self._in_a_hurry():
                ahead = {row.session_id: row for row in await self._rows(sorted(self._dirty))}
        return await merged_page(self._catalog, query, ahead)

    async def _rows(self, session_ids: Sequence[str]) -> list[CatalogRow]:
        """Those that there are. A session that has just left memory is not waited for, so others get their turn here."""
        rows = []
        for number, session_id in enumerate(session_ids, 1):
            row = await self._row(session_id)
            if row is not None:
                rows.append(row)
            if number % ROWS_A_SLICE == 0:
                await checkpoint()
        return rows

    async def _row(self, session_id: str) -> CatalogRow | None:
        try:
            record = await self._read(session_id)
        except (Damaged, IntensityExceeded) as error:
            # One session that cannot be read keeps its old row, and the others are listed all the same.
            log.error(
                "catalog.row_left_as_it_was",
                session=session_id,
                error=str(error),
                remedy="lists show it as it was; `sojourn doctor` says what is damaged",
            )
            return None
        return catalog_row(record) if record is not None else None


def catalog_row(record: dict[str, Any]) -> CatalogRow:
    """The row of a public record."""
    return CatalogRow(
        session_id=record["session_id"],
        seq=record["seq"],
        epoch=record["epoch"],
        tier=record["tier"],
        status=record["status"],
        outcome=record["outcome"],
        plan=record["plan"],
        title=record["title"],
        user_id=record["user_id"],
        created_at=record["created_at"],
        updated_at=record["updated_at"],
        record=encode_record(record),
        next_due_at=record["next_due_at"],
    )


async def merged_page(
    catalog: Catalog | None, query: CatalogQuery, ahead: Mapping[str, CatalogRow]
) -> list[CatalogRow]:
    """A page of a catalog that lags: the rows of `ahead` stand in for the catalog's own of the same sessions."""
    rows = [row for row in ahead.values() if _selects(query, row)]
    before = query.before
    found = 0
    # Rows that are overtaken are left out here, so one page of the catalog may not be enough.
    while catalog is not None and found < query.limit:
        page = await catalog.page(evolve(query, before=before))
        current = [row for row in page if row.session_id not in ahead]
        rows += current
        found += len(current)
        if len(page) < query.limit:
            break
        before = place(page[-1])
    rows.sort(key=place, reverse=True)
    return rows[: query.limit]


def place(row: CatalogRow) -> tuple[datetime, str]:
    """Where a row stands in a list."""
    return row.created_at, row.session_id


def _selects(query: CatalogQuery, row: CatalogRow) -> bool:
    return (
        (query.plan is None or row.plan == query.plan)
        and (query.status is None or row.status in query.status)
        and (query.tier is None or row.tier in query.tier)
        and (query.before is None or place(row) < query.before)
    )
