"""Server-sent events (WHATWG HTML, 9.2): a session's history above a seq, then what happens, frame by frame.

A stream pulls: it takes what is there, sends it in chunks, and takes what has come meanwhile. So a slow reader slows nobody
and costs what it is being sent; it falls behind, and the runtime goes on from the history. What happens is made into frames
once, by the first stream that comes to it, and sent by all of them. Under our own server a stream that is level is written to
from the hub's loop and stays asleep: what is left of a fan-out is a write for each. Comments and the deadline are looked after every few seconds, so that no event pays for a timer.
"""

import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, Protocol

import anyio
import structlog
from attrs import define, field
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..actors.session.commands import ENDING_EVENTS
from ..runtime.live import Line, News, Subscription, lines_of
from ..runtime.runtime import Runtime
from .answers import encode

log = structlog.stdlib.get_logger()

# The extension of the scope that is a `Direct`. Only a server with nothing between it and this application may give it.
DIRECT = "sojourn.direct"
# A chunk ends with the frame that reaches this.
CHUNK_BYTES = 64 * 1024
# The wire promises a comment at least every 15 s: it comes when nothing was sent from one look to the next.
LOOK_EVERY_S = 7.0
# A reader that takes nothing for so long is let go at the next look: it resumes by the last id it saw.
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


class Direct(Protocol):
    """The connection of a response whose body is sent in chunks (RFC 9112, 7.1), past ASGI: a `send` is a coroutine that
    frames its chunk anew for each receiver."""

    def write_chunk(self, chunk: bytes) -> bool:
        """Write it, size line and all; false, and nothing is written, where a `send` would wait. Between the response's start
        and its end, when no `send` is under way. Never blocks."""
        ...


class StreamRegistry:
    """The streams that are open. Closing it ends them all, and every later one at once."""

    def __init__(self) -> None:
        self._open: set[Progress] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> "Iterator[Progress]":
        return iter(self._open)

    def add(self, stream: "Progress") -> None:
        self._open.add(stream)
        if self._closed:
            stream.close()

    def discard(self, stream: "Progress") -> None:
        self._open.discard(stream)

    def close(self) -> None:
        self._closed = True
        for stream in self._open:
            stream.close()


@define(eq=False)
class Progress:
    """How far an open stream is.

    Attributes:
        direct: where what happens is written while it waits; None: its own task sends it.
        place: where it waits for what happens, once it does.
        waiting_bytes: of the chunk that is being sent; 0: nothing is.
        sent: how many chunks were.
        closed: it takes no more, and ends once what is being sent was taken.
        stalled: cancelled, it ends in the middle of a chunk.
    """

    direct: Direct | None = None
    place: Subscription | None = None
    waiting_bytes: int = 0
    sent: int = 0
    closed: bool = False
    stalled: anyio.CancelScope = field(factory=anyio.CancelScope)

    def push(self, news: Sequence[News]) -> bool:
        """See live.Outlet."""
        if self.closed or self.direct is None:
            return False
        chunk = _chunk(news[0]) if len(news) == 1 else b"".join([_chunk(one) for one in news])
        if len(chunk) > CHUNK_BYTES or not self.direct.write_chunk(chunk):
            return False
        self.sent += 1
        return True

    def close(self) -> None:
        self.closed = True
        if self.place is not None:
            self.place.recall()


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
        # Who wants to see the end is sent to by its own task, which looks for it.
        direct = scope.get("extensions", {}).get(DIRECT) if not self._until_end else None
        progress = Progress(direct)
        self._registry.add(progress)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_wait_disconnect, receive, progress)
                tasks.start_soon(self._look_after, progress)
                with progress.stalled:
                    async with contextlib.aclosing(self._chunks(progress)) as chunks:
                        async for chunk in chunks:
                            progress.waiting_bytes = len(chunk)
                            await send({"type": "http.response.body", "body": chunk, "more_body": True})
                            progress.waiting_bytes = 0
                            progress.sent += 1
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                tasks.cancel_scope.cancel()
        finally:
            self._registry.discard(progress)

    async def _chunks(self, progress: Progress) -> AsyncGenerator[bytes]:
        opening, self._opening = self._opening, b""  # a snapshot may be large, and a stream lives for days
        yield RETRY_FRAME + opening
        del opening
        try:
            if self._until_end and self._ended:
                async with contextlib.aclosing(self._stored()) as chunks:
                    async for chunk in chunks:
                        if progress.closed:
                            return
                        yield chunk
                return
            outlet = progress if progress.direct is not None else None
            async with self._runtime.follow(self._session_id, after=self._after, outlet=outlet) as place:
                progress.place = place
                while not (progress.closed or place.closed):
                    news = await place.take()
                    if not news and not (progress.closed or place.closed):
                        yield COMMENT_FRAME
                    for chunk, is_last in self._framed(news, place.above):
                        yield chunk
                        if is_last or progress.closed:
                            return
        except Exception as error:
            # It is too late for a problem document. The reader comes back by its last id, and is told then.
            log.warning(
                "http.stream_broken",
                session=self._session_id,
                remedy="none is needed: the reader comes back by its last id",
                exc_info=error,
            )

    async def _stored(self) -> AsyncGenerator[bytes]:
        frames, size = [], 0
        async with contextlib.aclosing(self._runtime.events(self._session_id, after=self._after)) as lines:
            async for line in lines:
                frames.append(_frame(line))
                size += len(frames[-1])
                if line.type in ENDING_EVENTS:
                    break
                if size >= CHUNK_BYTES:
                    yield b"".join(frames)
                    frames, size = [], 0
        yield b"".join(frames)

    def _framed(self, news: Sequence[News], after: int) -> Iterator[tuple[bytes, bool]]:
        """Chunks, and whether it is the one that ends the stream."""
        frames: list[bytes] = []
        size = 0
        for one in news:
            record = one.record
            if record.first_seq > after and not self._until_end and len(record.payload) <= CHUNK_BYTES:
                frames.append(_shared(one))
                size += len(frames[-1])
            else:
                for line in lines_of(record, after):
                    frames.append(_frame(line))
                    size += len(frames[-1])
                    if self._until_end and line.type in ENDING_EVENTS:
                        yield b"".join(frames), True
                        return
                    if size >= CHUNK_BYTES:
                        yield b"".join(frames), False
                        frames, size = [], 0
            if size >= CHUNK_BYTES:
                yield b"".join(frames), False
                frames, size = [], 0
        if frames:
            yield b"".join(frames), False

    async def _look_after(self, progress: Progress) -> None:
        """A comment when nothing was sent since the last look, and an end when nothing was taken for too long."""
        sent, silent_s = 0, 0.0
        while True:
            await anyio.sleep(LOOK_EVERY_S)
            silent_s = silent_s + LOOK_EVERY_S if progress.sent == sent else 0.0
            sent = progress.sent
            if progress.waiting_bytes:
                if silent_s >= STALLED_S:
                    log.info("http.stream_stalled", session=self._session_id, stalled_s=STALLED_S)
                    progress.stalled.cancel()
                    return
            elif silent_s and progress.place is not None:
                progress.place.recall()


async def _wait_disconnect(receive: Receive, progress: Progress) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    progress.close()


def _shared(news: News) -> bytes:
    """All of its frames, made once for everybody."""
    if news.frames is None:
        news.frames = b"".join([_frame(line) for line in lines_of(news.record, 0)])
    return news.frames


def _chunk(news: News) -> bytes:
    """The same as a chunk of the transfer coding."""
    if news.chunk is None:
        frames = _shared(news)
        news.chunk = b"%x\r\n%b\r\n" % (len(frames), frames)
    return news.chunk


def _frame(line: Line) -> bytes:
    return event_frame(line.epoch, line.seq, line.type, line.line)
