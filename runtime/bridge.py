"""One thread that owns one blocking thing, for callers on asyncio or trio.

It sits under every group commit, so a hop is a queue item there and one callback back: a worker-thread pool with its
capacity limiter costs twice that (0.18 ms against 0.08 ms). Where the event loop never pauses, the thread waits for
the interpreter lock at each step: a host lowers `sys.setswitchinterval` to 0.1 ms or less (commits of up to 3 s become
2-4 ms).
"""

import asyncio
import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from ..actors.errors import NotOpen

T = TypeVar("T")
# Of what is computed with: up to here a way to a thread and back takes longer.
INLINE_BYTES_MAX = 32 * 1024
Deliver = Callable[[Any, Exception | None], None]
Job = tuple[Callable[..., Any], tuple[Any, ...], Deliver]


_alive: "dict[threading.Thread, SimpleQueue[Job | None]]" = {}


@atexit.register
def _end_all() -> None:
    for thread, queue in list(_alive.items()):
        queue.put(None)
        thread.join()


async def compute(size_bytes: int, function: Callable[..., T], *args: Any) -> T:
    """What `function` makes of data of that size: here where that is short, in a worker thread where it is not."""
    if size_bytes <= INLINE_BYTES_MAX:
        return function(*args)
    return await anyio.to_thread.run_sync(function, *args)


class OwnerThread:
    """Runs functions one after the other, in the order of the calls to `run`, in a thread of its own.

    What was begun is carried out: cancelling a caller neither stops its function nor takes it out of the queue. The
    cancelled caller goes at once, and result or exception of the function are then dropped. At its exit the interpreter
    waits for what is queued, so no write is cut short, and an owner that was never closed does not hold it up either;
    one that nobody holds any more ends its thread.

    Args:
        name: the thread's name.
        idle: called in the thread when the queue has been empty for `idle_after_s` after work; once per such pause.
            What it raises ends up nowhere, so it must not raise.
    """

    def __init__(
        self, name: str, *, idle: Callable[[], object] | None = None, idle_after_s: float = 0.05
    ) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._closed = False
        # A daemon, because the interpreter joins all others before it runs `_end_all`.
        self._thread = threading.Thread(
            target=_work, args=(self._queue, idle, idle_after_s), name=name, daemon=True
        )
        _alive[self._thread] = self._queue
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._queue.put, None)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Its result, or what it raised.

        Raises:
            NotOpen: `close` was called before; nothing was done.
        """
        if self._closed:
            raise NotOpen
        return await self._hop(function, args)

    def begin(self, function: Callable[[], object]) -> None:
        """As `run`, and nobody waits for it: what it raises ends up nowhere, so it must not raise.

        Raises:
            NotOpen: `close` was called before; nothing will be done.
        """
        if self._closed:
            raise NotOpen
        self._queue.put((function, (), _unheard))

    async def close(self, last: Callable[[], object] | None = None) -> None:
        """On return the queue is drained, `last` has run, and the thread has ended. Again: nothing happens.

        A scope that is cancelled meanwhile waits for it: what comes next may give up a lock that this work needs.
        """
        if self._closed:
            return
        self._closed = True
        self._finalizer.detach()
        with anyio.CancelScope(shield=True):
            try:
                await self._hop(_Last(last), ())
            finally:
                self._thread.join()  # it has nothing left to do

    async def _hop(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return await self._hop_trio(function, args)
        future: asyncio.Future[T] = loop.create_future()

        def deliver(result: Any, error: Exception | None) -> None:
            loop.call_soon_threadsafe(_settle, future, result, error)

        self._queue.put((function, args, deliver))
        return await future

    async def _hop_trio(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        import trio  # a host on asyncio need not have it

        token = trio.lowlevel.current_trio_token()
        done = trio.Event()
        outcome: list[tuple[Any, Exception | None]] = []

        def deliver(result: Any, error: Exception | None) -> None:
            outcome.append((result, error))
            token.run_sync_soon(done.set)

        self._queue.put((function, args, deliver))
        await done.wait()
        result, error = outcome.pop()
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]


def _settle(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if future.done():  # its caller was cancelled
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _unheard(result: Any, error: Exception | None) -> None:
    """Of what was begun, nobody is told."""


class _Last:
    """The function after which the thread ends."""

    def __init__(self, function: Callable[[], object] | None) -> None:
        self._function = function

    def __call__(self) -> None:
        if self._function is not None:
            self._function()


def _work(queue: "SimpleQueue[Job | None]", idle: Callable[[], object] | None, idle_after_s: float) -> None:
    """The thread. It holds the queue and not its owner, so that an abandoned owner can be collected."""
    _serve(queue, idle, idle_after_s)
    _alive.pop(threading.current_thread(), None)


def _serve(queue: "SimpleQueue[Job | None]", idle: Callable[[], object] | None, idle_after_s: float) -> None:
    worked = False
    while True:
        try:
            job = queue.get(timeout=idle_after_s if worked and idle is not None else None)
        except Empty:
            worked = False
            if idle is not None:
                idle()
            continue
        if job is None:
            return
        function, args, deliver = job
        result, error = None, None
        try:
            result = function(*args)
        except Exception as caught:  # noqa: BLE001 - whatever it is, it belongs to the caller
            error = caught
        # The caller's event loop may have ended: then nobody waits (trio's RunFinishedError is a RuntimeError).
        with contextlib.suppress(RuntimeError):
            deliver(result, error)
        if isinstance(function, _Last):
            return
        worked = True
        # Or the last job's data would live until the next one.
        del job, function, args, deliver, result, error
