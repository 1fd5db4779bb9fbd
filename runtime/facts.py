"""The facts of a session: what may change after its seal. A small file beside its objects, which moves with them."""

import enum
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from attrs import evolve, frozen

from ..actors.errors import Damaged, FieldError, InvalidCommand, ObjectMissing
from ..actors.ports import Objects
from .layout import facts_name

log = structlog.get_logger("sojourn.facts")

FORMAT = 1
TITLE_CHARACTERS_MAX = 512
TAGS_MAX = 50
TAG_CHARACTERS_MAX = 128


class Keep(enum.Enum):
    """Says that a fact stays as it is; None is a value."""

    KEEP = enum.auto()


KEEP = Keep.KEEP


@frozen(kw_only=True)
class Facts:
    """What was said of a session after its seal. `version` counts the changes; None: as it was recorded."""

    tags: tuple[str, ...] | None = None
    title: str | None = None
    version: int = 0


@frozen(kw_only=True)
class _Document:
    checksum: str
    format: int
    tags: list[str] | None
    title: str | None
    version: int


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(_Document).decode


def encode_facts(facts: Facts) -> bytes:
    """Canonical JSON, with a checksum over the rest."""
    tags = list(facts.tags) if facts.tags is not None else None
    document = _Document(checksum="", format=FORMAT, tags=tags, title=facts.title, version=facts.version)
    return _encode(evolve(document, checksum=_checksum(document)))


def decode_facts(data: bytes) -> Facts:
    """Raises Damaged: they are not whole, or of a newer format."""
    try:
        document = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"the facts of a session cannot be read: {error}") from error
    if document.format > FORMAT:
        raise Damaged(
            f"facts of format {document.format} are newer than this version's {FORMAT}; upgrade Sojourn"
        )
    if document.checksum != _checksum(document) or _encode(document) != data:
        raise Damaged("the facts of a session do not carry their checksum")
    tags = tuple(document.tags) if document.tags is not None else None
    return Facts(tags=tags, title=document.title, version=document.version)


def _checksum(document: _Document) -> str:
    return hashlib.sha256(_encode(evolve(document, checksum=""))).hexdigest()


async def facts_of(objects: Objects, session_id: str) -> Facts | None:
    """The facts that stand there. Damaged ones cost no more than themselves: they are said, and left out."""
    try:
        return decode_facts(await objects.get(facts_name(session_id)))
    except ObjectMissing:
        return None
    except Damaged as error:
        log.error(
            "facts.damaged",
            session=session_id,
            error=str(error),
            remedy="the session shows what was recorded; set title and tags again",
        )
        return None


def with_facts(record: dict[str, Any], facts: Facts | None) -> dict[str, Any]:
    """A public record as its facts say."""
    if facts is None:
        return record
    title = facts.title if facts.title is not None else record["title"]
    tags = list(facts.tags) if facts.tags is not None else record["tags"]
    return {**record, "tags": tags, "title": title}


def changed(facts: Facts | None, title: str | Keep | None, tags: Sequence[str] | Keep | None) -> Facts:
    """The next version. Raises InvalidCommand, which names every value over its limit."""
    facts = facts or Facts()
    title = facts.title if title is KEEP else title
    kept = facts.tags if tags is KEEP else tuple(tags) if tags is not None else None
    _check(title, kept)
    return Facts(tags=kept, title=title, version=facts.version + 1)


def read_facts(value: Any) -> tuple[str | Keep | None, Sequence[str] | Keep | None]:
    """Title and tags of a JSON merge patch (RFC 7396): what is not named stays, null is as it was recorded.

    Raises:
        InvalidCommand: it is none, or has other fields, or a value of another type; every mistake is named.
    """
    if not isinstance(value, dict):
        error = FieldError(code="invalid_json", pointer="", detail="expected a JSON object")
        raise InvalidCommand((error,))
    mistakes = [
        FieldError(
            code="unknown_field",
            pointer="/" + name.replace("~", "~0").replace("/", "~1"),
            detail="unknown field; known: tags, title",
        )
        for name in sorted(value.keys() - {"tags", "title"})
    ]
    title, tags = value.get("title", KEEP), value.get("tags", KEEP)
    if not isinstance(title, str | Keep | None):
        mistakes.append(_mistake("/title", "expected a string or null"))
    if not isinstance(tags, Keep | None) and not (
        isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
    ):
        mistakes.append(_mistake("/tags", "expected an array of strings, or null"))
    if not value:
        mistakes.append(_mistake("", "nothing to change; give title, tags or both"))
    if mistakes:
        raise InvalidCommand(tuple(mistakes))
    return title, tags


def _mistake(pointer: str, detail: str) -> FieldError:
    return FieldError(code="invalid_field", pointer=pointer, detail=detail)


def _check(title: str | None, tags: Sequence[str] | None) -> None:
    mistakes = []
    if title is not None and len(title) > TITLE_CHARACTERS_MAX:
        detail = f"over its limit of {TITLE_CHARACTERS_MAX} characters; shorten it"
        mistakes.append(FieldError(code="too_large", pointer="/title", detail=detail))
    tags = tags or ()
    if len(tags) > TAGS_MAX:
        detail = f"over its limit of {TAGS_MAX} tags; give fewer"
        mistakes.append(FieldError(code="too_large", pointer="/tags", detail=detail))
    for number, tag in enumerate(tags[:TAGS_MAX]):
        if not 1 <= len(tag) <= TAG_CHARACTERS_MAX:
            detail = f"a tag has 1 to {TAG_CHARACTERS_MAX} characters, this one {len(tag)}"
            mistakes.append(_mistake(f"/tags/{number}", detail))
        elif tag in tags[:number]:
            mistakes.append(_mistake(f"/tags/{number}", "given twice; give it once"))
    if mistakes:
        raise InvalidCommand(tuple(mistakes))
