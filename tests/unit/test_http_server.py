"""What our server does beyond uvicorn: deadlines and bounds for headers, sockets of our own."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from attrs import define, field
from uvicorn.server import ServerState

from sojourn.http.server import HEADER_BYTES_MAX, CannotListen, GuardedProtocol, bind_tcp, bound_unix


@define
class Timer:
    delay_s: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@define(eq=False)
class Loop:
    """Remembers timers and tasks; a test lets time pass by calling them."""

    timers: list[Timer] = field(factory=list)

    def call_later(self, delay_s: float, call: Callable[..., None], *args: Any) -> Timer:
        self.timers.append(Timer(delay_s, lambda: call(*args)))
        return self.timers[-1]

    def create_task(self, coroutine: Any) -> "Loop":
        coroutine.close()
        return self

    def add_done_callback(self, _: object) -> None: ...

    @property
    def waiting(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]


@define
class Transport:
    written: bytes = b""
    closed: bool = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, _: str) -> None:
        return None

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def protocol(loop: Loop, transport: Transport) -> GuardedProtocol:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    config = uvicorn.Config(app, log_config=None, ws="none", lifespan="off", http=GuardedProtocol)
    protocol = GuardedProtocol(config, ServerState(), {}, cast(Any, loop))
    protocol.connection_made(transport)
    return protocol


def test_a_connection_that_says_nothing_is_closed_at_the_deadline(
    protocol: GuardedProtocol, loop: Loop, transport: Transport
) -> None:
    (timer,) = loop.waiting
    timer.call()
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    assert transport.closed


def test_dripped_headers_get_one_deadline_from_their_first_byte(
    protocol: GuardedProtocol, loop: Loop, transport: Transport
) -> None:
    for byte in b"GET / HTTP/1.1\r\nhost: ":
        protocol.data_received(bytes([byte]))
    assert len(loop.timers) == 1
    loop.waiting[0].call()
    assert transport.closed


def test_headers_that_are_complete_have_no_deadline_any_more(protocol: GuardedProtocol, loop: Loop) -> None:
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert loop.waiting == []


def test_the_deadline_does_not_outlive_the_connection(protocol: GuardedProtocol, loop: Loop) -> None:
    protocol.connection_lost(None)
    assert loop.waiting == []


def test_headers_over_their_bound_are_refused(protocol: GuardedProtocol, transport: Transport) -> None:
    protocol.data_received(b"GET / HTTP/1.1\r\nx: ")
    for _ in range(HEADER_BYTES_MAX // 1024):
        protocol.data_received(b"y" * 1024)
    assert transport.written.startswith(b"HTTP/1.1 431 ")
    assert transport.closed


def test_a_body_is_not_counted_as_headers(protocol: GuardedProtocol, transport: Transport) -> None:
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
    for _ in range(500):
        protocol.data_received(b"y" * 1024)
    assert not transport.closed


def test_a_port_in_use_is_named_with_the_remedy() -> None:
    with bind_tcp("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"port {port} .*--port"):
            bind_tcp("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_named_with_the_remedy() -> None:
    with pytest.raises(CannotListen, match="--host"):
        bind_tcp("192.0.2.1", 0)


def test_the_socket_is_for_its_owner_only_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with bound_unix(path):
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
    assert not path.exists()


def test_a_socket_that_a_dead_owner_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with bound_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_a_socket_that_another_owner_has_put_there_since_is_left(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with bound_unix(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(CannotListen, match="in the way"), bound_unix(path):
        pass
    assert path.read_text() == "precious"


def test_a_path_that_cannot_be_bound_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CannotListen, match="--data"), bound_unix(tmp_path / "missing" / "api.sock"):
        pass
