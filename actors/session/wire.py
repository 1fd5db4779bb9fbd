"""Commands as they come from outside, read strictly: every mistake is named with its path and its fix (docs/protocol.md)."""

import enum
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cattrs
import msgspec
from attrs import fields
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from ..errors import FieldError, InvalidCommand, TooLarge
from .codec import command_digest
from .commands import KIND_BY_COMMAND, Body, CancelTimer, Command, Complete, Create, SetTimer
from .model import Outcome, Scalar, TimerAction, TimerClock

COMMAND_BYTES_MAX = 256 * 1024
DEPTH_MAX = 32
ID_CHARACTERS_MAX = 128
MAP_KEYS_MAX = 100
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
SESSION_ID = re.compile(r"sess_[0-9a-f]{32}\Z")

# Text limits in bytes of UTF-8, by field; a field that is not named here may have DEFAULT_TEXT_BYTES_MAX.
TEXT_BYTES_MAX = {"details": 64 * 1024, "key": 128, "message": 4 * 1024, "stream": 64, "text": 64 * 1024}
DEFAULT_TEXT_BYTES_MAX = 1024
# What any command may carry beside its own fields.
_ENVELOPE = {"command_id", "n", "source", "type"}
# A timer that rings more often than once a second would fill a history with itself, and no plan reaches further than this.
TIMER_EVERY_S_MIN = 1.0
TIMER_S_MAX = 10 * 366 * 86_400.0
TIMER_AT_MAX = datetime(3000, 1, 1, tzinfo=UTC)
LEVELS = ("debug", "info", "warning", "error")


