"""Errors as HTTP answers (RFC 9457): one table, and the only place that knows HTTP codes of errors."""

import math
from typing import Any
from urllib.parse import quote

import structlog
from starlette.responses import Response
from starlette.types import Scope

from ..actors import errors
from ..actors.errors import CallerError, SojournError
from .answers import encode

log = structlog.stdlib.get_logger()


class InvalidRequest(CallerError):
    """A query parameter or a header is wrong. `where` is "parameter" or "header", `name` which one."""

    def __init__(self, where: str, name: str, detail: str, code: str = "invalid_field") -> None:
        super().__init__(f"{where} {name}: {detail}")
        self.code = code
        self.where = where
        self.name = name
        self.detail = detail


class Unauthorized(CallerError):
    """A token is needed, or the one given is wrong; send it as `Authorization: Bearer TOKEN`."""

    code = "unauthorized"


class WrongHost(CallerError):
    """This server is not reached under that name; use localhost, or serve with a token, which takes any name."""

    code = "wrong_host"


class NoSuchPath(CallerError):
    """There is nothing at this path; docs/protocol.md lists the paths, all of them under /api/v1."""

    code = "no_such_path"


class MethodNotAllowed(CallerError):
    """The path is there, and does not take this verb. `allow` says which it takes."""

    code = "method_not_allowed"

    def __init__(self, method: str, allow: str) -> None:
        super().__init__(f"{method!r} is not for this path; it takes {allow}")
        self.allow = allow


class UnsupportedMediaType(CallerError):
    """The body is of a type that this path does not read."""

    code = "unsupported_media_type"


class SlowBody(CallerError):
    """The body did not come within its deadline; nothing was done."""

    code = "request_timeout"


# A class that is not here answers as its nearest base does. The titles do not depend on the occurrence (RFC 9457, 3.1.3).
PROBLEMS: dict[type[SojournError], tuple[int, str]] = {
    CallerError: (400, "The request cannot be taken"),
    errors.AlreadyExists: (409, "It exists already"),
    errors.Damaged: (500, "Stored data is damaged"),
    errors.DeadlineExceeded: (504, "No answer in time, outcome unknown"),
    errors.DurabilityUnavailable: (503, "The ack level cannot be given"),
    errors.IdempotencyMismatch: (422, "The id was used with another body"),
    errors.IllegalInStatus: (409, "Not legal in the session's status"),
    errors.IntensityExceeded: (503, "The session is set aside"),
    errors.InvalidCommand: (400, "The body cannot be read"),
    errors.LimitReached: (422, "A limit of the session is reached"),
    errors.MailboxFull: (429, "The session has too much queued"),
    errors.NoSuchSession: (404, "No such session"),
    errors.NoSuchTimer: (409, "No such timer"),
    errors.NotQuarantined: (404, "Not set aside"),
    errors.NotResendable: (409, "It cannot be sent as it is"),
    errors.NotSealed: (409, "The session is not sealed yet"),
    errors.NotOpen: (503, "The runtime is not open"),
    errors.OutOfOrder: (409, "Not the source's next number"),
    errors.OwnershipLost: (503, "Another process owns the data folder"),
    errors.Quarantined: (422, "The command was set aside"),
    errors.Rejected: (409, "The session's state forbids it"),
    errors.SessionSealed: (409, "The session is sealed"),
    errors.SessionQuarantined: (409, "An event of the session cannot be applied"),
    errors.SetAside: (409, "The session has lost events and is set aside"),
    errors.Stopped: (503, "The runtime is not open"),
    errors.StorageFull: (507, "There is no room"),
    errors.StoreError: (503, "A store is unavailable"),
    errors.SupervisionError: (503, "A part of the runtime is not running"),
    errors.TooLarge: (413, "Over its limit"),
    InvalidRequest: (400, "The request cannot be read"),
    MethodNotAllowed: (405, "Method not allowed"),
    NoSuchPath: (404, "No such path"),
    SlowBody: (408, "The body came too slowly"),
    Unauthorized: (401, "A token is needed"),
    UnsupportedMediaType: (415, "Unsupported media type"),
    WrongHost: (421, "Not reached under this name"),
}
UNEXPECTED = (500, "An error of Sojourn's own")
RETRY_STATUSES = frozenset({429, 503})
# An answer must not grow with the mistakes of its request: so many fields are listed, so much is said.
ERRORS_MAX = 20
TEXT_CHARACTERS_MAX = 1_000
# The body may be unread: what is left of it must not be taken for the next request.
CLOSING_STATUSES = frozenset({408, 413})


