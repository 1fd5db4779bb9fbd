"""Sessions read from a data folder's files, without owning it."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from ..actors.ports import CatalogQuery
from ..runtime.history.export import Format, Subject, export
from ..runtime.live import Line
from ..runtime.reader import Reader
from ..runtime.telemetry import configure_logging
from .source import PAGE, Event

# How often files are looked at when they are followed.
REFRESH_S = 0.5


@asynccontextmanager
async def open_folder(
    data_dir: Path, log_level: str = "info", archive: str | None = None
) -> AsyncIterator["FolderSource"]:
    """What is found wrong is logged from `log_level` on. Raises UnusableFolder where there is nothing to read."""
    configure_logging(level=log_level)
    async with Reader.open(data_dir, archive=archive) as reader:
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

    async def export(self, session_id: str, kind: Format) -> AsyncIterator[bytes]:
        record = await self._reader.record(session_id)
        # A live owner's catalog may be ahead of what was read of its journal.
        await self._reader.refresh()
        seq, state = await self._reader.state(session_id)
        if record["seq"] != seq:
            record = await self._reader.record(session_id)
        subject = Subject(record=record, seq=seq, state=state)
        async for chunk in export(kind, subject, self._all_events(session_id)):
            yield chunk

    async def _all_events(self, session_id: str) -> AsyncGenerator[Line]:
        async for line in self._reader.events(session_id):
            yield line

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
