"""A session as one file."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ...runtime.history.export import KINDS, Subject, export
from ...runtime.runtime import Runtime
from ..problems import InvalidRequest
from ..query import Query
from .sessions import existing


async def export_session(request: Request, runtime: Runtime) -> Response:
    """`GET /sessions/{id}/export?format=json|ndjson|junit`: to be saved, and never shown as a page.

    What fails before the first byte is a problem document. What fails later breaks the connection off before the answer
    has ended, so no client takes the part for the whole.
    """
    session_id = existing(request)
    # The server logs what breaks the answer off, in this task: so it says of which session.
    structlog.contextvars.bind_contextvars(session=session_id)
    name = Query(request, "format").text("format") or "json"
    kind = next((known for known in KINDS if known == name), None)
    if kind is None:
        raise InvalidRequest("parameter", "format", f"got {name!r}; one of: {', '.join(KINDS)}"[:300])
    record, seq, state = await runtime.snapshot(session_id)
    headers = {
        "cache-control": "no-store",
        "content-disposition": f'attachment; filename="{session_id}{KINDS[kind].suffix}"',
        "content-security-policy": "sandbox",
        "x-content-type-options": "nosniff",
    }
    media_type = KINDS[kind].media_type
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    subject = Subject(record=record, seq=seq, state=state)
    chunks = export(kind, subject, runtime.events(session_id))
    first = await anext(chunks)
    return StreamingResponse(_chain(first, chunks), headers=headers, media_type=media_type)


async def _chain(first: bytes, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk
