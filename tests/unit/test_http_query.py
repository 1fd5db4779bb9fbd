"""Query parameters, cursors and entity tags."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from sojourn.actors.ports import CatalogQuery
from sojourn.actors.session.model import Ack
from sojourn.http.problems import InvalidRequest
from sojourn.http.query import Query, decode_cursor, encode_cursor

SESSION = st.from_regex(r"sess_[0-9a-f]{32}", fullmatch=True)
TIMES = st.datetimes(timezones=st.just(UTC))
QUERIES = st.builds(
    CatalogQuery,
    plan=st.none() | st.text(),
    status=st.none() | st.frozensets(st.sampled_from(["running", "created", "failed"])),
)


def query_of(raw: bytes, *known: str) -> Query:
    return Query(Request({"type": "http", "query_string": raw, "headers": []}), *known)


@given(TIMES, SESSION, QUERIES)
def test_a_cursor_brings_back_where_the_page_ended(
    at: datetime, session_id: str, query: CatalogQuery
) -> None:
    assert decode_cursor(encode_cursor(at, session_id, query), query) == (at, session_id)


@given(SESSION, QUERIES, QUERIES)
def test_a_cursor_holds_for_its_own_filters_only(
    session_id: str, one: CatalogQuery, other: CatalogQuery
) -> None:
    cursor = encode_cursor(datetime(2026, 11, 22, tzinfo=UTC), session_id, one)
    if (one.plan, one.status) != (other.plan, other.status):
        with pytest.raises(InvalidRequest, match="other filters"):
            decode_cursor(cursor, other)


@given(st.text())
def test_no_text_breaks_the_reading_of_cursors(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        decode_cursor(text, CatalogQuery())


def test_a_cursor_carries_the_moment_whatever_the_offset() -> None:
    at = datetime(2026, 11, 22, 12, tzinfo=timezone(timedelta(hours=2)))
    cursor = encode_cursor(at, "sess_" + "0" * 32, CatalogQuery())
    assert decode_cursor(cursor, CatalogQuery())[0] == at


@given(st.binary(max_size=200))
def test_no_query_string_breaks_the_reading_of_parameters(raw: bytes) -> None:
    try:
        query = query_of(raw, "limit", "types", "ack")
        query.number("limit", 1, low=1, high=10)
        query.names("types", ["a"])
        query.choice("ack", Ack, Ack.DURABLE)
    except InvalidRequest:
        pass


def test_parameters_are_read_as_utf8_and_given_once() -> None:
    assert query_of(b"plan=tests+%C3%A4", "plan").text("plan") == "tests ä"
    assert query_of(b"plan=", "plan").text("plan") == ""
    for raw in (b"plan=a&plan=b", b"other=a", b"plan=" + b"a" * 1_025, b"&".join([b"plan=a"] * 101)):
        with pytest.raises(InvalidRequest):
            query_of(raw, "plan")
