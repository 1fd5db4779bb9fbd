"""Where the objects of a session lie, and who may write them: with the recent ones until it is archived."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from attrs import frozen

from ..actors.ports import Catalog, Journal, Objects

ACTIVE, RECENT, ARCHIVE = "active", "recent", "archive"


@frozen(kw_only=True)
class Shelf:
    """Where a session's objects are, and its last seq as journal or catalog knows it (0: neither knows it)."""

    objects: Objects
    tier: str
    seq: int


class Shelves:
    """The two stores of objects. `recent` holds those of active and recent sessions alike."""

    def __init__(
        self, *, journal: Journal, catalog: Catalog | None, recent: Objects, archive: Objects
    ) -> None:
        self._journal = journal
        self._catalog = catalog
        self._writing: dict[str, anyio.Event] = {}
        self.recent = recent
        self.archive = archive

    async def find(self, session_id: str) -> Shelf:
        """A session in the journal's care is active, and one that nobody lists too."""
        head = self._journal.heads().get(session_id)
        if head is not None or self._catalog is None:
            return Shelf(objects=self.recent, tier=ACTIVE, seq=head or 0)
        row = await self._catalog.get(session_id)
        if row is None:
            return Shelf(objects=self.recent, tier=ACTIVE, seq=0)
        return Shelf(objects=self.archive if row.tier == ARCHIVE else self.recent, tier=row.tier, seq=row.seq)

    async def has_left(self, session_id: str, tier: str) -> bool:
        """Whether the session was moved on from this tier: what was not found there has to be looked for once more, since
        its objects go where it goes. Sessions move two times at most."""
        return (await self.find(session_id)).tier != tier

    def is_taken(self, session_id: str) -> bool:
        """Whether `alone` would wait: of many sessions at once compaction holds each until all are done."""
        return session_id in self._writing

    @asynccontextmanager
    async def alone(self, session_id: str) -> AsyncIterator[None]:
        """One at a time writes and deletes a session's objects: its snapshots, compaction, and moves between tiers."""
        while (other := self._writing.get(session_id)) is not None:
            await other.wait()
        mine = self._writing[session_id] = anyio.Event()
        try:
            yield
        finally:
            del self._writing[session_id]
            mine.set()
