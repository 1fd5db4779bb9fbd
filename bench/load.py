"""`python -m bench.load`: HTTP load from a process of its own. Reads a job as JSON from standard input, writes what it found to
standard output (`processes.load` is its other end).

The clients are the least that speak HTTP/1.1 over a kept connection: requests are made before the clock starts, and of an
answer its status and its length are read.
"""

import asyncio
import base64
import importlib.util
import json
import re
import sys
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import define, field

from sojourn.runtime.tuning import tune_process

from .pace import Pacer, moments

HOST = "127.0.0.1"
CONNECT_AT_ONCE = 100
GRACE_S = 1.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Unexpected(Exception):
    """An answer other than success; the message is its status and the beginning of its body."""


@define(eq=False)
class Connection(asyncio.Protocol):
    """One kept connection, one request under way."""

    answered: Callable[["Connection", bytes], None]
    failed: Callable[[str], None]
    transport: asyncio.Transport | None = None
    _buffer: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed(f"the connection was closed ({exc})")

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, end) if end >= 0 else None
        if end >= 0 and length is None:
            self.failed(data[:300].decode("latin-1"))
        elif length is None or len(data) < end + 4 + int(length[1]):
            self._buffer = data
        else:
            self._buffer = b""
            body = data[end + 4 :]
            if data[9:10] != b"2":
                self.failed(f"{data[9:12].decode()} {body[:300].decode('utf-8', 'replace')}")
            self.answered(self, body)

    def send(self, request: bytes) -> None:
        assert self.transport is not None
        self.transport.write(request)


