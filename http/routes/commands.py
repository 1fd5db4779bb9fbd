"""Commands to a session, one or a batch, and its heartbeat."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...actors.errors import CallerError
from ...actors.session.actor import Done
from ...actors.session.model import Ack
from ...actors.session.wire import COMMAND_BYTES_MAX, decode_json, read_command
from ...runtime.runtime import Runtime
from ..answers import Answer, encode, json_answer
from ..body import BATCH_BYTES_MAX, JSON, NDJSON, body_type, identity_of, read_batch, read_body
from ..problems import line_error
from ..query import Query
from .sessions import existing


async def send(request: Request, runtime: Runtime) -> Response:
    """`POST /sessions/{id}/commands?ack=`: the outcome of one command, or an outcome a line of a batch."""
    session_id = existing(request)
    ack = Query(request, "ack").choice("ack", Ack, Ack.DURABLE)
    if body_type(request, JSON, NDJSON) == JSON:
        body = await read_body(request, "a command", COMMAND_BYTES_MAX)
        command = read_command(decode_json(body))
        done = await runtime.ask(session_id, command, ack=ack, size_bytes=len(body))
        return json_answer(identity_of(command) | _done(done, ack))
    body = await read_body(request, "a batch", BATCH_BYTES_MAX)
    batch = read_batch(body)
    outcomes = await runtime.ask_batch(session_id, batch.commands, ack=ack, size_bytes=len(body))
    lines = [
        encode(identity | _outcome(outcome, ack))
        for identity, outcome in zip(batch.identities, outcomes, strict=True)
    ]
    return Answer(b"\n".join(lines) + b"\n", NDJSON.encode())


async def heartbeat(request: Request, runtime: Runtime) -> Response:
    """`POST /sessions/{id}/heartbeat`: a sign of life without an event."""
    Query(request)
    await runtime.heartbeat(existing(request))
    return Response(status_code=204)


async def accept_loss(request: Request, runtime: Runtime) -> Response:
    """`POST /sessions/{id}/accept-loss`: a session that has lost events goes on without them."""
    Query(request)
    return json_answer(_done(await runtime.accept_loss(existing(request)), Ack.DURABLE))


def _outcome(outcome: Done | CallerError, ack: Ack) -> dict[str, Any]:
    if isinstance(outcome, Done):
        return _done(outcome, ack)
    return {"error": line_error(outcome), "ok": False}


def _done(done: Done, ack: Ack) -> dict[str, Any]:
    if ack is Ack.APPLIED:
        return {"ok": True}  # a seq is promised with its commit, not before
    return {"duplicate": done.duplicate, "ok": True, "seq": done.seq}
