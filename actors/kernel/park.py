"""Parking one asker: the one place that knows which event loop runs.

An `asyncio.Future` costs half of an `anyio.Event`, and one waits under every ask. On trio the same three methods stand
on its lowest level, where a cancelled waiter leaves nothing behind.
"""

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Protocol

import anyio


class Parked(Protocol):
    """A place where one task waits for one value. All of it happens on the loop's own thread."""

    def set_result(self, result: Any, /) -> None:
        """Wake the waiter with a value. Once, and not when `done()`."""
        ...

    def set_exception(self, exception: BaseException, /) -> None:
        """Wake the waiter with an error. Once, and not when `done()`."""
        ...

    def done(self) -> bool:
        """Answered, or its waiter has been cancelled."""
        ...

    def __await__(self) -> Generator[Any, None, Any]: ...


def parking() -> Callable[[], Parked]:
    """What makes a parking place under the running event loop."""
    try:
        return asyncio.get_running_loop().create_future
    except RuntimeError:  # not asyncio
        return _EventParked


class _EventParked:
    """The same on any anyio backend: an event, and the value beside it."""

    __slots__ = ("_cancelled", "_event", "_exception", "_result")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._exception: BaseException | None = None
        self._result: Any = None
        self._cancelled = False

    def set_result(self, result: Any, /) -> None:
        self._result = result
        self._event.set()

    def set_exception(self, exception: BaseException, /) -> None:
        self._exception = exception
        self._event.set()

    def done(self) -> bool:
        return self._cancelled or self._event.is_set()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        try:
            await self._event.wait()
        finally:
            self._cancelled = not self._event.is_set()
        if self._exception is not None:
            raise self._exception
        return self._result


class Gate:
    """Wakes one waiting task. A `wake` before the wait is kept, so that none is lost between a check and the wait."""

    __slots__ = ("_new", "_parked", "_set")

    def __init__(self) -> None:
        self._new: Callable[[], Parked] | None = None
        self._parked: Parked | None = None
        self._set = False

    def wake(self) -> None:
        """Never blocks; again before the waiter ran: once is enough."""
        self._set = True
        parked = self._parked
        if parked is not None:
            self._parked = None
            if not parked.done():
                parked.set_result(None)

    async def wait(self) -> None:
        """Returns once `wake` was called since the last return. For one task only."""
        if not self._set:
            if self._new is None:
                self._new = parking()
            self._parked = self._new()
            await self._parked
        self._set = False
