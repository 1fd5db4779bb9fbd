"""Sessions: create, list, show, and their state."""

import hashlib
from typing import Any
from urllib.parse import quote

from attrs import evolve
from starlette.requests import Request
from starlette.responses import Response

from ...actors.errors import NoSuchSession
from ...actors.ports import TIERS, CatalogQuery
from ...actors.session.model import Status
from ...actors.session.wire import COMMAND_BYTES_MAX, ID_CHARACTERS_MAX, decode_json, read_create
from ...runtime.facts import read_facts
from ...runtime.runtime import Runtime
from ..answers import encode, json_answer, tagged_answer
from ..body import JSON, body_type, read_body
from ..problems import InvalidRequest
from ..query import Query, decode_cursor, encode_cursor, is_session_id, session_id_of

MERGE_PATCH = "application/merge-patch+json"
PAGE_SESSIONS = 50
PAGE_SESSIONS_MAX = 1_000


async def create(request: Request, runtime: Runtime) -> Response:
    """`POST /sessions`: 201, also where the command was carried out before (`Idempotency-Replayed: true` says so)."""
    body_type(request, JSON)
    Query(request)
    key = _idempotency_key(request)
    body = await read_body(request, "a session", COMMAND_BYTES_MAX)
    record, duplicate = await runtime.create(read_create(decode_json(body), key), size_bytes=len(body))
    mounted_at = quote(request.scope.get("root_path", ""))
    headers = {"location": f"{mounted_at}/api/v1/sessions/{record['session_id']}"}
    if duplicate:
        headers["idempotency-replayed"] = "true"
    return tagged_answer(request, encode(record), record["seq"], status=201, headers=headers)


async def list_sessions(request: Request, runtime: Runtime) -> Response:
    """`GET /sessions?limit=&cursor=&plan=&status=&tier=`: newest first."""
    query = Query(request, "limit", "cursor", "plan", "status", "tier")
    limit = query.number("limit", PAGE_SESSIONS, low=1, high=PAGE_SESSIONS_MAX)
    asked = CatalogQuery(
        limit=limit + 1,  # one more than is shown tells whether there is a next page
        plan=query.text("plan"),
        status=query.names("status", [status.value for status in Status]),
        tier=query.names("tier", TIERS),
    )
    if (cursor := query.text("cursor")) is not None:
        asked = evolve(asked, before=decode_cursor(cursor, asked))
    records = await runtime.page(asked)
    items = records[:limit]
    following = None
    if len(records) > limit:
        following = encode_cursor(items[-1]["created_at"], items[-1]["session_id"], asked)
    return json_answer({"items": items, "next": following})


async def show(request: Request, runtime: Runtime) -> Response:
    """`GET /sessions/{id}`."""
    Query(request)
    return _shown(request, await runtime.record(existing(request)))


async def change(request: Request, runtime: Runtime) -> Response:
    """`PATCH /sessions/{id}`: title and tags of a sealed session (a merge patch, RFC 7396)."""
    body_type(request, MERGE_PATCH, JSON)
    Query(request)
    session_id = existing(request)
    title, tags = read_facts(decode_json(await read_body(request, "a change", COMMAND_BYTES_MAX)))
    return _shown(request, await runtime.set_facts(session_id, title=title, tags=tags))


async def state(request: Request, runtime: Runtime) -> Response:
    """`GET /sessions/{id}/state`: canonical JSON, the same bytes in every tier."""
    Query(request)
    seq, body = await runtime.state(existing(request))
    return tagged_answer(request, body, seq)


def _shown(request: Request, record: dict[str, Any]) -> Response:
    """The ETag is the seq: what is computed at reading (lost, duration) is outside it. After the hand-over nothing is, and
    facts and tier change without a seq: then the text counts too."""
    body = encode(record)
    if record["storage"]["active"]:
        return tagged_answer(request, body, record["seq"])
    return tagged_answer(request, body, f"{record['seq']}-{hashlib.sha256(body).hexdigest()[:16]}")


def existing(request: Request) -> str:
    """The session id of the path. Raises NoSuchSession for what cannot be one: it never comes near a store."""
    session_id = session_id_of(request)
    if not is_session_id(session_id):
        raise NoSuchSession(session_id[:ID_CHARACTERS_MAX])
    return session_id


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (1 <= len(key) <= ID_CHARACTERS_MAX and key.isascii() and key.isprintable()):
        detail = f"expected 1 to {ID_CHARACTERS_MAX} printable ASCII characters"
        raise InvalidRequest("header", "Idempotency-Key", detail)
    return key