def status_and_title(error: Exception) -> tuple[int, str]:
    """The row of the nearest class of `error` that has one."""
    for kind in type(error).__mro__:
        if kind in PROBLEMS:
            return PROBLEMS[kind]
    return UNEXPECTED


def line_error(error: CallerError) -> dict[str, Any]:
    """The `error` of one line of a batch."""
    document: dict[str, Any] = {"code": error.code, "detail": _cut(str(error))}
    if error.pointer is not None:
        document["pointer"] = _cut(error.pointer)
    return document | _extensions(error)


def problem_response(error: Exception, scope: Scope, request_id: str) -> Response:
    """The answer for `error`. What is not the caller's fault or a store's is logged here, once, with its traceback."""
    status, title = status_and_title(error)
    known = isinstance(error, SojournError) and status != 500
    if not known:
        log.error(
            "http.request_failed",
            request_id=request_id,
            method=scope["method"],
            path=scope["path"],
            remedy=(
                "`sojourn doctor` says what is damaged"
                if isinstance(error, SojournError)
                else "this is an error of Sojourn's own; report it with this traceback"
            ),
            exc_info=error,
        )
    code = error.code if isinstance(error, SojournError) else "internal"
    detail = (
        _cut(str(error))
        if isinstance(error, SojournError)
        else f"the server's log has it under request id {request_id}; sending the same command again is safe"
    )
    document = {
        "code": code,
        "detail": detail,
        "instance": quote(scope["path"]),
        "request_id": request_id,
        "status": status,
        "title": title,
        "type": f"urn:sojourn:problem:{code}",
        **_errors(error),
        **_extensions(error),
    }
    return Response(
        encode(document), status, headers=_headers(error, status), media_type="application/problem+json"
    )


def _errors(error: Exception) -> dict[str, Any]:
    if isinstance(error, errors.InvalidCommand):
        return {
            "errors": [
                {"detail": _cut(field.detail), "pointer": _cut(field.pointer)}
                for field in error.errors[:ERRORS_MAX]
            ]
        }
    if isinstance(error, InvalidRequest):
        return {"errors": [{"detail": error.detail, error.where: error.name}]}
    if isinstance(error, CallerError) and error.pointer is not None:
        return {"errors": [{"detail": _cut(str(error)), "pointer": error.pointer}]}
    return {}


def _cut(text: str) -> str:
    return (
        text
        if len(text) <= TEXT_CHARACTERS_MAX
        else text[: TEXT_CHARACTERS_MAX - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )


def _extensions(error: Exception) -> dict[str, Any]:
    """What a program needs of an error beside its code."""
    match error:
        case errors.OutOfOrder():
            return {"expected": error.expected}
        case errors.TooLarge():
            return {"limit": error.limit}
        case errors.LimitReached():
            return {"limit": error.limit}
        case errors.DurabilityUnavailable():
            return {"reached": error.reached, "session_id": error.session_id, "seq": error.seq}
    return {}


def _headers(error: Exception, status: int) -> dict[str, str]:
    headers = {"cache-control": "no-store"}
    if status in RETRY_STATUSES:
        # Whole seconds (RFC 9110, 10.2.3), never zero: a client that does not wait makes it worse.
        headers["retry-after"] = str(max(1, math.ceil(getattr(error, "retry_after_s", 1.0))))
    if status in CLOSING_STATUSES:
        headers["connection"] = "close"
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allow
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = 'Bearer realm="sojourn"'
    return headers
