"""What is set aside, and what a person decides about it."""

from starlette.requests import Request
from starlette.responses import Response

from ...actors.errors import NotQuarantined
from ...actors.session.actor import Done
from ...actors.session.wire import COMMAND_BYTES_MAX, decode_json, read_fields
from ...runtime.runtime import Runtime
from ..answers import json_answer
from ..body import JSON, body_type, read_body
from ..query import Query
from .sessions import existing

NUMBER_DIGITS_MAX = 16


async def list_all(request: Request, runtime: Runtime) -> Response:
    """`GET /quarantine`: of all sessions."""
    Query(request)
    return json_answer({"items": runtime.quarantine.listed()})


async def list_of_session(request: Request, runtime: Runtime) -> Response:
    """`GET /sessions/{id}/quarantine`. A session of which only the creation was tried is there, too."""
    Query(request)
    session_id = existing(request)
    items = runtime.quarantine.listed(session_id)
    if not items:
        await runtime.record(session_id)  # or there is no such session
    return json_answer({"items": items})


async def show(request: Request, runtime: Runtime) -> Response:
    """`GET /sessions/{id}/quarantine/{number}`: with command and traceback."""
    Query(request)
    return json_answer(runtime.quarantine.shown(*_place(request)))


async def skip(request: Request, runtime: Runtime) -> Response:
    """`POST /sessions/{id}/quarantine/{number}/skip`: it is dropped for good."""
    Query(request)
    await runtime.quarantine.skip(*_place(request))
    return Response(status_code=204)


async def retry(request: Request, runtime: Runtime) -> Response:
    """`POST /sessions/{id}/quarantine/{number}/retry`: it is sent again as it was."""
    Query(request)
    return _outcome(await runtime.quarantine.retry(*_place(request)))


async def edit(request: Request, runtime: Runtime) -> Response:
    """`POST /sessions/{id}/quarantine/{number}/edit`: it is sent with the fields of the body instead of its own."""
    body_type(request, JSON)
    Query(request)
    place = _place(request)
    fields = read_fields(decode_json(await read_body(request, "a command", COMMAND_BYTES_MAX)))
    return _outcome(await runtime.quarantine.edit(*place, fields))


async def release(request: Request, runtime: Runtime) -> Response:
    """`POST /sessions/{id}/quarantine/release`: a session that crashed in a loop may start again."""
    Query(request)
    session_id = existing(request)
    await runtime.record(session_id)  # or there is no such session
    return json_answer({"ok": True, "released": await runtime.quarantine.release(session_id)})


def _outcome(done: Done | None) -> Response:
    if done is None:
        return json_answer({"ok": True, "sent": False})
    return json_answer({"duplicate": done.duplicate, "ok": True, "sent": True, "seq": done.seq})


def _place(request: Request) -> tuple[str, int]:
    session_id, number = existing(request), request.path_params["number"]
    if not (number.isascii() and number.isdigit() and len(number) <= NUMBER_DIGITS_MAX):
        raise NotQuarantined(session_id)
    return session_id, int(number)
