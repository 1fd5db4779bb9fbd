"""A live stream on a virtual clock: comments, stalled readers, a runtime that fails."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import cast

import anyio
import pytest
import trio
import trio.testing
from attrs import define, field

from sojourn.actors.errors import StoreUnavailable
from sojourn.http.stream import COMMENT_FRAME, STALLED_S, EventStream, StreamRegistry, event_frame
from sojourn.runtime.live import Line
from sojourn.runtime.runtime import Runtime
from tests.support.facade import Exchange

pytestmark = pytest.mark.trio

SCOPE = {"type": "http", "method": "GET", "path": "/"}


@define
class Script:
    """A runtime whose stream gives these lines, each after a pause, and then an error or nothing."""

    lines: list[tuple[float, Line]] = field(factory=list)
    error: Exception | None = None
    closed: bool = False

    @asynccontextmanager
    async def stream(self, session_id: str, *, after: int) -> AsyncIterator[AsyncIterator[Line]]:
        async with aclosing(self._lines()) as lines:
            try:
                yield lines
            finally:
                self.closed = True

    async def _lines(self) -> AsyncGenerator[Line]:
        for pause_s, line in self.lines:
            await anyio.sleep(pause_s)
            yield line
        if self.error is not None:
            raise self.error
        await anyio.sleep_forever()

    def answer(self, registry: StreamRegistry, *, until_end: bool = False) -> EventStream:
        runtime = cast(Runtime, self)
        return EventStream(
            registry, runtime, "sess_1", opening=b"", after=0, until_end=until_end, ended=False
        )


def line(seq: int, text: bytes = b"x", kind: str = "log.appended") -> Line:
    return Line(1, seq, kind, b'{"text":"%b"}' % text)


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


async def test_frames_that_wait_leave_as_one_chunk() -> None:
    exchange = Exchange(reading=anyio.Event())
    script = Script([(0.0, line(seq)) for seq in range(1, 4)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(script.answer(StreamRegistry()), SCOPE, exchange.receive, exchange.send)
        await trio.testing.wait_all_tasks_blocked()
        assert exchange.reading is not None
        exchange.reading.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    expected = b"".join(event_frame(1, seq, "log.appended", line(seq).line) for seq in range(1, 4))
    assert exchange.body.endswith(expected)
    assert len(exchange.sent) <= 3


async def test_a_reader_that_takes_nothing_for_a_minute_is_let_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    exchange = Exchange(reading=anyio.Event())
    script = Script([(0.0, line(seq, b"x" * 10_000)) for seq in range(1, 1_000)])
    registry = StreamRegistry()
    began = trio.current_time()
    await script.answer(registry)(SCOPE, exchange.receive, exchange.send)
    assert trio.current_time() - began == pytest.approx(STALLED_S)
    assert script.closed
    assert len(registry) == 0


async def test_a_runtime_that_fails_ends_the_stream_after_what_it_gave() -> None:
    exchange = Exchange()
    script = Script([(0.0, line(1))], error=StoreUnavailable())
    await script.answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
    assert exchange.body.endswith(event_frame(1, 1, "log.appended", line(1).line))
    assert exchange.sent[-1][1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_client_that_goes_away_ends_the_stream() -> None:
    exchange = Exchange(
        incoming=[{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
    )
    script = Script()
    await script.answer(StreamRegistry())(SCOPE, exchange.receive, exchange.send)
    assert script.closed


async def test_a_closed_registry_ends_the_streams_that_are_open_and_those_to_come() -> None:
    registry = StreamRegistry()
    async with trio.open_nursery() as nursery:
        exchange = Exchange()
        nursery.start_soon(Script().answer(registry), SCOPE, exchange.receive, exchange.send)
        await trio.testing.wait_all_tasks_blocked()
        assert len(registry) == 1
        registry.close()
    later = Exchange()
    await Script([(0.0, line(1))]).answer(registry)(SCOPE, later.receive, later.send)
    assert later.status == 200
    assert len(registry) == 0


async def test_the_event_that_ends_the_session_is_the_last_one_where_that_was_asked() -> None:
    exchange = Exchange()
    script = Script([(0.0, line(1)), (0.0, line(2, kind="session.completed")), (0.0, line(3))])
    await script.answer(StreamRegistry(), until_end=True)(SCOPE, exchange.receive, exchange.send)
    assert b"id: 1.2\n" in exchange.body
    assert b"id: 1.3\n" not in exchange.body
