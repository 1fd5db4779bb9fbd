"""A session's events: the history in pages, and the live stream."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from attrs import frozen
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ...actors.session.commands import KIND_BY_EVENT
from ...runtime.live import Line
from ...runtime.runtime import Runtime
from ..answers import Answer
from ..body import NDJSON
from ..problems import InvalidRequest
from ..query import SEQ_MAX, Query
from ..stream import EventStream, rewound_frame, snapshot_frame
from .sessions import existing

PAGE_EVENTS = 1_000
PAGE_EVENTS_MAX = 10_000
# A page ends here at the latest (`next` says where to go on): 10,000 events of 64 KiB would be 640 MB.
PAGE_BYTES_MAX = 4 * 1024 * 1024
CHUNK_BYTES = 64 * 1024
_EVENT_ID = re.compile(r"([0-9]{1,16})\.([0-9]{1,16})\Z")


async def list_events(request: Request, runtime: Runtime) -> Response:
    """`GET /sessions/{id}/events?after=&limit=&types=`: a page as JSON, or one event a line as NDJSON."""
    session_id = existing(request)
    query = Query(request, "after", "limit", "types")
    after = query.number("after", 0, low=0, high=SEQ_MAX)
    limit = query.number("limit", PAGE_EVENTS, low=1, high=PAGE_EVENTS_MAX)
    types = query.names("types", KIND_BY_EVENT)
    if NDJSON in request.headers.get("accept", ""):
        chunks = _chunks(runtime, session_id, after, limit, types)
        first = await anext(chunks, b"")  # raises before the answer has begun where there is no such session
        return StreamingResponse(_chain(first, chunks), media_type=NDJSON)
    items: list[bytes] = []
    size = last_seq = 0
    following = b"null"
    async with aclosing(_selected(runtime, session_id, after, types)) as lines:
        async for line in lines:
            if len(items) == limit or size + len(line.line) > PAGE_BYTES_MAX > size > 0:
                following = b"%d" % last_seq
                break
            items.append(line.line)
            size += len(line.line)
            last_seq = line.seq
    body = b'{"items":[' + b",".join(items) + b'],"next":' + following + b"}"
    return Answer(body, b"application/json")


async def stream(request: Request, runtime: Runtime) -> Response:
    """`GET /sessions/{id}/stream?after=&until=end`, `Last-Event-ID`: server-sent events (docs/protocol.md)."""
    session_id = existing(request)
    query = Query(request, "after", "until")
    until = query.text("until")
    if until not in (None, "end"):
        raise InvalidRequest("parameter", "until", f"got {until!r}; it can only be end"[:300])
    asked = _asked_place(request, query)
    if asked is None:
        record, seq, state = await runtime.snapshot(session_id)
        opening = snapshot_frame(record["epoch"], seq, record, state)
    else:
        record = await runtime.record(session_id)
        epoch, seq = await _standing_place(runtime, session_id, asked, record)
        opening = rewound_frame(epoch, asked.seq, seq) if seq != asked.seq else b""
    return EventStream(
        request.scope["app"].streams,
        runtime,
        session_id,
        opening=opening,
        after=seq,
        until_end=until == "end",
        ended=record["ended_at"] is not None,
    )


@frozen
class _Place:
    """Where a reader says it stands. `epoch` is None where it gave a bare seq."""

    epoch: int | None
    seq: int


def _asked_place(request: Request, query: Query) -> _Place | None:
    """A browser that reconnects repeats its URL, so `Last-Event-ID` goes before `after`. None: from a snapshot on."""
    if last_event_id := request.headers.get("last-event-id"):
        match = _EVENT_ID.match(last_event_id)
        if match is None:
            raise InvalidRequest("header", "Last-Event-ID", "expected EPOCH.SEQ, as in the stream's ids")
        return _Place(int(match[1]), min(int(match[2]), SEQ_MAX))
    if query.text("after") is not None:
        return _Place(None, query.number("after", 0, low=0, high=SEQ_MAX))
    return None


async def _standing_place(
    runtime: Runtime, session_id: str, asked: _Place, record: dict[str, Any]
) -> tuple[int, int]:
    """(epoch, seq) from which the reader can go on: where it stands, unless what it saw there has not survived.

    It has not where the history ends before that seq, or where a later epoch wrote an event of that seq anew. (A
    snapshot's id carries the epoch of its moment, so an earlier epoch of the event says nothing.)
    """
    epoch, seq = record["epoch"], min(asked.seq, record["seq"])
    if asked.epoch is None or asked.epoch == epoch or seq == 0:
        return epoch, seq
    if asked.epoch > epoch:
        # Epochs only rise: the data folder is an older copy, and where the two histories part cannot be told.
        return 0, 0
    async with aclosing(_selected(runtime, session_id, seq - 1, None)) as lines:
        found = await anext(lines, None)
    if found is None or found.epoch <= asked.epoch:
        return epoch, seq
    epoch = seq = 0
    async with aclosing(_selected(runtime, session_id, 0, None)) as lines:
        async for line in lines:
            if line.epoch > asked.epoch:
                break
            epoch, seq = line.epoch, line.seq
    return epoch, seq


async def _selected(
    runtime: Runtime, session_id: str, after: int, types: frozenset[str] | None
) -> AsyncGenerator[Line]:
    async with aclosing(runtime.events(session_id, after=after)) as lines:
        async for line in lines:
            if types is None or line.type in types:
                yield line


async def _chunks(
    runtime: Runtime, session_id: str, after: int, limit: int, types: frozenset[str] | None
) -> AsyncGenerator[bytes]:
    """At most `limit` events, one a line, in chunks worth sending."""
    parts: list[bytes] = []
    size = count = 0
    async with aclosing(_selected(runtime, session_id, after, types)) as lines:
        async for line in lines:
            parts += (line.line, b"\n")
            size += len(line.line) + 1
            count += 1
            if count == limit:
                break
            if size >= CHUNK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    yield b"".join(parts)


async def _chain(first: bytes, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk
