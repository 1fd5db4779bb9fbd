"""`python -m bench.bare http|sse`: the least that any ASGI application must spend, under the uvicorn settings, the event loop
and the process settings that `sojourn serve` uses."""

import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import anyio

from sojourn.actors.session.codec import encode_events
from sojourn.actors.session.commands import AppendLog, Event, SourceCause
from sojourn.http.app import Application
from sojourn.http.server import Server, bind_tcp
from sojourn.http.stream import HEADERS, StreamRegistry, event_frame
from sojourn.runtime.telemetry import configure_logging
from sojourn.runtime.tuning import tune_process

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
ANSWER = b'{"duplicate":false,"n":1000,"ok":true,"seq":1002,"source":"rec-0123456789abcdef"}'
JSON_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


class Echo:
    """Reads each body to its end and answers with as many bytes as the outcome of a command has."""

    def __init__(self) -> None:
        self.streams = StreamRegistry()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": JSON_HEADERS})
        await send({"type": "http.response.body", "body": ANSWER})


class FanOut(Echo):
    """GET opens a stream; what is POSTed goes to every open stream as one frame, of the bytes that ours has."""

    def __init__(self) -> None:
        super().__init__()
        self._open: set[Send] = set()
        self._seq = 2

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": b"retry: 2000\n\n:\n\n", "more_body": True})
            self._open.add(send)
            while (await receive())["type"] != "http.disconnect":
                pass
            self._open.discard(send)
            return
        text = json.loads((await receive())["body"])["text"]
        self._seq += 1
        event = Event(
            datetime.now(UTC),
            SourceCause(1, self._seq, "bench"),
            AppendLog(stream="stdout", text=text),
            self._seq,
            "log.appended",
        )
        frame = event_frame(1, self._seq, event.type, encode_events([event])[:-1])
        for to in list(self._open):
            await to({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.start", "status": 200, "headers": JSON_HEADERS})
        await send({"type": "http.response.body", "body": ANSWER})


async def _serve(kind: str) -> None:
    app = {"http": Echo, "sse": FanOut}[kind]()
    with bind_tcp("127.0.0.1", 0) as tcp:
        tune_process()
        host, port = tcp.getsockname()[:2]
        print(json.dumps({"event": "serve.listening", "url": f"http://{host}:{port}"}), flush=True)
        await Server(cast(Application, app)).serve(sockets=[tcp])


if __name__ == "__main__":
    configure_logging(terminal=False)
    uvloop_there = importlib.util.find_spec("uvloop") is not None
    anyio.run(_serve, sys.argv[1], backend_options={"use_uvloop": uvloop_there})