def request(path: str, body: bytes, content_type: str = "application/json", method: str = "POST") -> bytes:
    """A whole request."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def commands_path(session_id: str, ack: str = "durable") -> str:
    return f"/api/v1/sessions/{session_id}/commands?ack={ack}"


def progress(n: int) -> bytes:
    return b'{"type":"progress.report","done":%d,"total":1000000,"source":"rec-0123456789abcdef","n":%d}' % (
        n,
        n,
    )


def line(n: int) -> bytes:
    """The n-th line of a batch: a log line or a result, as a reporter sends them."""
    if n % 2:
        return (
            b'{"type":"log.append","stream":"stdout","text":"tests/test_module.py::test_case_%d PASSED in 0.01 s",'
            b'"source":"rec-0123456789abcdef","n":%d}' % (n, n)
        )
    return (
        b'{"type":"result.record","case_id":"tests.test_module::test_case_%d","duration_s":0.01,'
        b'"outcome":"passed","source":"rec-0123456789abcdef","n":%d}' % (n % 1000, n)
    )


def batch(first: int, size: int) -> bytes:
    """NDJSON of lines `first` to `first + size - 1`."""
    return b"".join([line(n) + b"\n" for n in range(first, first + size)])


@define
class Found:
    """What a job found, in the making."""

    operations: int = 0
    elapsed_s: float = 0.0
    latencies_us: "array[float]" = field(factory=lambda: array("d"))
    error: str | None = None
    more: dict[str, Any] = field(factory=dict)


async def connect(count: int, port: int, make: Callable[[], Any]) -> list[Any]:
    """`count` connections, `CONNECT_AT_ONCE` at a time."""
    loop = asyncio.get_running_loop()
    found: list[Any] = []
    while len(found) < count:
        some = min(CONNECT_AT_ONCE, count - len(found))
        made = await asyncio.gather(*[loop.create_connection(make, HOST, port) for _ in range(some)])
        found += [protocol for _, protocol in made]
    return found


async def create_sessions(port: int, count: int) -> list[str]:
    """Ids of `count` new sessions, running."""
    ids: list[str] = []
    done = asyncio.get_running_loop().create_future()
    left = deque(range(count))
    starting: dict[Connection, str] = {}

    def failed(why: str) -> None:
        if not done.done():
            done.set_exception(Unexpected(why))

    def next_(connection: Connection) -> None:
        if left:
            left.popleft()
            connection.send(request("/api/v1/sessions", b'{"plan":"bench","title":"bench"}'))

    def answered(connection: Connection, body: bytes) -> None:
        started = starting.pop(connection, None)
        if started is None:
            session_id = starting[connection] = json.loads(body)["session_id"]
            connection.send(request(commands_path(session_id), b'{"type":"session.start"}'))
            return
        ids.append(started)
        if len(ids) == count and not done.done():
            done.set_result(None)
        next_(connection)

    connections = await connect(min(count, CONNECT_AT_ONCE), port, lambda: Connection(answered, failed))
    for connection in connections:
        next_(connection)
    await done
    for connection in connections:
        connection.transport.close()
    return ids


def requests_of(job: dict[str, Any], ids: list[str]) -> list[list[bytes]]:
    """For each connection what it sends, in order."""
    each, size = job["each"], job["batch"]
    found = []
    for session_id in ids:
        path = commands_path(session_id, job["ack"])
        if size:
            bodies = [batch(number * size + 1, size) for number in range(each)]
            found.append([request(path, body, "application/x-ndjson") for body in bodies])
        else:
            found.append([request(path, progress(n)) for n in range(1, each + 1)])
    return found


async def send_commands(job: dict[str, Any]) -> Found:
    """`connections` of them, each to a session of its own and `each` requests one after the other, single commands or
    batches of `batch` lines; to `rate_per_s` in an open loop where that is given. `bare`: there are no sessions."""
    count = job["connections"]
    ids = (
        [f"sess_{n:032x}" for n in range(count)] if job["bare"] else await create_sessions(job["port"], count)
    )
    requests = [deque(own) for own in requests_of(job, ids)]
    total = sum(map(len, requests))
    found, loop = Found(), asyncio.get_running_loop()
    done = loop.create_future()
    began_at: dict[Connection, float] = {}
    own: dict[Connection, deque[bytes]] = {}
    idle: deque[Connection] = deque()
    waiting: deque[float] = deque()
    rate = job.get("rate_per_s")

    def failed(why: str) -> None:
        found.error = found.error or why
        if not done.done():
            done.set_result(None)

    def answered(connection: Connection, body: bytes) -> None:
        now = time.perf_counter()
        found.latencies_us.append((now - began_at[connection]) * 1e6)
        found.operations += 1
        if found.operations == total:
            done.set_result(None)
        elif rate is None:
            if own[connection]:
                began_at[connection] = now
                connection.send(own[connection].popleft())
        elif own[connection]:
            if waiting:
                begin(connection, waiting.popleft())
            else:
                idle.append(connection)

    def begin(connection: Connection, intended_at: float) -> None:
        began_at[connection] = intended_at
        connection.send(own[connection].popleft())

    connections = await connect(count, job["port"], lambda: Connection(answered, failed))
    own.update(zip(connections, requests, strict=True))
    tune_process()
    cpu_s, began = time.process_time(), time.perf_counter()
    if rate is None:
        for connection in connections:
            begin(connection, time.perf_counter())
        await done
    else:
        idle.extend(connections)
        await _offer(moments(rate, total), begin, idle, waiting, done, found)
    found.elapsed_s = time.perf_counter() - began
    found.more["cpu_s"] = time.process_time() - cpu_s
    for connection in connections:
        connection.failed = lambda _: None
        connection.transport.close()
    return found


async def _offer(
    due: list[float],
    begin: Callable[[Connection, float], None],
    idle: deque[Connection],
    waiting: deque[float],
    done: "asyncio.Future[None]",
    found: Found,
) -> None:
    """Requests at moments of their own, on whatever connection is free; those that find none wait, and it counts."""
    began = time.perf_counter()
    with Pacer() as pacer:
        for at in due:
            if began + at > time.perf_counter():
                await pacer.until(began + at)
            else:
                await asyncio.sleep(0)
            if done.done():
                break
            if idle:
                begin(idle.popleft(), began + at)
            else:
                waiting.append(began + at)
        end = began + due[-1] + GRACE_S
        while found.operations < len(due) and time.perf_counter() < end and not done.done():
            await asyncio.sleep(0.005)
    found.more["unsent"] = len(waiting)


@define(eq=False)
class Reader(asyncio.Protocol):
    """One open stream: counts the frames that come."""

    request: bytes
    came: Callable[["Reader", int], None]
    failed: Callable[[str], None]
    transport: asyncio.Transport | None = None
    frames: int = 0
    _last: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        transport.write(self.request)  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed(f"a stream was closed ({exc})")

    def data_received(self, data: bytes) -> None:
        # A frame ends with an empty line; a chunk of the transfer coding never holds two line feeds in a row.
        new = data.count(b"\n\n") + (1 if self._last == b"\n" and data[:1] == b"\n" else 0)
        self._last = data[-1:]
        if new:
            self.frames += new
            self.came(self, new)


async def fan_out(job: dict[str, Any]) -> Found:
    """`clients` streams of one session; `operations` events are published to it, `window` of them on their way at most.
    A delivery's latency counts from its event's publication."""
    clients, events, window, port = job["clients"], job["operations"], job["window"], job["port"]
    session_id = "sess_" + "0" * 32 if job["bare"] else (await create_sessions(port, 1))[0]
    found, loop = Found(), asyncio.get_running_loop()
    opening, done = 2 * clients, loop.create_future()  # the retry line, and the snapshot
    opened = loop.create_future()
    sent_at: list[float] = []
    delivered = 0
    free = asyncio.Event()

    def failed(why: str) -> None:
        found.error = found.error or why
        for waiter in (done, opened):
            if not waiter.done():
                waiter.set_result(None)
        free.set()

    def came(reader: Reader, new: int) -> None:
        nonlocal delivered
        delivered += new
        if not opened.done():
            if delivered >= opening:
                opened.set_result(None)
            return
        now = time.perf_counter()
        for index in range(reader.frames - 2 - new, reader.frames - 2):
            if index < len(sent_at):
                found.latencies_us.append((now - sent_at[index]) * 1e6)
        free.set()
        if delivered >= opening + events * clients and not done.done():
            done.set_result(None)

    get = request(f"/api/v1/sessions/{session_id}/stream", b"", method="GET")
    readers = await connect(clients, port, lambda: Reader(get, came, failed))
    await opened
    answered = asyncio.Event()
    publisher = (await connect(1, port, lambda: Connection(lambda *_: answered.set(), failed)))[0]
    tune_process()
    cpu_s, began = time.process_time(), time.perf_counter()
    for number in range(events):
        while number - (delivered - opening) / clients >= window and found.error is None:
            free.clear()
            await free.wait()
        if found.error is not None:
            break
        answered.clear()
        sent_at.append(time.perf_counter())
        publisher.send(
            request(
                commands_path(session_id),
                b'{"type":"log.append","stream":"stdout","text":"%060d","source":"bench","n":%d}'
                % (number, number + 1),
            )
        )
        await answered.wait()
    await done
    found.elapsed_s = time.perf_counter() - began
    found.more["cpu_s"] = time.process_time() - cpu_s
    found.operations = delivered - opening
    for reader in (*readers, publisher):
        reader.failed = lambda _: None
        reader.transport.close()
    return found


JOBS: dict[str, Callable[[dict[str, Any]], Awaitable[Found]]] = {
    "commands": send_commands,
    "fan_out": fan_out,
}


async def _main(job: dict[str, Any]) -> Found:
    # An error in a callback would otherwise be logged, and its job wait for ever.
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    told: list[str] = []

    def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        told.append(f"{context['message']}: {context.get('exception')!r}")
        if task is not None:
            task.cancel()

    loop.set_exception_handler(failed)
    try:
        return await JOBS[job["kind"]](job)
    except asyncio.CancelledError:
        if not told:
            raise
        raise Unexpected(told[0]) from None


def main() -> None:
    """Carry the job out, and say what was found."""
    job = json.load(sys.stdin)
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            found = runner.run(_main(job))
        except (Unexpected, OSError) as error:
            found = Found(error=str(error))
    cpu_s = found.more.pop("cpu_s", time.process_time())
    said = {
        "operations": found.operations,
        "elapsed_s": found.elapsed_s,
        "cpu_s": cpu_s,
        "latencies_us": base64.b64encode(found.latencies_us.tobytes()).decode(),
        "error": found.error,
        "more": found.more,
    }
    sys.stdout.write(json.dumps(said))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
