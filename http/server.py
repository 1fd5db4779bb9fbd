"""The facade behind uvicorn: sockets that we bind ourselves, and what uvicorn does not do.

uvicorn has no deadline for request headers and no bound for their size under httptools, and no way to send the same to many
without a task for each; `GuardedProtocol` adds all three.
"""

import contextlib
import errno
import os
import signal
import socket
import stat
from asyncio import TimerHandle, get_running_loop
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..actors.errors import SojournError
from .app import Application
from .stream import DIRECT

BACKLOG = 2048
HEADER_BYTES_MAX = 64 * 1024
# From a request's first byte to the end of its headers.
HEADERS_DEADLINE_S = 10.0
# Longer than clients keep idle connections: they close first, so none meets a connection that is just being closed.
KEEP_ALIVE_S = 75
# What is in flight when the server is told to stop may take so long; then it is cancelled.
SHUTDOWN_S = 5


class CannotListen(SojournError):
    """A socket cannot be bound; nothing was opened."""

    code = "cannot_listen"


def bind_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one.

    Raises:
        CannotListen: the port is in use, or not ours to take, or the host is no address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        remedy = {
            errno.EADDRINUSE: "another process listens there; choose another with --port (0 takes any free one), or stop it",
            errno.EACCES: "ports below 1024 need privileges; choose another with --port",
        }.get(error.errno or 0, "give an address of this machine with --host")
        raise CannotListen(f"cannot listen on {host} port {port} ({error.strerror}): {remedy}") from error


@contextlib.contextmanager
def bound_unix(path: Path) -> Iterator[socket.socket]:
    """A listening unix socket that only its owner may use, removed on exit. What a dead owner left there is replaced, so
    hold the data folder's lock.

    Raises:
        CannotListen: the path cannot be bound, or something else than a socket lies there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
                raise CannotListen(f"{path} is in the way of the server's socket; move it elsewhere")
            path.unlink(missing_ok=True)
            listener.bind(os.fspath(path))
            # Before it listens: until then nobody can connect.
            path.chmod(0o600)
            listener.listen(BACKLOG)
            ours = path.stat().st_ino
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {path} ({error.strerror}); name another data folder with --data"
            ) from error
        try:
            yield listener
        finally:
            # Only our own: where the data folder was removed and made anew, another owner's socket stands here by now.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == ours:
                    path.unlink()
    finally:
        listener.close()


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a deadline and a bound for request headers, which is `stream.Direct` to its own responses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_headers = True
        self._header_bytes = 0
        self._deadline: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._in_headers = True
        super().on_message_begin()
        self.scope["extensions"] = {DIRECT: self}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        self._in_headers = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_headers:
            self._header_bytes = 0
            if self._deadline is not None:
                self._disarm()
            return
        self._header_bytes += len(data)
        if self._header_bytes > HEADER_BYTES_MAX:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._deadline is None:
            self._arm()

    def write_chunk(self, chunk: bytes) -> bool:
        """See stream.Direct."""
        if self.flow.write_paused or self.transport.is_closing():
            return False
        self.transport.write(chunk)
        return True

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(HEADERS_DEADLINE_S, self._refuse, b"408 Request Timeout")

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status_line: bytes) -> None:
        self._disarm()
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 " + status_line + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server over `app`. SIGINT and SIGTERM end it in order, live streams first, and `serve` returns.

    Args:
        idle: asked about once a second; where it answers true and no request is in flight, the server ends.
        listening: called once connections are accepted and signals end it in order.
    """

    def __init__(
        self,
        app: Application,
        *,
        idle: Callable[[], bool] | None = None,
        listening: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=GuardedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # Nothing here trusts forwarded addresses.
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_S,
                callback_notify=self._check_idle if idle is not None else None,
                timeout_notify=0,
            )
        )
        self._app = app
        self._idle = idle
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    async def _check_idle(self) -> None:
        # Every request and every open stream is a task of the server's.
        if self._idle is not None and not self.server_state.tasks and self._idle():
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.streams.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but on the loop, and without raising the signal again afterwards: a stop that was asked for and
        carried out in order is a success."""
        loop = get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
