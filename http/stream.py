"""Server-sent events (WHATWG HTML, 9.2): a session's history above a seq, then what happens, frame by frame.

Two tasks a stream. The *feeder* pulls lines from the runtime and stops pulling while `FRAMES_BYTES_MAX` wait to be sent;
the runtime then lets the stream fall behind and goes on from the history later, so a slow reader costs this buffer
and slows nobody. The *writer* sends all that is ready in one chunk, and a comment when nothing was for a while.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..actors.session.commands import ENDING_EVENTS
from ..runtime.live import Line
from ..runtime.runtime import Runtime
from .answers import encode

log = structlog.stdlib.get_logger()

FRAMES_BYTES_MAX = 64 * 1024
# The wire promises a comment at least every 15 s; the rest is for a loop that is late.
COMMENT_INTERVAL_S = 14.0
# A reader that takes nothing for so long is let go: it resumes by the last id it saw.
STALLED_S = 60.0
# How long a browser waits before it reconnects.
RETRY_FRAME = b"retry: 2000\n\n"
COMMENT_FRAME = b":\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back until its buffer is full
]


def event_frame(epoch: int, seq: int, event_type: str, data: bytes) -> bytes:
    """`data` is JSON, which has no bare line end, so one `data:` line holds it."""
    return b"id: %d.%d\nevent: %b\ndata: %b\n\n" % (epoch, seq, event_type.encode(), data)


def snapshot_frame(epoch: int, seq: int, record: dict[str, Any], state: bytes) -> bytes:
    data = b'{"record":' + encode(record) + b',"state":' + state + b"}"
    return event_frame(epoch, seq, "snapshot", data)


def rewound_frame(epoch: int, seq_asked: int, seq: int) -> bytes:
    """Tells a reader that what it saw above `seq` has not survived."""
    return event_frame(epoch, seq, "rewound", encode({"from": seq_asked, "to": seq}))


class StreamRegistry:
    """The streams that are open. Closing it ends them all, and every later one at once."""

    def __init__(self) -> None:
        self._open: set[_Outbox] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> "Iterator[_Outbox]":
        return iter(self._open)

    def add(self, outbox: "_Outbox") -> None:
        self._open.add(outbox)
        if self._closed:
            outbox.close()

    def discard(self, outbox: "_Outbox") -> None:
        self._open.discard(outbox)

    def close(self) -> None:
        self._closed = True
        for outbox in self._open:
            outbox.close()


class _Outbox:
    """Frames between feeder and writer. At most `FRAMES_BYTES_MAX` and one frame wait.

    Attributes:
        waiting_bytes: what waits now.
    """

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self.waiting_bytes = 0
        self._changed: anyio.Event | None = None
        self.closed = False

    async def put(self, frame: bytes) -> None:
        """Waits while it is full and not closed."""
        while self.waiting_bytes >= FRAMES_BYTES_MAX and not self.closed:
            await self._wait_change()
        self._frames.append(frame)
        self.waiting_bytes += len(frame)
        self._wake()

    async def take(self) -> bytes:
        """All frames that wait, at least one; empty once it is closed and taken out."""
        while not self._frames and not self.closed:
            await self._wait_change()
        chunk = b"".join(self._frames)
        self._frames.clear()
        self.waiting_bytes = 0
        self._wake()
        return chunk

    def close(self) -> None:
        """No more is waited for; what waits can still be taken."""
        self.closed = True
        self._wake()

    async def _wait_change(self) -> None:
        # Feeder and writer never wait both: one waits while it is full, the other while it is empty.
        self._changed = anyio.Event()
        await self._changed.wait()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class EventStream(Response):
    """The live stream of one session, as an answer.

    Args:
        opening: the first frame (a snapshot, a `rewound`), or empty.
        after: the seq above which events follow.
        until_end: whether it closes after the event that ends the session.
        ended: whether that event has happened already: then the stream is what the history holds.
    """

    def __init__(
        self,
        registry: StreamRegistry,
        runtime: Runtime,
        session_id: str,
        *,
        opening: bytes,
        after: int,
        until_end: bool,
        ended: bool,
    ) -> None:
        self.status_code = 200
        self.raw_headers = HEADERS
        self.background = None
        self._registry = registry
        self._runtime = runtime
        self._session_id = session_id
        self._opening = opening
        self._after = after
        self._until_end = until_end
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        outbox = _Outbox()
        await outbox.put(RETRY_FRAME + self._opening)
        self._opening = b""  # a snapshot may be large, and a stream lives for days
        self._registry.add(outbox)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._feed, outbox)
                tasks.start_soon(_wait_disconnect, receive, outbox)
                await self._write(outbox, send)
                tasks.cancel_scope.cancel()
        finally:
            self._registry.discard(outbox)

    async def _feed(self, outbox: _Outbox) -> None:
        try:
            async with self._lines() as lines:
                async for line in lines:
                    await outbox.put(event_frame(line.epoch, line.seq, line.type, line.line))
                    if outbox.closed or (self._until_end and line.type in ENDING_EVENTS):
                        break
        except Exception as error:
            # It is too late for a problem document. The reader comes back by its last id, and is told then.
            log.warning(
                "http.stream_broken",
                session=self._session_id,
                remedy="none is needed: the reader comes back by its last id",
                exc_info=error,
            )
        outbox.close()

    def _lines(self) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Line]]:
        if self._until_end and self._ended:
            return contextlib.aclosing(self._runtime.events(self._session_id, after=self._after))
        return self._runtime.stream(self._session_id, after=self._after)

    async def _write(self, outbox: _Outbox, send: Send) -> None:
        while True:
            chunk = COMMENT_FRAME
            with anyio.move_on_after(COMMENT_INTERVAL_S):
                chunk = await outbox.take()
            with anyio.move_on_after(STALLED_S) as taken_in_time:
                await send({"type": "http.response.body", "body": chunk, "more_body": bool(chunk)})
            if not chunk:
                return
            if taken_in_time.cancelled_caught:
                log.info("http.stream_stalled", session=self._session_id, stalled_s=STALLED_S)
                return


async def _wait_disconnect(receive: Receive, outbox: _Outbox) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    outbox.close()