class _Mistake(ValueError):
    """One wrong value; `code` and `detail` as in FieldError."""

    def __init__(self, detail: str, code: str = "invalid_field", pointer: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.pointer = pointer


def decode_json(data: bytes) -> Any:
    """One JSON value. Raises InvalidCommand (not JSON, not UTF-8, too deep) and TooLarge."""
    if len(data) > COMMAND_BYTES_MAX:
        raise TooLarge("a command", COMMAND_BYTES_MAX)
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(data, error) from error
    if _depth(value) > DEPTH_MAX:
        raise _invalid("invalid_json", f"nested deeper than {DEPTH_MAX}; send a flatter object")
    return value


def _not_json(data: bytes, error: Exception) -> InvalidCommand:
    """The decoder names a place within the string at hand, and calls half a surrogate pair a truncation: say it better."""
    try:
        data.decode()
    except UnicodeDecodeError as at:
        return _invalid("invalid_utf8", f"not UTF-8 at byte {at.start}; encode the text as UTF-8")
    if _SURROGATE.search(data) and "truncated" in str(error):
        return _invalid(
            "invalid_json",
            "half of a surrogate pair is no character, or the text is cut short; send it whole",
        )
    return _invalid("invalid_json", f"not JSON: {error}; send one JSON object")


def read_command(value: Any) -> Command:
    """The command that a decoded JSON object holds. Raises InvalidCommand, which names every mistake in it."""
    fields_given = _object(value)
    kind_name = fields_given.pop("type", None)
    kind = KIND_BY_COMMAND.get(kind_name) if isinstance(kind_name, str) else None
    if kind is None or kind.command == "session.create":
        known = ", ".join(sorted(KIND_BY_COMMAND.keys() - {"session.create"}))
        code = "missing_field" if kind_name is None else "unknown_type"
        said = "is missing" if kind_name is None else f"is {kind_name!r}, which is no command"
        hint = "; create with POST /sessions" if kind_name == "session.create" else ""
        raise _invalid(code, f"type {said}{hint}; one of: {known}", "/type")
    mistakes: list[FieldError] = []
    command_id = _take_identifier(fields_given, "command_id", mistakes)
    source = _take_identifier(fields_given, "source", mistakes)
    n = fields_given.pop("n", None)
    if (source is None) != (n is None):
        mistakes.append(FieldError(code="missing_field", pointer="/n", detail="source and n come together"))
    elif source is not None and (type(n) is not int or not 1 <= n < 1 << 53):
        mistakes.append(FieldError(code="invalid_field", pointer="/n", detail="a whole number from 1"))
    if command_id is not None and source is not None:
        detail = "give either command_id or source and n, not both"
        mistakes.append(FieldError(code="invalid_field", pointer="/command_id", detail=detail))
    body = _structure(fields_given, kind.body, mistakes)
    return _command(kind.command, body, command_id, source, n or 0)


def read_fields(value: Any) -> dict[str, Any]:
    """A decoded JSON object. Raises InvalidCommand for anything else."""
    return _object(value)


def read_create(value: Any, command_id: str | None = None) -> Command:
    """The `session.create` of a `POST /sessions` body. `command_id` (a header) stands in for the field of that name."""
    fields_given = _object(value)
    mistakes: list[FieldError] = []
    given = _take_identifier(fields_given, "command_id", mistakes)
    body = _structure(fields_given, Create, mistakes)
    return _command("session.create", body, given or command_id, None, 0)


def _command(kind: str, body: Body, command_id: str | None, source: str | None, n: int) -> Command:
    command = Command(kind, body, command_id, "", source, n)
    if command_id is not None:
        command.digest = command_digest(command)
    return command


def _structure(given: dict[str, Any], body: type[Body], mistakes: list[FieldError]) -> Body:
    try:
        structured = _converter.structure(given, body)
    except (ClassValidationError, ForbiddenExtraKeysError) as error:
        mistakes.extend(_field_errors(error, ""))
    if mistakes:
        raise InvalidCommand(tuple(mistakes))
    return structured


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid("invalid_json", f"expected a JSON object, got {_name(value)}")
    return dict(value)


def _take_identifier(given: dict[str, Any], name: str, mistakes: list[FieldError]) -> str | None:
    value = given.pop(name, None)
    if value is None or (
        isinstance(value, str) and 1 <= len(value) <= ID_CHARACTERS_MAX and value.isprintable()
    ):
        return value
    detail = f"expected a string of 1 to {ID_CHARACTERS_MAX} printable characters, got {_name(value)}"
    mistakes.append(FieldError(code="invalid_field", pointer=f"/{name}", detail=detail))
    return None


def _field_errors(error: BaseException, pointer: str) -> list[FieldError]:
    """Flatten what cattrs raised to one entry a field."""
    if isinstance(error, ForbiddenExtraKeysError):
        own = {attribute.name for attribute in fields(error.cl) if attribute.init}
        known = ", ".join(sorted(own | ({"command_id"} if error.cl is Create else _ENVELOPE)))
        return [
            FieldError(
                code="unknown_field",
                pointer=f"{pointer}/{_escape(name)}",
                detail=f"unknown field; known: {known}",
            )
            for name in sorted(error.extra_fields)
        ]
    if isinstance(error, ClassValidationError | IterableValidationError):
        found = []
        for inner in error.exceptions:
            step = next((note for note in getattr(inner, "__notes__", ()) if hasattr(note, "name")), None)
            found += _field_errors(inner, f"{pointer}/{_escape(step.name)}" if step is not None else pointer)
        return found
    if isinstance(error, KeyError):
        return [FieldError(code="missing_field", pointer=pointer, detail="this field is required")]
    if isinstance(error, _Mistake):
        return [FieldError(code=error.code, pointer=pointer + error.pointer, detail=error.detail)]
    return [FieldError(code="invalid_field", pointer=pointer, detail=str(error))]


def _invalid(code: str, detail: str, pointer: str = "") -> InvalidCommand:
    return InvalidCommand((FieldError(code=code, pointer=pointer, detail=detail),))


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level and deepest <= DEPTH_MAX:
        deepest += 1
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return deepest


def _name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _read_int(value: Any, _: Any) -> int:
    if type(value) is not int:
        raise _Mistake(f"expected a whole number, got {_name(value)}")
    if not -(1 << 63) <= value < 1 << 63:
        raise _Mistake("expected a whole number of at most 64 bits")
    return value


def _read_float(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _Mistake(f"expected a finite number, got {_name(value)}")
    return float(value)


def _read_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise _Mistake(f"expected true or false, got {_name(value)}")
    return value


def _read_str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise _Mistake(f"expected a string, got {_name(value)}")
    return value


def _read_datetime(value: Any, _: Any) -> datetime:
    if not isinstance(value, str):
        raise _Mistake(f"expected an RFC 3339 time, got {_name(value)}")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise _Mistake(f"expected an RFC 3339 time such as 2026-11-22T10:15:30Z ({error})") from error
    if moment.tzinfo is None:
        raise _Mistake(f"the time {value} has no offset; add Z or +01:00")
    return moment.astimezone(UTC)


def _read_enum(value: Any, kind: type[enum.Enum]) -> enum.Enum:
    for member in kind:
        if type(value) is str and member.value == value:
            return member
    raise _Mistake(f"got {value!r}; one of: {', '.join(str(member.value) for member in kind)}"[:300])


def _read_map(value: Any, _: Any) -> dict[str, Scalar]:
    if not isinstance(value, dict):
        raise _Mistake(f"expected an object, got {_name(value)}")
    if len(value) > MAP_KEYS_MAX:
        raise _Mistake(f"over its limit of {MAP_KEYS_MAX} keys; send fewer", "too_large")
    for key, item in value.items():
        step = f"/{_escape(key)}"
        if len(key) > ID_CHARACTERS_MAX:
            raise _Mistake(f"a key over its limit of {ID_CHARACTERS_MAX} characters", "too_large", step)
        if isinstance(item, dict | list):
            raise _Mistake(f"expected a string, number, boolean or null, got {_name(item)}", pointer=step)
        if isinstance(item, str) and _bytes(item) > TEXT_BYTES_MAX["message"]:
            raise _Mistake(f"over its limit of {TEXT_BYTES_MAX['message']:,} bytes", "too_large", step)
    return value


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _check_texts(body: Any) -> None:
    for attribute in fields(type(body)):
        value = getattr(body, attribute.name)
        if isinstance(value, str):
            limit = TEXT_BYTES_MAX.get(attribute.name, DEFAULT_TEXT_BYTES_MAX)
            if len(value) * 4 > limit and _bytes(value) > limit:
                detail = f"{_bytes(value):,} bytes are over its limit of {limit:,}; shorten it"
                raise _Mistake(detail, "too_large", f"/{attribute.name}")
        if isinstance(value, int | float) and value < 0 and attribute.name != "exit_code":
            raise _Mistake(f"got {value}, expected 0 or more", pointer=f"/{attribute.name}")
    if isinstance(body, Complete) and body.outcome is Outcome.CANCELLED:
        raise _Mistake(
            "a session that was cancelled ends with session.cancel; one of: passed, failed, error",
            pointer="/outcome",
        )
    if isinstance(body, SetTimer | CancelTimer):
        _check_timer(body)
    level = getattr(body, "level", None)
    if level is not None and level not in LEVELS:
        raise _Mistake(f"got {level!r}; one of: {', '.join(LEVELS)}"[:300], pointer="/level")


def _check_timer(body: SetTimer | CancelTimer) -> None:
    if not body.key or not body.key.isprintable():
        raise _Mistake("expected 1 to 128 bytes of printable text", pointer="/key")
    if isinstance(body, CancelTimer):
        return
    if (body.after_s is None) == (body.at is None):
        code = "missing_field" if body.at is None else "invalid_field"
        raise _Mistake("give after_s (seconds from now) or at (a time), and not both", code, "/after_s")
    for name, value in (("after_s", body.after_s), ("every_s", body.every_s)):
        if value is not None and value > TIMER_S_MAX:
            raise _Mistake(f"got {value}, expected at most {TIMER_S_MAX:.0f} (10 years)", pointer=f"/{name}")
    if body.every_s is not None and body.every_s < TIMER_EVERY_S_MIN:
        raise _Mistake(f"got {body.every_s}, expected {TIMER_EVERY_S_MIN:g} or more", pointer="/every_s")
    if body.at is not None and body.at >= TIMER_AT_MAX:
        raise _Mistake(
            f"got a time after the year {TIMER_AT_MAX.year - 1}; give an earlier one", pointer="/at"
        )
    if body.at is not None and body.clock is TimerClock.ACTIVE:
        raise _Mistake(
            "the active clock counts running time and knows no time of day; give after_s", pointer="/at"
        )
    if body.action is TimerAction.FAIL and body.every_s is not None:
        raise _Mistake("a session fails once; leave it out with action fail", pointer="/every_s")
    if body.action is None and body.reason is not None:
        raise _Mistake("a reason goes with action fail; leave it out", pointer="/reason")


def _strict_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _read_int)
    converter.register_structure_hook(float, _read_float)
    converter.register_structure_hook(bool, _read_bool)
    converter.register_structure_hook(str, _read_str)
    converter.register_structure_hook(datetime, _read_datetime)
    converter.register_structure_hook_func(
        lambda kind: isinstance(kind, type) and issubclass(kind, enum.Enum), _read_enum
    )
    converter.register_structure_hook_func(lambda kind: kind == dict[str, Scalar], _read_map)
    for kind in KIND_BY_COMMAND.values():
        converter.register_structure_hook(kind.body, _checked(make_dict_structure_fn(kind.body, converter)))
    return converter


def _checked(structure: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def structure_and_check(value: Any, kind: Any) -> Any:
        body = structure(value, kind)
        try:
            _check_texts(body)
        except _Mistake as mistake:
            raise ClassValidationError("limits", [mistake], kind) from mistake
        return body

    return structure_and_check


_converter = _strict_converter()
