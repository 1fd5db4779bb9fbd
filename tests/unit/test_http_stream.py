"""A live stream on a virtual clock: comments, stalled readers, a runtime that fails."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import anyio
import pytest
import trio
import trio.testing
from attrs import define, field
from starlette.types import Message

from sojourn.actors.errors import StoreUnavailable
from sojourn.actors.ports import Record
from sojourn.http.stream import (
    CHUNK_BYTES,
    COMMENT_FRAME,
    DIRECT,
    LOOK_EVERY_S,
    STALLED_S,
    EventStream,
    Progress,
    StreamRegistry,
    event_frame,
)
from sojourn.runtime.live import News, Outlet, lines_of
from sojourn.runtime.runtime import Runtime
from tests.support.facade import Exchange

pytestmark = pytest.mark.trio

SCOPE = {"type": "http", "method": "GET", "path": "/"}


@define
class Script:
    """A runtime of one session in which these events happen, each after a pause, and then an error or nothing."""

    happens: list[tuple[float, News]] = field(factory=list)
    error: Exception | None = None
    closed: bool = False
    left: bool = False
    above: int = 0
    outlet: Outlet | None = None
    recalled: anyio.Event = field(factory=anyio.Event)

    @asynccontextmanager
    async def follow(self, session_id: str, *, after: int, outlet: Outlet | None) -> AsyncIterator["Script"]:
        self.outlet = outlet
        try:
            yield self
        finally:
            self.left = True

    async def take(self) -> list[News]:
        if self.happens:
            pause_s, news = self.happens.pop(0)
            await anyio.sleep(pause_s)
            return [news]
        if self.error is not None:
            raise self.error
        await self.recalled.wait()
        self.recalled = anyio.Event()
        return []

    def recall(self) -> None:
        self.recalled.set()

    def answer(self, registry: StreamRegistry, *, until_end: bool = False) -> EventStream:
        runtime = cast(Runtime, self)
        return EventStream(
            registry, runtime, "sess_1", opening=b"", after=0, until_end=until_end, ended=False
        )


def record(first_seq: int, *texts: bytes, kind: bytes = b"log.appended") -> News:
    """One commit."""
    payload = b"".join([b'{"text":"%b","type":"%b"}\n' % (text, kind) for text in texts])
    found = Record("sess_1", first_seq, len(texts), 1, payload)
    return News(found, found.last_seq)


def frames(news: News) -> bytes:
    lines = lines_of(news.record, 0)
    return b"".join([event_frame(line.epoch, line.seq, line.type, line.line) for line in lines])


async def test_a_silent_stream_carries_a_comment_at_least_every_15_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    exchange = Exchange()
    began = trio.current_time()
    with trio.move_on_after(200):
        await Script().answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
    times = [at - began for at, message in exchange.sent if message.get("body") == COMMENT_FRAME]
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert len(times) >= 13
    assert max(gaps) <= 15.0


async def test_events_of_one_commit_leave_as_one_chunk() -> None:
    exchange = Exchange()
    news = record(1, b"x", b"y", b"z")
    with trio.move_on_after(1):
        await Script([(0.0, news)]).answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
    assert [message.get("body") for _, message in exchange.sent][2:] == [frames(news)]


async def test_streams_of_a_session_send_the_same_frames_made_once() -> None:
    news = record(1, b"x", b"y")
    chunks = []
    for _ in range(2):
        exchange = Exchange()
        with trio.move_on_after(1):
            await Script([(0.0, news)]).answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
        chunks.append(exchange.sent[-1][1]["body"])
    assert chunks[0] == frames(news)
    assert chunks[0] is chunks[1]


@define
class Wire:
    """A `Direct` that takes chunks, or refuses."""

    takes: bool = True
    written: list[bytes] = field(factory=list)

    def write_chunk(self, chunk: bytes) -> bool:
        if self.takes:
            self.written.append(chunk)
        return self.takes


@asynccontextmanager
async def under_our_server(wire: Wire, *, until_end: bool = False) -> AsyncIterator[Script]:
    """A stream that waits for what happens, of a server that gives `wire`."""
    script, registry, exchange = Script(), StreamRegistry(), Exchange()
    async with trio.open_nursery() as nursery:
        scope = {**SCOPE, "extensions": {DIRECT: wire}}
        nursery.start_soon(
            script.answer(registry, until_end=until_end), scope, exchange.receive, exchange.send
        )
        await trio.testing.wait_all_tasks_blocked()
        yield script
        assert len(exchange.sent) == 2  # the start, and the retry line: nothing woke its task
        nursery.cancel_scope.cancel()


async def test_what_happens_is_written_to_a_level_stream_as_one_chunk_of_the_transfer_coding() -> None:
    wire = Wire()
    one, two = record(1, b"x", b"y"), record(3, b"z")
    async with under_our_server(wire) as script:
        assert script.outlet is not None
        assert script.outlet.push([one])
        assert script.outlet.push([one, two])
        wire.takes = False
        assert not script.outlet.push([two])
    chunks = [b"%x\r\n%b\r\n" % (len(frames(news)), frames(news)) for news in (one, two)]
    assert wire.written == [chunks[0], chunks[0] + chunks[1]]


async def test_a_record_larger_than_a_chunk_is_left_to_the_streams_own_task() -> None:
    wire = Wire()
    async with under_our_server(wire) as script:
        assert script.outlet is not None
        assert not script.outlet.push([record(1, b"x" * CHUNK_BYTES)])
        assert not script.outlet.push([record(seq, b"x" * (CHUNK_BYTES // 3)) for seq in (1, 2, 3)])
        assert script.outlet.push([record(1, b"x")])
    assert len(wire.written) == 1


async def test_a_stream_that_is_to_see_the_end_looks_at_every_event_itself() -> None:
    async with under_our_server(Wire(), until_end=True) as script:
        assert script.outlet is None


async def test_a_stream_that_is_closed_takes_nothing_more() -> None:
    progress = Progress(Wire())
    progress.close()
    assert not progress.push([record(1, b"x")])


async def test_a_stream_that_begins_within_a_commit_is_sent_the_rest_of_it() -> None:
    exchange = Exchange()
    script = Script([(0.0, record(1, b"x", b"y", b"z"))], above=2)
    with trio.move_on_after(1):
        await script.answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
    assert exchange.body.endswith(event_frame(1, 3, "log.appended", b'{"text":"z","type":"log.appended"}'))
    assert b"id: 1.2\n" not in exchange.body


async def test_a_long_commit_leaves_in_chunks_of_bounded_size() -> None:
    exchange = Exchange()
    news = record(1, *[b"x" * 10_000] * 50)
    with trio.move_on_after(1):
        await Script([(0.0, news)]).answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
    chunks = [message["body"] for _, message in exchange.sent if "body" in message]
    assert b"".join(chunks).endswith(frames(news))
    assert max(map(len, chunks)) < CHUNK_BYTES + 11_000
    assert len(chunks) < 12


async def test_a_reader_that_takes_nothing_for_a_minute_is_let_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    exchange = Exchange(reading=anyio.Event())
    script = Script([(0.0, record(seq, b"x" * 10_000)) for seq in range(1, 1_000)])
    registry = StreamRegistry()
    began = trio.current_time()
    await script.answer(registry)(SCOPE, exchange.receive, exchange.send)
    assert STALLED_S <= trio.current_time() - began <= STALLED_S + 2 * LOOK_EVERY_S
    assert len(registry) == 0


async def test_a_reader_that_takes_little_by_little_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    class Slow(Exchange):
        async def send(self, message: Message) -> None:
            await anyio.sleep(STALLED_S - 10)
            await super().send(message)

    exchange = Slow()
    script = Script([(0.0, record(seq, b"x")) for seq in range(1, 10)])
    with trio.move_on_after(STALLED_S * 12):
        await script.answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
    assert b"id: 1.9\n" in exchange.body


async def test_a_runtime_that_fails_ends_the_stream_after_what_it_gave() -> None:
    exchange = Exchange()
    news = record(1, b"x")
    script = Script([(0.0, news)], error=StoreUnavailable())
    await script.answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
    assert exchange.body.endswith(frames(news))
    assert exchange.sent[-1][1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_client_that_goes_away_ends_the_stream() -> None:
    exchange = Exchange(
        incoming=[{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
    )
    script = Script()
    await script.answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
    assert script.left


async def test_a_closed_registry_ends_the_streams_that_are_open_and_those_to_come() -> None:
    registry = StreamRegistry()
    async with trio.open_nursery() as nursery:
        exchange = Exchange()
        nursery.start_soon(Script().answer(registry), SCOPE, exchange.receive, exchange.send)
        await trio.testing.wait_all_tasks_blocked()
        assert len(registry) == 1
        registry.close()
    later = Exchange()
    await Script([(0.0, record(1, b"x"))]).answer(registry)(SCOPE, later.receive, later.send)
    assert later.status == 200
    assert len(registry) == 0


async def test_the_event_that_ends_the_session_is_the_last_one_where_that_was_asked() -> None:
    exchange = Exchange()
    ending = record(2, b"x", kind=b"session.completed")
    script = Script([(0.0, record(1, b"x")), (0.0, ending), (0.0, record(3, b"x"))])
    await script.answer(StreamRegistry(), until_end=True)(SCOPE, exchange.receive, exchange.send)
    assert b"id: 1.2\n" in exchange.body
    assert b"id: 1.3\n" not in exchange.body
