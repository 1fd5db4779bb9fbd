"""The facade as an ASGI application.

app = create_app(runtime)                     # mount it anywhere; you open the runtime in your own lifespan
app = standalone(Settings(data_dir="data"))   # or let it do both
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ..runtime.runtime import Runtime
from ..runtime.settings import Settings
from .guard import Guard
from .problems import NoSuchPath
from .resource import Resource
from .routes import commands, events, export, quarantine, sessions, statistics, system
from .stream import StreamRegistry

PREFIX = "/api/v1"

# The hottest first: routes are tried in order.
API: dict[str, Resource] = {
    "/sessions/{session_id}/commands": Resource(POST=commands.send),
    "/sessions/{session_id}/heartbeat": Resource(POST=commands.heartbeat),
    "/sessions/{session_id}/accept-loss": Resource(POST=commands.accept_loss),
    "/sessions": Resource(GET=sessions.list_sessions, POST=sessions.create),
    "/sessions/{session_id}": Resource(GET=sessions.show, PATCH=sessions.change),
    "/sessions/{session_id}/state": Resource(GET=sessions.state),
    "/sessions/{session_id}/events": Resource(GET=events.list_events),
    "/sessions/{session_id}/stream": Resource(GET=events.stream),
    "/sessions/{session_id}/export": Resource(GET=export.export_session),
    "/statistics": Resource(GET=statistics.statistics),
    "/quarantine": Resource(GET=quarantine.list_all),
    "/sessions/{session_id}/quarantine": Resource(GET=quarantine.list_of_session),
    "/sessions/{session_id}/quarantine/release": Resource(POST=quarantine.release),
    "/sessions/{session_id}/quarantine/{number}": Resource(GET=quarantine.show),
    "/sessions/{session_id}/quarantine/{number}/skip": Resource(POST=quarantine.skip),
    "/sessions/{session_id}/quarantine/{number}/edit": Resource(POST=quarantine.edit),
    "/sessions/{session_id}/quarantine/{number}/retry": Resource(POST=quarantine.retry),
}
# Probes look for these at the root; a host that mounts us under a prefix finds them beside the API.
SYSTEM: dict[str, Resource] = {
    "/healthz": Resource(GET=system.healthz),
    "/readyz": Resource(GET=system.readyz),
    "/version": Resource(GET=system.version),
}


class Application(Starlette):
    """The facade. Starlette's routing, with one layer of our own around it instead of Starlette's.

    Attributes:
        streams: the live streams that are open; `streams.close()` ends them all.
    """

    def __init__(
        self,
        runtime: Runtime | None,
        *,
        token: str | None = None,
        hosts: frozenset[str] | None = None,
        lifespan: Lifespan["Application"] | None = None,
    ) -> None:
        paths = {PREFIX + path: resource for path, resource in (API | SYSTEM).items()} | SYSTEM
        super().__init__(
            routes=[Route(path, resource) for path, resource in paths.items()], lifespan=lifespan
        )
        self.router.redirect_slashes = False
        self.router.default = _no_such_path
        self.streams = StreamRegistry()
        self._guard = Guard(self.router, token=token, hosts=hosts)
        self.runtime = runtime

    @property
    def runtime(self) -> Runtime | None:
        """What the routes talk to. While it is None or not open, every path but healthz and version answers 503."""
        return self._guard.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime | None) -> None:
        self._guard.runtime = runtime

    def build_middleware_stack(self) -> ASGIApp:
        return self._guard


def create_app(
    runtime: Runtime | None = None, *, token: str | None = None, hosts: frozenset[str] | None = None
) -> Application:
    """The facade over `runtime`, to be mounted under any prefix. It has no lifespan of its own.

    A mounted app's lifespan is not run by its host, so the host opens the runtime in its own, and where its app is made
    before that, hands the runtime over once it is open:

        api = create_app()

        @asynccontextmanager
        async def lifespan(app):
            async with Runtime.open(settings) as api.runtime:
                yield

    Args:
        runtime: an open runtime, or None when it is set later.
        token: the bearer token that every request must carry; None asks for none.
        hosts: the names, without port, under which it may be reached over TCP; None takes any. A server on loopback
            without a token needs it: else a web page whose name resolves to loopback could speak to it.

    A host that stops while streams are open ends them by `api.streams.close()`: uvicorn waits for them otherwise.
    """
    return Application(runtime, token=token, hosts=hosts)


def standalone(settings: Settings, *, token: str | None = None) -> Application:
    """An application that opens its own runtime in its lifespan, and closes it. Arguments as for `create_app`."""

    @asynccontextmanager
    async def lifespan(app: Application) -> AsyncIterator[None]:
        async with Runtime.open(settings) as runtime:
            app.runtime = runtime
            try:
                yield
            finally:
                app.streams.close()
                app.runtime = None

    return Application(None, token=token, lifespan=lifespan)


async def _no_such_path(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await WebSocketClose()(scope, receive, send)
        return
    raise NoSuchPath
