"""The facade over a real runtime: in memory (ASGI) or on a real socket, and a bare ASGI exchange for virtual time."""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from attrs import define, field
from starlette.types import ASGIApp, Message

from sojourn.http.app import Application, create_app
from sojourn.http.server import Server, bind_tcp
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

API = "/api/v1"
NDJSON = {"content-type": "application/x-ndjson"}
# uvicorn and the drivers of the stores are asyncio's.
ON_ASYNCIO = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
UNKNOWN_ID = "sess_" + "0" * 32


@asynccontextmanager
async def client_of(app: ASGIApp, *, prefix: str = API, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that calls the application without a socket. An error that escapes the application fails the test."""
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(
        transport=transport, base_url=f"http://sojourn{prefix}", **options
    ) as client:
        yield client


@asynccontextmanager
async def facade(data_dir: Path, *, token: str | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the facade over a runtime of its own."""
    async with (
        Runtime.open(Settings(data_dir=data_dir, mirror="none")) as runtime,
        client_of(create_app(runtime, token=token)) as client,
    ):
        yield client


@asynccontextmanager
async def serving(app: Application) -> AsyncIterator[int]:
    """The application behind uvicorn on a loopback port."""
    with bind_tcp("127.0.0.1", 0) as listener:
        server = Server(app)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: server.serve(sockets=[listener]))
            await until(lambda: server.started)
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True


@asynccontextmanager
async def served(
    data_dir: Path, *, token: str | None = None
) -> AsyncIterator[tuple[httpx2.AsyncClient, Application]]:
    """A client of a served facade, over TCP."""
    async with Runtime.open(Settings(data_dir=data_dir, mirror="none")) as runtime:
        app = create_app(runtime, token=token)
        async with (
            serving(app) as port,
            httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}{API}", timeout=httpx2.Timeout(20), trust_env=False
            ) as client,
        ):
            yield client, app


async def until(condition: Callable[[], Any], *, deadline_s: float = 20.0) -> None:
    """Wait for a condition, looking every few milliseconds; fails at the deadline."""
    with anyio.fail_after(deadline_s):
        while not condition():
            await anyio.sleep(0.005)


async def new_session(client: httpx2.AsyncClient, *, start: bool = True, **body: Any) -> str:
    """The id of a new session, running unless told otherwise."""
    response = await client.post("/sessions", json=body)
    assert response.status_code == 201, response.text
    session_id: str = response.json()["session_id"]
    if start:
        await command(client, session_id, type="session.start")
    return session_id


async def command(client: httpx2.AsyncClient, session_id: str, **body: Any) -> dict[str, Any]:
    """The outcome of a command that must take effect."""
    response = await client.post(f"/sessions/{session_id}/commands", json=body)
    assert response.status_code == 200, response.text
    outcome: dict[str, Any] = response.json()
    return outcome


async def batch(client: httpx2.AsyncClient, session_id: str, lines: Iterable[Any]) -> list[dict[str, Any]]:
    """The outcomes of a batch; a line is an object, or bytes as they are."""
    body = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    response = await client.post(f"/sessions/{session_id}/commands", content=body, headers=NDJSON)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.content.splitlines()]


def log_line(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "log.append", "stream": "stdout", "text": text, **more}


@define
class Frame:
    """One server-sent event; `id` is (epoch, seq). A comment has the type "comment"."""

    id: tuple[int, int] | None
    type: str
    data: Any

    @property
    def seq(self) -> int:
        assert self.id is not None
        return self.id[1]


async def frames(chunks: AsyncIterator[bytes], *, comments: bool = False) -> AsyncIterator[Frame]:
    """The events of a stream's bytes, as far as our server writes them."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n\n")
        for raw in whole:
            fields = dict(line.split(b": ", 1) for line in raw.split(b"\n") if not line.startswith(b":"))
            if b"data" in fields:
                epoch, seq = fields[b"id"].split(b".")
                data = json.loads(fields[b"data"])
                yield Frame((int(epoch), int(seq)), fields[b"event"].decode(), data)
            elif comments and not fields:
                yield Frame(None, "comment", None)


@define
class Exchange:
    """One ASGI call by hand. `incoming` is what `receive` gives, in order; then it waits for ever.

    `sent` holds (when, message) of every message of the application; `reading` makes `send` wait where it is not set.
    """

    incoming: list[Message] = field(factory=list)
    sent: list[tuple[float, Message]] = field(factory=list)
    reading: anyio.Event | None = None

    async def receive(self) -> Message:
        if self.incoming:
            return self.incoming.pop(0)
        await anyio.sleep_forever()
        raise AssertionError

    async def send(self, message: Message) -> None:
        if self.reading is not None and message["type"] == "http.response.body":
            await self.reading.wait()
        self.sent.append((anyio.current_time(), message))

    @property
    def status(self) -> int:
        status: int = self.sent[0][1]["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for _, message in self.sent[1:])
