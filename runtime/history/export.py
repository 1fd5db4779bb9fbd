"""A session as one file: its event lines, one JSON document, or JUnit XML. Pure: bytes out of a record, a state and events.

Each is a generator that holds some 64 KiB and what its docstring says, however long the history is. None ends well where
the history does not reach the seq it is to be exported up to: it raises Damaged, and what came before is no export.
"""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Literal
from xml.sax.saxutils import escape

import msgspec
from attrs import frozen

from ...actors.errors import Damaged
from ..live import Line

Format = Literal["json", "ndjson", "junit"]
CHUNK_BYTES = 64 * 1024


@frozen
class FileKind:
    """What an export is called and travels as: `suffix` ends its file's name."""

    suffix: str
    media_type: str


KINDS: Mapping[Format, FileKind] = {
    "json": FileKind(".json", "application/json"),
    "ndjson": FileKind(".ndjson", "application/x-ndjson"),
    "junit": FileKind(".junit.xml", "application/xml"),
}

_encode = msgspec.json.Encoder(order="deterministic").encode


@frozen(kw_only=True)
class Subject:
    """What is exported: a session's public record and its state at `seq` (canonical JSON), of one moment."""

    record: Mapping[str, Any]
    seq: int
    state: bytes


@frozen
class _Case:
    duration_s: float
    message: str | None
    outcome: str
    seq: int


@frozen
class _Results:
    results: dict[str, _Case]


@frozen
class _Recorded:
    case_id: str
    details: str | None = None


@frozen
class _ResultEvent:
    data: _Recorded


_read_results = msgspec.json.Decoder(_Results).decode
_read_event = msgspec.json.Decoder(_ResultEvent).decode


def export(kind: Format, subject: Subject, lines: AsyncGenerator[Line]) -> AsyncGenerator[bytes]:
    """The file of this kind, in chunks.

    Args:
        lines: all of the session's events, in order; those above `subject.seq` are left out.
    """
    whole = _upto(lines, subject)
    if kind == "ndjson":
        return _gathered(as_ndjson(whole))
    if kind == "json":
        return _gathered(as_json(subject, whole))
    return _gathered(as_junit(subject, whole))


async def as_ndjson(lines: AsyncGenerator[Line]) -> AsyncGenerator[bytes]:
    """The event lines as they are stored."""
    async with aclosing(lines):
        async for line in lines:
            yield line.line
            yield b"\n"


async def as_json(subject: Subject, lines: AsyncGenerator[Line]) -> AsyncGenerator[bytes]:
    """`{"record": ..., "state": ..., "events": [...]}`, an event a line."""
    yield b'{"record":' + _encode(subject.record) + b',\n"state":' + subject.state + b',\n"events":['
    between = b"\n"
    async with aclosing(lines):
        async for line in lines:
            yield between
            yield line.line
            between = b",\n"
    yield b"\n]}\n"


async def as_junit(subject: Subject, lines: AsyncGenerator[Line]) -> AsyncGenerator[bytes]:
    """JUnit XML in the form of pytest's own `--junitxml`: a case an element, with its latest result, in the order in
    which these were recorded; its text is the result's details, which stand in the event.

    An expected failure is a skip of type `pytest.xfail`, an unexpected pass a pass. What XML cannot hold is written as
    `#x1B`. It holds the results of the state; a result whose event is lost comes last, without its details.
    """
    cases = _read_results(subject.state).results
    waiting = {case.seq: case_id for case_id, case in cases.items()}
    yield _junit_head(subject, cases)
    async with aclosing(lines):
        async for line in lines:
            case_id = waiting.get(line.seq)
            if case_id is not None and line.type == "result.recorded":
                del waiting[line.seq]
                yield _junit_case(case_id, cases[case_id], _read_event(line.line).data.details)
    for _, case_id in sorted(waiting.items()):
        yield _junit_case(case_id, cases[case_id], None)
    yield b"</testsuite></testsuites>\n"


