"""The one layer around the routes: request ids, the token, whether the runtime is open, and errors as answers.

Pure ASGI, and one layer instead of Starlette's three: it runs on every command of every session.
"""

import hashlib
import hmac
import itertools
import os
import re

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..actors.errors import NotOpen
from ..runtime.runtime import Runtime
from .problems import Unauthorized, WrongHost, problem_response

_PORT = re.compile(rb":[0-9]{1,5}\Z")
# What a client may name its request: it is logged and sent back, so it must not break a line or a header.
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}\Z")
# Ours tell requests of one process and of several apart; nobody needs to be unable to guess them.
_PROCESS = os.urandom(4).hex().encode()
_requests = itertools.count()
# Liveness is asked by probes that carry no token; it and the version need no runtime.
_NEEDS_NO_TOKEN = frozenset({"/healthz", "/api/v1/healthz"})
_NEEDS_NO_RUNTIME = _NEEDS_NO_TOKEN | {"/version", "/api/v1/version"}


def token_digest(token: str) -> bytes:
    """What is kept of a token: its SHA-256."""
    return hashlib.sha256(token.encode()).digest()


class Guard:
    """Every answer carries `X-Request-Id`, and every error becomes a problem document.

    Attributes:
        runtime: what the routes talk to, or None before it is opened.
    """

    def __init__(self, routes: ASGIApp, *, token: str | None, hosts: frozenset[str] | None = None) -> None:
        self.runtime: Runtime | None = None
        self._routes = routes
        self._hosts = hosts
        self._token_digest = token_digest(token) if token is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        request_id = authorization = host = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"authorization":
                authorization = value
            elif name == b"host":
                host = value
        if not _REQUEST_ID.match(request_id):
            request_id = b"%b%08x" % (_PROCESS, next(_requests) & 0xFFFFFFFF)
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            self._check_host(scope, host)
            self._admit(scope, authorization)
            await self._routes(scope, receive, send_marked)
        except ClientDisconnect:
            return
        except Exception as error:
            if started:
                raise  # too late for an answer: the server logs it and breaks the connection off
            response = problem_response(error, scope, request_id.decode())
            await response(scope, receive, send_marked)

    def _check_host(self, scope: Scope, host: bytes) -> None:
        server = scope.get("server")
        # A server without a port is a unix socket: no web page reaches that, whatever it calls itself.
        if self._hosts is None or server is None or server[1] is None:
            return
        if _PORT.sub(b"", host).decode("latin-1").lower() not in self._hosts:
            raise WrongHost

    def _admit(self, scope: Scope, authorization: bytes) -> None:
        is_open = self.runtime is not None and self.runtime.is_open
        if is_open and self._token_digest is None:
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._token_digest is not None and path not in _NEEDS_NO_TOKEN:
            scheme, _, given = authorization.partition(b" ")
            digest = hashlib.sha256(given.strip()).digest()
            if not hmac.compare_digest(digest, self._token_digest) or scheme.lower() != b"bearer":
                raise Unauthorized
        if not is_open and path not in _NEEDS_NO_RUNTIME:
            raise NotOpen
