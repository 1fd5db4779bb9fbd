"""Where the reading commands read from: a data folder or a server, in one shape.

Everything a source gives is JSON as docs/protocol.md has it: times are strings.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from ..actors.errors import CallerError, NoSuchSession
from ..runtime.paths import api_socket_path, default_data_dir

if TYPE_CHECKING:
    from ..runtime.history.export import Format

PAGE = 500

_SESSION_ID = re.compile(r"sess_[0-9a-f]{32}\Z")
_NEWEST = re.compile(r"last(?:~([0-9]+))?\Z")


class AmbiguousId(CallerError):
    """An abbreviated id fits several sessions."""

    code = "ambiguous_id"


@frozen
class Event:
    """A stored event, as a line of JSON, with what every reader of it needs."""

    seq: int
    type: str
    line: bytes


class Source(Protocol):
    """Reads sessions. Errors are SojournErrors that say cause and remedy."""

    place: str

    def sessions(self, *, plan: str | None, statuses: frozenset[str]) -> AsyncIterator[dict[str, Any]]:
        """Public records, newest first, as far as they are asked for. No status: all of them."""
        ...

    async def record(self, session_id: str) -> dict[str, Any]: ...

    async def state(self, session_id: str) -> dict[str, Any]: ...

    def events(self, session_id: str, *, after: int) -> AsyncIterator[Event]:
        """The events above `after` that there are now."""
        ...

    def export(self, session_id: str, kind: "Format") -> AsyncIterator[bytes]:
        """The session as a file, in chunks. Where it raises, what came is not all of it."""
        ...

    def follow(self, session_id: str, *, after: int) -> AsyncIterator[Event]:
        """The events above `after`, then those that come, for ever: each once, in order, over broken connections."""
        ...


@asynccontextmanager
async def open_source(
    data: Path | None,
    server: str | None,
    token: str | None,
    *,
    log_level: str = "info",
    archive: str | None = None,
) -> AsyncIterator[Source]:
    """The server at `server`; else the one that answers on the data folder's socket, which knows signs of life; else the
    folder's files. `log_level` is for what is found wrong in those, `archive` as in the settings. Raises UnusableFolder, ServerUnreachable."""
    # Imported where they are needed: the drivers of the one, or the HTTP client of the other, are a fifth of a second.
    if server is not None:
        if data is not None:
            raise CallerError("--data and --server exclude each other; give one of them")
        from .source_server import open_server

        async with open_server(server, token) as source:
            yield source
        return
    data_dir = data if data is not None else default_data_dir()
    if api_socket_path(data_dir).exists():
        from .source_server import open_owner

        async with open_owner(data_dir, token) as owner:
            if owner is not None:
                yield owner
                return
    from .source_folder import open_folder

    async with open_folder(data_dir, log_level, archive) as files:
        yield files


async def resolve(source: Source, name: str) -> str:
    """The session id that `name` stands for: an id, the beginning or end of one, `last`, or `last~N` for the Nth before.

    Raises:
        NoSuchSession: none fits. AmbiguousId: several do.
    """
    if _SESSION_ID.match(name):
        return name
    if newest := _NEWEST.match(name):
        left = int(newest[1] or 0)
        async for record in source.sessions(plan=None, statuses=frozenset()):
            if not left:
                return str(record["session_id"])
            left -= 1
        raise NoSuchSession(name)
    part = name.removeprefix("sess_").lower()
    found: list[str] = []
    async for record in source.sessions(plan=None, statuses=frozenset()):
        digits = record["session_id"].removeprefix("sess_")
        if part and (digits.startswith(part) or digits.endswith(part)):
            found.append(record["session_id"])
    if not found:
        raise NoSuchSession(name)
    if len(found) > 1:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise AmbiguousId(f"{name!r} fits {len(found)} sessions ({shown}); give more of the id")
    return found[0]
