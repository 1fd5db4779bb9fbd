"""Sessions read from a data folder's files, without owning it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from ..actors.ports import CatalogQuery
from ..runtime.reader import Reader
from .source import PAGE, Event

# How often files are looked at when they are followed.
REFRESH_S = 0.5


@asynccontextmanager
async def open_folder(data_dir: Path) -> AsyncIterator["FolderSource"]:
    """Raises UnusableFolder where there is nothing to read."""
    async with Reader.open(data_dir) as reader:
        yield FolderSource(reader, str(data_dir.resolve()))


class FolderSource:
    """A data folder's files, without owning it."""

    def __init__(self, reader: Reader, place: str) -> None:
        self.place = place
        self._reader = reader

    async def sessions(self, *, plan: str | None, statuses: frozenset[str]) -> AsyncIterator[dict[str, Any]]:
        query = CatalogQuery(limit=PAGE, plan=plan, status=statuses or None)
        async for record in self._reader.walk(query):
            yield _plain(record)

    async def record(self, session_id: str) -> dict[str, Any]:
        return _plain(await self._reader.record(session_id))

    async def state(self, session_id: str) -> dict[str, Any]:
        _, state = await self._reader.state(session_id)
        document: dict[str, Any] = msgspec.json.decode(state)
        return document

    async def events(self, session_id: str, *, after: int) -> AsyncIterator[Event]:
        async for line in self._reader.events(session_id, after=after):
            yield Event(line.seq, line.type, line.line)

    async def follow(self, session_id: str, *, after: int) -> AsyncIterator[Event]:
        while True:
            async for event in self.events(session_id, after=after):
                after = event.seq
                yield event
            await anyio.sleep(REFRESH_S)
            await self._reader.refresh()


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(record)
    return plain
