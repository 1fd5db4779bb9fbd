"""Query parameters, read as strictly as bodies: unknown ones, doubled ones and wrong values are refused by name."""

import base64
import binascii
import enum
import hashlib
import re
from collections.abc import Collection
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request

from ..actors.ports import CatalogQuery
from ..actors.session.wire import SESSION_ID
from .problems import InvalidRequest

E = TypeVar("E", bound=enum.Enum)
TEXT_CHARACTERS_MAX = 1_024
# The largest whole number that JSON carries exactly everywhere (RFC 8259, 6).
SEQ_MAX = (1 << 53) - 1
_PLAIN = re.compile(r"[a-z_]+=[a-zA-Z0-9_]*\Z")


class Query:
    """The parameters of one request. Raises InvalidRequest, which names the parameter and what it may be."""

    def __init__(self, request: Request, *known: str) -> None:
        self._values: dict[str, str] = {}
        raw = request.scope["query_string"]
        if not raw:
            return
        # latin-1 maps every byte, so nothing is lost before `parse_qsl` reads the escapes as UTF-8.
        text = raw.decode("latin-1")
        try:
            if _PLAIN.match(text):  # one parameter without escapes, as every command has
                name, _, value = text.partition("=")
                pairs = [(name, value)]
            else:
                pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=100)
        except ValueError as error:
            raise InvalidRequest("parameter", "*", "more than 100 of them; send fewer") from error
        for name, value in pairs:
            if name not in known:
                detail = f"unknown; known: {', '.join(known) or 'none'}"
                raise InvalidRequest("parameter", name[:100], detail, "unknown_field")
            if name in self._values:
                raise InvalidRequest("parameter", name, "given twice; give it once")
            if len(value) > TEXT_CHARACTERS_MAX:
                raise InvalidRequest(
                    "parameter", name, f"longer than {TEXT_CHARACTERS_MAX} characters; shorten it"
                )
            self._values[name] = value

    def text(self, name: str) -> str | None:
        return self._values.get(name)

    def number(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self._values.get(name)
        if value is None:
            return default
        if value.isascii() and value.isdigit() and len(value) <= 16 and low <= int(value) <= high:
            return int(value)
        raise InvalidRequest(
            "parameter", name, f"expected a whole number from {low} to {high}, got {value!r}"[:300]
        )

    def choice(self, name: str, kind: type[E], default: E) -> E:
        """A member of `kind`, by its value."""
        value = self._values.get(name)
        if value is None:
            return default
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(m.value for m in kind)
            raise InvalidRequest("parameter", name, f"got {value!r}; one of: {known}"[:300]) from None

    def names(self, name: str, known: Collection[str]) -> frozenset[str] | None:
        """Some of `known`, with commas between; None where the parameter is not given."""
        value = self._values.get(name)
        if value is None:
            return None
        given = frozenset(value.split(","))
        if unknown := sorted(given - frozenset(known)):
            raise InvalidRequest(
                "parameter", name, f"got {unknown[0]!r}; known: {', '.join(sorted(known))}"[:600]
            )
        return given


def session_id_of(request: Request) -> str:
    """The id in the path, as it came. Whether it is well-formed is for `is_session_id`."""
    session_id: str = request.path_params["session_id"]
    return session_id


def is_session_id(text: str) -> bool:
    return SESSION_ID.match(text) is not None


def encode_cursor(created_at: datetime | str, session_id: str, query: CatalogQuery) -> str:
    """Where a page ended: opaque to clients, and of use only with the same filters."""
    payload = msgspec.json.encode([created_at, session_id, _binding(query)])
    return base64.urlsafe_b64encode(payload).rstrip(b"=").decode()


def decode_cursor(text: str, query: CatalogQuery) -> tuple[datetime, str]:
    """What `encode_cursor` took. Raises InvalidRequest: not of our making, or made for other filters."""
    try:
        payload = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        created_at, session_id, binding = msgspec.json.decode(payload, type=tuple[datetime, str, str])
        if created_at.tzinfo is None or not is_session_id(session_id):
            raise ValueError("not a place in a list")
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        detail = "this is no cursor of ours; take `next` of the page before, unchanged"
        raise InvalidRequest("parameter", "cursor", detail) from error
    if binding != _binding(query):
        detail = (
            "this cursor belongs to a list with other filters; send them again, or begin without a cursor"
        )
        raise InvalidRequest("parameter", "cursor", detail)
    return created_at, session_id


def _binding(query: CatalogQuery) -> str:
    """Tells one set of filters from another: a mistake is caught, and nothing is kept secret by it."""
    chosen = [sorted(values) if values is not None else None for values in (query.status, query.tier)]
    filters: list[Any] = [query.plan, *chosen]
    return hashlib.sha256(msgspec.json.encode(filters)).hexdigest()[:16]
