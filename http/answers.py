"""Answers as canonical JSON, and their entity tags."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

encode = msgspec.json.Encoder(order="deterministic").encode


class Answer(Response):
    """A body that is whole. Starlette's own lays its headers out with more care than the hot path has time for."""

    def __init__(self, body: bytes, content_type: bytes, status: int = 200) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", content_type)]


def json_answer(value: Any, status: int = 200) -> Response:
    """`value` (what JSON knows, and aware datetimes) as `application/json`."""
    return Answer(encode(value), b"application/json", status)


def tagged_answer(
    request: Request, body: bytes, seq: int | str, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """`body` with its seq as strong ETag; 304 without a body where `If-None-Match` names that seq (RFC 9110, 13.1.2)."""
    tag = f'"{seq}"'
    tagged = {"etag": tag, "cache-control": "no-cache", **(headers or {})}
    if status == 200 and _names(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=tagged)
    return Response(body, status, tagged, "application/json")


def _names(if_none_match: str | None, tag: str) -> bool:
    """Whether the header holds `tag`, by weak comparison, or is `*`."""
    if if_none_match is None:
        return False
    # Our tags hold no comma, so a tag of another's making that holds one does no harm when it is split.
    candidates = {candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")}
    return tag in candidates or "*" in candidates
