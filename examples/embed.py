"""A host of your own: a Starlette app that owns a data folder, drives a session in process, and mounts Sojourn's API.

    python examples/embed.py           serves on http://127.0.0.1:8000, until Ctrl-C
    python examples/embed.py --once    asks itself for one check, prints the session's record, and ends

`POST /checks` runs a check as a session; everything below /sojourn is the API of docs/protocol.md. The data folder is
SOJOURN_DATA, else your own; with --once a temporary one. It has one owner at a time: while `sojourn serve` runs on it,
this host is refused and told the pid.
"""

import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from sojourn import Runtime, Settings, create_app, read_command, read_create

api = create_app()


@asynccontextmanager
async def lifespan(host: Starlette) -> AsyncIterator[None]:
    async with Runtime.open(Settings()) as runtime:
        host.state.runtime = api.runtime = runtime
        yield


async def check(request: Request) -> JSONResponse:
    runtime: Runtime = request.app.state.runtime
    record, _ = await runtime.create(read_create({"plan": "checks", "title": "the front page"}))
    await runtime.ask(record["session_id"], read_command({"type": "session.start"}))
    result = {"type": "result.record", "case_id": "front_page", "outcome": "passed", "duration_s": 0.2}
    await runtime.ask(record["session_id"], read_command(result))
    await runtime.ask(record["session_id"], read_command({"type": "session.complete", "outcome": "passed"}))
    return JSONResponse({"session_id": record["session_id"]}, 201)


app = Starlette(routes=[Route("/checks", check, methods=["POST"]), Mount("/sojourn", api)], lifespan=lifespan)


async def once() -> None:
    """What a browser would see: the check, and its session through the mounted API."""
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),  # a server does this; the client does not
        httpx2.AsyncClient(transport=transport, base_url="http://host") as client,
    ):
        done = await client.post("/checks")
        session = await client.get(f"/sojourn/api/v1/sessions/{done.json()['session_id']}")
        print(json.dumps(session.raise_for_status().json(), indent=2))


class Server(uvicorn.Server):
    """Ends the live streams first: they have no end of their own, and uvicorn would wait for it."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        api.streams.close()
        await super().shutdown(sockets)


def main() -> None:
    if "--once" not in sys.argv[1:]:
        Server(uvicorn.Config(app, host="127.0.0.1", port=8000)).run()
        return
    with tempfile.TemporaryDirectory(prefix="sojourn-embed-") as folder:
        os.environ["SOJOURN_DATA"] = folder
        anyio.run(once)


if __name__ == "__main__":
    main()