def _junit_head(subject: Subject, cases: Mapping[str, _Case]) -> bytes:
    record = subject.record
    counts = {"error": 0, "failed": 0, "passed": 0, "skipped": 0, "xfailed": 0, "xpassed": 0}
    for case in cases.values():
        counts[case.outcome] += 1
    attributes = {
        "name": record["plan"],
        "errors": counts["error"],
        "failures": counts["failed"],
        "skipped": counts["skipped"] + counts["xfailed"],
        "tests": len(cases),
        "time": f"{record['duration_s'] or 0.0:.3f}",
        "timestamp": _text(record["started_at"] or record["created_at"]),
        "hostname": record["environment"].get("hostname", ""),
    }
    properties = {
        "sojourn.session_id": record["session_id"],
        "sojourn.status": record["status"],
        "sojourn.outcome": record["outcome"] or "",
        "sojourn.title": record["title"],
        "sojourn.seq": subject.seq,
    }
    told = "".join(f"<property{_attributes({'name': n, 'value': v})} />" for n, v in properties.items())
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<testsuites'
        f"{_attributes({'name': record['plan']})}><testsuite{_attributes(attributes)}>"
        f"<properties>{told}</properties>\n"
    ).encode()


def _junit_case(case_id: str, case: _Case, details: str | None) -> bytes:
    above, separator, name = case_id.partition("::")
    address = {"classname": above, "name": name} if separator else {"classname": "", "name": case_id}
    opening = f"<testcase{_attributes({**address, 'time': f'{case.duration_s:.3f}'})}"
    message = case.message or ""
    if case.outcome in ("failed", "error"):
        tag = "failure" if case.outcome == "failed" else "error"
        inside = f"<{tag}{_attributes({'message': message})}>{_escaped(details or message)}</{tag}>"
    elif case.outcome == "xfailed":
        inside = f"<skipped{_attributes({'type': 'pytest.xfail', 'message': message})} />"
    elif case.outcome == "skipped":
        inside = f"<skipped{_attributes({'type': 'pytest.skip', 'message': message})}>{_escaped(details or message)}</skipped>"
    else:
        return f"{opening} />\n".encode()
    return f"{opening}>{inside}</testcase>\n".encode()


# What is no Char of XML 1.0 (section 2.2), and DEL, as pytest has it.
_NO_CHARACTER = re.compile("[^\t\n\r\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _escaped(text: str) -> str:
    """As the text of an element. A carriage return is written as its number, or a parser would make a line feed of it."""
    return escape(_without_illegal(text), {"\r": "&#13;"})


def _attributes(values: Mapping[str, Any]) -> str:
    """As attributes, a space before each. There a parser takes all bare white space for blanks."""
    white = {'"': "&quot;", "\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}
    return "".join(
        f' {name}="{escape(_without_illegal(str(value)), white)}"' for name, value in values.items()
    )


def _without_illegal(text: str) -> str:
    return _NO_CHARACTER.sub(lambda found: f"#x{ord(found[0]):02X}", text)


def _text(value: Any) -> str:
    """A time of a record, which is a datetime in this process and text from elsewhere."""
    return value if isinstance(value, str) else str(value.isoformat())


async def _upto(lines: AsyncGenerator[Line], subject: Subject) -> AsyncGenerator[Line]:
    """The lines up to the subject's seq. Raises Damaged where they end before it."""
    last = 0
    async with aclosing(lines):
        async for line in lines:
            if line.seq > subject.seq:
                break
            last = line.seq
            yield line
    if last < subject.seq:
        raise Damaged(
            f"the history of {subject.record['session_id']} ends at {last} and should reach {subject.seq}; what came is not "
            "all of it: `sojourn doctor` says what is damaged"
        )


async def _gathered(parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The same bytes in chunks worth sending."""
    waiting: list[bytes] = []
    size = 0
    async with aclosing(parts):
        async for part in parts:
            waiting.append(part)
            size += len(part)
            if size >= CHUNK_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
