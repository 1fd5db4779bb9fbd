"""One path of the API and its verbs."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..runtime.runtime import Runtime
from .problems import MethodNotAllowed

Handler = Callable[[Request, Runtime], Awaitable[Response]]


class Resource:
    """An ASGI endpoint: a handler a verb. It answers HEAD (where there is a GET), OPTIONS, and 405 with `Allow`.

    Starlette's own routes would cost two exception wrappers a request, and name in `Allow` the verbs of one route only.
    """

    def __init__(self, **handlers: Handler) -> None:
        """`handlers` by verb in capitals: `Resource(GET=show, PATCH=change)`."""
        self._handlers = handlers
        verbs = {*handlers, "OPTIONS"} | ({"HEAD"} if "GET" in handlers else set())
        self.allow = ", ".join(sorted(verbs))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        # The guard lets nothing through to a handler that needs a runtime before there is one.
        runtime = scope["app"].runtime
        if handler := self._handlers.get(method):
            response = await handler(Request(scope, receive), runtime)
            await response(scope, receive, send)
        elif method == "OPTIONS":
            await Response(status_code=204, headers={"allow": self.allow})(scope, receive, send)
        elif method == "HEAD" and "GET" in self._handlers:
            response = await self._handlers["GET"](Request(scope, receive), runtime)
            headers = response.raw_headers
            await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            raise MethodNotAllowed(method, self.allow)
