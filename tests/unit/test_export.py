"""Exports, pure: bytes out of a record, a state and event lines."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from sojourn.actors.errors import Damaged
from sojourn.runtime.history.export import CHUNK_BYTES, KINDS, Format, Subject, export
from sojourn.runtime.live import Line

pytestmark = pytest.mark.anyio

RECORD: dict[str, Any] = {
    "session_id": "sess_1", "plan": "a & b", "title": "it's \"quoted\"", "status": "completed", "outcome": "failed",
    "created_at": "2026-11-22T10:00:00Z", "started_at": None, "duration_s": 1.5, "environment": {"hostname": "here"},
}  # fmt: skip


def event(seq: int, kind: str = "log.appended", **data: Any) -> Line:
    document = {"at": "2026-11-22T10:00:00Z", "cause": None, "data": data, "seq": seq, "type": kind}
    return Line(1, seq, kind, msgspec.json.encode(document))


def result(seq: int, case_id: str, outcome: str, details: str | None = None) -> Line:
    return event(seq, "result.recorded", case_id=case_id, outcome=outcome, details=details)


def case(seq: int, outcome: str, message: str | None = None) -> dict[str, Any]:
    return {
        "duration_s": 0.25,
        "message": message,
        "outcome": outcome,
        "runs": 1,
        "seq": seq,
        "started_at": None,
    }


def subject(seq: int, **results: dict[str, Any]) -> Subject:
    return Subject(record=RECORD, seq=seq, state=msgspec.json.encode({"results": results, "seq": seq}))


async def stored(lines: Iterable[Line]) -> AsyncGenerator[Line]:
    for line in lines:
        yield line


async def whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def exported(kind: Format, what: Subject, *lines: Line) -> bytes:
    return await whole(export(kind, what, stored(lines)))


async def suite_of(what: Subject, *lines: Line) -> ElementTree.Element:
    root = ElementTree.fromstring(await exported("junit", what, *lines))
    assert root.tag == "testsuites"
    (suite,) = root
    return suite


async def test_ndjson_is_the_lines_as_they_are_stored() -> None:
    lines = [event(1), event(2, text="\u2028")]
    assert await exported("ndjson", subject(2), *lines) == b"".join(line.line + b"\n" for line in lines)


async def test_json_is_one_document_of_record_state_and_events() -> None:
    lines = [event(1), event(2)]
    document = json.loads(await exported("json", subject(2), *lines))
    assert list(document) == ["record", "state", "events"]
    assert document["record"] == RECORD
    assert document["state"] == {"results": {}, "seq": 2}
    assert document["events"] == [json.loads(line.line) for line in lines]
    assert json.loads(await exported("json", subject(0)))["events"] == []


@pytest.mark.parametrize("kind", KINDS)
async def test_what_came_after_the_moment_of_the_export_is_left_out(kind: Format) -> None:
    lines = [result(1, "t::a", "passed"), result(2, "t::a", "failed"), event(3)]
    what = subject(2, **{"t::a": case(2, "failed")})
    assert await exported(kind, what, *lines) == await exported(kind, what, *lines[:2])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_history_that_ends_too_early_does_not_end_well(kind: Format) -> None:
    with pytest.raises(Damaged, match="ends at 2 and should reach 3"):
        await exported(kind, subject(3), event(1), event(2))


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_in_the_history_comes_through(kind: Format) -> None:
    async def lines() -> AsyncGenerator[Line]:
        yield event(1)
        raise Damaged("a record is damaged")

    with pytest.raises(Damaged, match="a record is damaged"):
        await whole(export(kind, subject(3), lines()))


@pytest.mark.parametrize("kind", KINDS)
async def test_it_never_holds_more_than_a_chunk_and_a_line(kind: Format) -> None:
    count, pulled = 5_000, 0
    results = {f"t::{seq}": case(seq, "passed") for seq in range(1, count + 1)}

    async def lines() -> AsyncGenerator[Line]:
        nonlocal pulled
        for seq in range(1, count + 1):
            pulled += 1
            yield result(seq, f"t::{seq}", "failed", "x" * 200)

    taken = 0
    chunks = export(kind, subject(count, **results), lines())
    async for chunk in chunks:
        taken += 1
        # The head of a JSON document (record and state) is a chunk by itself.
        assert len(chunk) < CHUNK_BYTES + 1_000 or (kind == "json" and taken == 1)
        if taken == 3:
            break
    assert pulled < count
    await chunks.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_export_that_is_not_taken_to_its_end_closes_the_history(kind: Format) -> None:
    closed = False

    async def lines() -> AsyncGenerator[Line]:
        nonlocal closed
        try:
            for seq in range(1, 10_000):
                yield result(seq, f"t::{seq}", "failed", "x" * 100)
        finally:
            closed = True

    results = {f"t::{seq}": case(seq, "failed") for seq in range(1, 10_000)}
    chunks = export(kind, subject(9_999, **results), lines())
    await anext(chunks)
    await anext(chunks)
    await chunks.aclose()
    assert closed


async def test_junit_has_a_case_an_element_in_the_order_of_the_latest_results() -> None:
    suite = await suite_of(
        subject(
            6,
            **{
                "pkg.test_a.TestX::test_1[a::b]": case(6, "failed", "assert 1 == 2"),
                "t::error": case(2, "error", "no fixture"),
                "t::xfailed": case(3, "xfailed", "known"),
                "t::skipped": case(4, "skipped", "not here"),
                "t::xpassed": case(5, "xpassed", "known"),
            },
        ),
        result(1, "pkg.test_a.TestX::test_1[a::b]", "error", "the first run"),
        result(2, "t::error", "error", "Traceback\n  of it"),
        result(3, "t::xfailed", "xfailed"),
        result(4, "t::skipped", "skipped", "('f.py', 1, 'Skipped: not here')"),
        result(5, "t::xpassed", "xpassed"),
        result(6, "pkg.test_a.TestX::test_1[a::b]", "failed", "the second run"),
    )
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time", "name")} == {
        "tests": "5", "failures": "1", "errors": "1", "skipped": "2", "time": "1.500", "name": "a & b",
    }  # fmt: skip
    assert (suite.get("timestamp"), suite.get("hostname")) == ("2026-11-22T10:00:00Z", "here")
    properties = {found.get("name"): found.get("value") for found in suite.iter("property")}
    assert properties["sojourn.session_id"] == "sess_1"
    assert properties["sojourn.title"] == 'it\'s "quoted"'
    cases = suite.findall("testcase")
    assert [found.get("name") for found in cases] == [
        "error",
        "xfailed",
        "skipped",
        "xpassed",
        "test_1[a::b]",
    ]
    error, xfailed, skipped, xpassed, failed = cases
    assert (failed.get("classname"), failed.get("time")) == ("pkg.test_a.TestX", "0.250")
    assert [(child.tag, child.get("message"), child.text) for child in failed] == [
        ("failure", "assert 1 == 2", "the second run")
    ]
    assert [(child.tag, child.get("message"), child.text) for child in error] == [
        ("error", "no fixture", "Traceback\n  of it")
    ]
    assert [child.attrib for child in xfailed] == [{"type": "pytest.xfail", "message": "known"}]
    assert [child.get("type") for child in skipped] == ["pytest.skip"]
    assert list(xpassed) == []


async def test_junit_of_a_case_without_a_class_or_message() -> None:
    suite = await suite_of(subject(1, front_page=case(1, "failed")), result(1, "front_page", "failed"))
    (found,) = suite.findall("testcase")
    assert (found.get("classname"), found.get("name")) == ("", "front_page")
    assert [(child.get("message"), child.text) for child in found] == [("", None)]


async def test_junit_of_a_result_whose_event_is_lost_comes_last_from_the_state() -> None:
    results = {"t::lost": case(1, "failed", "seen"), "t::kept": case(2, "failed", "kept")}
    suite = await suite_of(subject(3, **results), result(2, "t::kept", "failed", "all of it"), event(3))
    assert [(found.get("name"), found[0].text) for found in suite.findall("testcase")] == [
        ("kept", "all of it"),
        ("lost", "seen"),
    ]


async def test_junit_of_a_session_without_results_is_an_empty_suite() -> None:
    suite = await suite_of(subject(1), event(1))
    assert (suite.get("tests"), suite.findall("testcase")) == ("0", [])


async def test_what_xml_cannot_hold_is_written_as_its_number_and_white_space_survives() -> None:
    text = "a<b>&\"'\x1b[31m\x00\x7f\ufffe\n\r\t ]]> end"
    suite = await suite_of(
        subject(1, **{f"t::{text}": case(1, "failed", text)}), result(1, f"t::{text}", "failed", text)
    )
    kept = "a<b>&\"'#x1B[31m#x00#x7F#xFFFE\n\r\t ]]> end"
    (found,) = suite.findall("testcase")
    assert (found.get("name"), found[0].get("message"), found[0].text) == (kept, kept, kept)
