"""An S3 server in this process, and a proxy before it that does to requests and answers what networks and servers do.

moto checks no checksums and no credentials; the proxy lets one request at a time through to it, because it looks whether
an object exists and writes it in two steps.
"""

import asyncio
import logging
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest
from attrs import define, field
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from sojourn.runtime.stores.objects_s3 import S3Objects
from sojourn.runtime.stores.s3_patience import Patience

HASTE = Patience(deadline_s=20.0, try_s=10.0, tries_max=4, pause_s=0.001, pause_s_max=0.01)
_ACCOUNT = "123456789012"  # the one that moto takes everybody for
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}
_CLEARED = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION")


def set_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of somebody who may use the server, whatever this machine's is."""
    for name, value in _CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for name in _CLEARED:
        monkeypatch.delenv(name, raising=False)


@define(eq=False)
class Answer:
    """An answer of the server, as it goes back. `close_after` bytes of the body the connection is closed."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    close_after: int | None = None


Before = Callable[["Request"], "Answer | None"]
After = Callable[[Answer], "Answer | None"]


@define(eq=False)
class Request:
    """`target` is path and query."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@define(eq=False)
class Fault:
    """What happens to the next `times` requests of a method whose target matches.

    Attributes:
        before: in place of the server: its answer, or None: the connection is closed.
        after: once the server has done it: the answer that goes back, or None: the connection is closed.
        hold, hold_after: no answer comes until the client gives up or the proxy is told to `release`; with `hold` the
            server has not got the request, and never does.
    """

    method: str
    target: str = ""
    times: int = 1
    before: Before | None = None
    after: After | None = None
    hold: bool = False
    hold_after: bool = False

    def takes(self, request: Request) -> bool:
        return (
            self.times > 0
            and self.method == request.method
            and re.search(self.target, request.target) is not None
        )


@define(eq=False)
class Proxy:
    """`endpoint` is where to reach it; `requests` are those that came, in order; `holding` counts those that it holds."""

    server: str
    endpoint: str = ""
    faults: list[Fault] = field(factory=list)
    requests: list[Request] = field(factory=list)
    holding: int = 0
    one_at_a_time: asyncio.Lock = field(factory=asyncio.Lock)
    released: asyncio.Event = field(factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None

    def release(self) -> None:
        """What the server has answered meanwhile goes back; other connections that are held are closed."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.released.set)

    def seen(self, method: str, target: str = "") -> int:
        return sum(
            request.method == method and re.search(target, request.target) is not None
            for request in self.requests
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        try:
            request = await _read_request(reader)
            if request is None:
                return
            self.requests.append(request)
            answer = await self._answer(request, reader)
            if answer is not None:
                _write_answer(writer, answer, with_body=request.method != "HEAD")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, which is its right
        finally:
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader) -> Answer | None:
        fault = next((fault for fault in self.faults if fault.takes(request)), None)
        if fault is None:
            return await self._forward(request)
        fault.times -= 1
        if fault.hold:
            return await self._hold(reader, None)
        if fault.before is not None:
            return fault.before(request)
        answer = await self._forward(request)
        if fault.hold_after:
            return await self._hold(reader, answer)
        assert fault.after is not None
        return fault.after(answer)

    async def _hold(self, reader: asyncio.StreamReader, answer: Answer | None) -> Answer | None:
        self.holding += 1
        waiting = [asyncio.create_task(reader.read()), asyncio.create_task(self._wait_released())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        self.holding -= 1
        return answer if self.released.is_set() else None

    async def _wait_released(self) -> bytes:
        await self.released.wait()
        return b""

    async def _forward(self, request: Request) -> Answer:
        async with self.one_at_a_time:
            reader, writer = await asyncio.open_connection(*self.server.removeprefix("http://").split(":"))
            try:
                head = [f"{request.method} {request.target} HTTP/1.1"]
                head += [f"{name}: {value}" for name, value in request.headers.items()]
                writer.write("\r\n".join([*head, "connection: close", "", ""]).encode() + request.body)
                await writer.drain()
                return _parse_answer(await reader.read())
            finally:
                writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    line = (await reader.readline()).decode()
    if not line:
        return None
    method, target, _ = line.split(" ", 2)
    headers = {}
    while (line := (await reader.readline()).decode()).strip():
        name, value = line.split(":", 1)
        if name.lower() != "connection":
            headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, re.sub(r"^http://[^/]+", "", target), headers, body)


def _parse_answer(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = [(name.strip(), value.strip()) for name, value in (line.split(":", 1) for line in lines)]
    return Answer(
        int(first.split(" ")[1]), [pair for pair in headers if pair[0].lower() != "connection"], body
    )


def _write_answer(writer: asyncio.StreamWriter, answer: Answer, *, with_body: bool) -> None:
    lines = [f"HTTP/1.1 {answer.status} said", *(f"{name}: {value}" for name, value in answer.headers)]
    writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode())
    if with_body:
        writer.write(answer.body[: answer.close_after])


@contextmanager
def serving() -> Iterator[str]:
    """moto's server; its URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def proxying(server: str) -> Iterator[Proxy]:
    """A proxy before `server`, on an event loop in a thread of its own."""
    proxy = Proxy(server)
    started = threading.Event()
    stops: list[Callable[[], object]] = []

    async def run() -> None:
        ended = asyncio.Event()
        proxy.loop = asyncio.get_running_loop()
        stops.append(partial(proxy.loop.call_soon_threadsafe, ended.set))
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.endpoint = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        started.set()
        await ended.wait()
        listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="s3-proxy", daemon=True)
    thread.start()
    assert started.wait(20)
    try:
        yield proxy
    finally:
        stops[0]()
        thread.join(20)


def make_bucket() -> str:
    """A bucket nobody else uses."""
    name = f"test-{secrets.token_hex(8)}"
    backend().create_bucket(name, "us-east-1")
    return name


def backend() -> Any:
    return s3_backends[_ACCOUNT]["aws"]


def stored(bucket: str) -> dict[str, bytes]:
    """Key to content, as the server holds them."""
    return {key: entry.value for key, entry in backend().get_bucket(bucket).keys.items()}


def uploads(bucket: str) -> list[str]:
    """The keys of uploads that were begun and neither completed nor aborted."""
    return [upload.key_name for upload in backend().get_bucket(bucket).multiparts.values()]


@asynccontextmanager
async def opened(
    proxy: Proxy, bucket: str, *, prefix: str = "", patience: Patience = HASTE, **options: Any
) -> AsyncIterator[S3Objects]:
    objects = await S3Objects.open(
        bucket, prefix=prefix, endpoint=proxy.endpoint, patience=patience, **options
    )
    try:
        yield objects
    finally:
        await objects.close()


# -- what a proxy does ---------------------------------------------------------------------------------------------


def says(status: int, code: str = "Fault") -> Callable[[Any], Answer]:
    """A server's refusal, whatever it is asked or has answered."""
    body = (
        f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as the test wants it</Message></Error>'
    ).encode()

    def answer(_: Any) -> Answer:
        return Answer(status, [("content-type", "application/xml"), ("content-length", str(len(body)))], body)

    return answer


def hangs_up(_: Any) -> None:
    """The connection is closed without a word."""


def flips(answer: Answer) -> Answer:
    """One bit of the body."""
    answer.body = bytes([answer.body[0] ^ 1]) + answer.body[1:]
    return answer


def cuts(answer: Answer) -> Answer:
    """The body ends halfway, and the connection with it."""
    answer.close_after = len(answer.body) // 2
    return answer
