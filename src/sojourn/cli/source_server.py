"""Sessions read from a server, over the data folder's socket or its address."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from ..client import ServerClient, ServerProblem, ServerUnreachable, is_listening
from ..runtime.paths import api_socket_path
from .source import PAGE, Event

# How long a stream that broke is tried again: about half a minute.
RETRY_FIRST_S = 0.25
RETRY_MAX_S = 5.0
RETRIES_MAX = 8


@asynccontextmanager
async def open_server(url: str, token: str | None) -> AsyncIterator["ServerSource"]:
    """The server at `url`. Raises ServerUnreachable: that is no address."""
    async with ServerClient(url=url, token=token) as client:
        yield ServerSource(client, client.address)


@asynccontextmanager
async def open_owner(data_dir: Path, token: str | None) -> AsyncIterator["ServerSource | None"]:
    """The server that owns `data_dir`, or None where none answers on the folder's socket."""
    socket_path = api_socket_path(data_dir)
    if not is_listening(socket_path):
        yield None
        return
    async with ServerClient(socket_path=socket_path, token=token) as client:
        yield ServerSource(client, str(data_dir.resolve())) if await client.is_ready() else None


class ServerSource:
    """A server, over its socket or its address."""

    def __init__(self, client: ServerClient, place: str) -> None:
        self.place = place
        self._client = client

    async def sessions(self, *, plan: str | None, statuses: frozenset[str]) -> AsyncIterator[dict[str, Any]]:
        cursor: str | None = None
        params: dict[str, str | int] = {"limit": PAGE}
        if plan is not None:
            params["plan"] = plan
        if statuses:
            params["status"] = ",".join(sorted(statuses))
        while True:
            if cursor is not None:
                params["cursor"] = cursor
            answer = await self._client.request("GET", "/sessions", params=params)
            page = msgspec.json.decode(answer.content)
            for record in page["items"]:
                yield record
            cursor = page["next"]
            if cursor is None:
                return

    async def statistics(self, sessions_max: int) -> dict[str, Any]:
        """What the runtime says of itself, with so many of its sessions."""
        answer = await self._client.request("GET", "/statistics", params={"limit": sessions_max})
        statistics: dict[str, Any] = msgspec.json.decode(answer.content)
        return statistics

    async def record(self, session_id: str) -> dict[str, Any]:
        return await self._client.session(session_id)

    async def state(self, session_id: str) -> dict[str, Any]:
        answer = await self._client.request("GET", f"/sessions/{session_id}/state")
        state: dict[str, Any] = msgspec.json.decode(answer.content)
        return state

    async def events(self, session_id: str, *, after: int) -> AsyncIterator[Event]:
        async for event in self._client.events(session_id, after=after, page=PAGE):
            yield _event(event)

    def export(self, session_id: str, kind: str) -> AsyncIterator[bytes]:
        return self._client.export(session_id, kind)

    async def follow(self, session_id: str, *, after: int) -> AsyncIterator[Event]:
        """Raises ServerUnreachable when the server stays away, and what it answers when it is back otherwise."""
        failures = 0
        place: str | None = None
        while True:
            try:
                asked = after if place is None else None
                async for frame in self._client.stream(session_id, after=asked, last_event_id=place):
                    failures = 0
                    place = frame.id
                    if frame.type != "rewound":
                        yield _event(frame.data)
                # A server that stops ends its streams in order: it may be back.
            except (ServerUnreachable, ServerProblem) as error:
                failures += 1
                passing = isinstance(error, ServerUnreachable) or error.status in (429, 503)
                if failures > RETRIES_MAX or not passing:
                    raise
            await anyio.sleep(min(RETRY_MAX_S, RETRY_FIRST_S * 2.0**failures))


def _event(document: dict[str, Any]) -> Event:
    # Canonical JSON again: what is stored, byte for byte.
    return Event(document["seq"], document["type"], msgspec.json.encode(document, order="deterministic"))
