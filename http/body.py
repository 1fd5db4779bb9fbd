"""Bodies and batches, read within limits: of bytes while they stream in, of time, of lines."""

import anyio
from attrs import frozen
from starlette.requests import ClientDisconnect, Request

from ..actors.errors import CallerError, FieldError, InvalidCommand, TooLarge
from ..actors.session.commands import Command
from ..actors.session.wire import ID_CHARACTERS_MAX, decode_json, read_command
from .problems import SlowBody, UnsupportedMediaType

JSON = "application/json"
NDJSON = "application/x-ndjson"
BATCH_BYTES_MAX = 1024 * 1024
BATCH_LINES_MAX = 1_000
# uvicorn has no deadline for a body. A megabyte in 30 s is a slow mobile connection; slower than that is a hostage.
BODY_DEADLINE_S = 30.0
# A client that is cut off while it writes never reads why. So much of a body that is too large is taken and dropped.
DISCARDED_BYTES_MAX = 16 * 1024 * 1024


def body_type(request: Request, *types: str) -> str:
    """Which of `types` the body is. Raises UnsupportedMediaType: another type, another charset than UTF-8, compressed."""
    content_type = _header(request, b"content-type")
    if content_type in types and not _header(request, b"content-encoding"):
        return content_type
    media_type, _, parameters = content_type.partition(";")
    media_type = media_type.strip().lower()
    if media_type not in types:
        said = f"Content-Type is {media_type!r}" if media_type else "there is no Content-Type"
        raise UnsupportedMediaType(f"{said}; send {' or '.join(types)}")
    charset = parameters.strip().lower().partition("charset=")[2].strip('"')
    if charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMediaType(f"the charset is {charset!r}; send UTF-8")
    encoding = _header(request, b"content-encoding").lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"Content-Encoding is {encoding!r}; send the body as it is")
    return media_type


async def read_body(request: Request, what: str, bytes_max: int) -> bytes:
    """The whole body. No more than `bytes_max` of it is ever held.

    Raises:
        TooLarge: it is over `bytes_max`, or says so.
        SlowBody: it was not complete within `BODY_DEADLINE_S`.
        ClientDisconnect: the client went away before its end.
    """
    declared = _header(request, b"content-length")
    if declared.isdigit() and int(declared[:20]) > bytes_max and _header(request, b"expect"):
        raise TooLarge(what, bytes_max)  # it waits for our word before it sends the body
    with anyio.move_on_after(BODY_DEADLINE_S):
        body, complete = await _receive(request)
        if complete and len(body) <= bytes_max:
            return body
        parts, size = [body], len(body)
        while not complete and size <= bytes_max:
            body, complete = await _receive(request)
            parts.append(body)
            size += len(body)
        if size <= bytes_max:
            return b"".join(parts)
        parts.clear()
        while not complete and size <= DISCARDED_BYTES_MAX:
            body, complete = await _receive(request)
            size += len(body)
        raise TooLarge(what, bytes_max)
    raise SlowBody(f"{what} did not come within {BODY_DEADLINE_S:g} s; nothing was done, send it again")


async def _receive(request: Request) -> tuple[bytes, bool]:
    """The next part of the body, and whether it was the last."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), not message.get("more_body", False)


def _header(request: Request, name: bytes) -> str:
    """The header's value, or nothing."""
    for key, value in request.scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return ""


@frozen
class Batch:
    """A batch as it came: a command a line, or why that line cannot be read; and by what each line is answered
    (`command_id`, or `source` and `n`, or, where it carries none of them, its number)."""

    commands: list[Command | CallerError]
    identities: list[dict[str, str | int]]


def read_batch(body: bytes) -> Batch:
    """A command a line. One bad line costs that line only.

    Raises TooLarge for too many lines, and InvalidCommand where there is none at all.
    """
    if not body.strip():
        detail = "the batch is empty; send one command a line"
        raise InvalidCommand((FieldError(code="invalid_json", detail=detail, pointer=""),))
    lines = body.split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    if len(lines) > BATCH_LINES_MAX:
        raise TooLarge("a batch", BATCH_LINES_MAX, "lines")
    batch = Batch([], [])
    for number, line in enumerate(lines, start=1):
        identity: dict[str, str | int] = {"line": number}
        command: Command | CallerError
        try:
            value = decode_json(line)
            identity = _identity(value, number)
            command = read_command(value)
        except CallerError as error:
            command = error
        batch.commands.append(command)
        batch.identities.append(identity)
    return batch


def identity_of(command: Command) -> dict[str, str | int]:
    """By what a command is answered; empty where it carries nothing that would tell it from another."""
    if command.command_id is not None:
        return {"command_id": command.command_id}
    if command.source is not None:
        return {"n": command.n, "source": command.source}
    return {}


def _identity(value: object, number: int) -> dict[str, str | int]:
    """As `identity_of`, of a line that may yet turn out to be no command: its sender still wants to know which it was."""
    if isinstance(value, dict):
        command_id, source, n = value.get("command_id"), value.get("source"), value.get("n")
        if isinstance(command_id, str) and len(command_id) <= ID_CHARACTERS_MAX:
            return {"command_id": command_id}
        if isinstance(source, str) and len(source) <= ID_CHARACTERS_MAX and type(n) is int:
            return {"n": n, "source": source}
    return {"line": number}
