"""Small blocking calls of many tasks, done in one thread: those that wait are done in one go, and answered in one.

A way to a thread and back costs more than most such calls: an activation listed and read its snapshot in some 40 us, and
paid 300 us for two ways through a pool. A storm of activations shares the way instead.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeVar

from attrs import define

from ..actors.errors import NotOpen
from ..actors.kernel.park import Parked, parking
from .bridge import OwnerThread

T = TypeVar("T")

# So many are answered together: the first of a long queue does not wait for its end.
AT_ONCE_MAX = 64


@define(eq=False)
class _Call:
    """`soon` runs a function on its caller's event loop."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    parked: Parked
    soon: Callable[..., object]
    result: Any = None
    error: Exception | None = None


class GatheringThread:
    """Runs functions one after the other, in the order of the calls. For what takes microseconds: what waits behind a slow
    one waits for it. As many wait as there are callers. A caller that is cancelled goes at once; its function is still run.

    Args:
        together: of a function, what does for several calls of it at once what it does for each. It is given their arguments,
            and returns what comes of the first of them, of at least one; an exception for one that failed.
    """

    def __init__(
        self,
        name: str,
        together: Mapping[Callable[..., Any], Callable[[Sequence[tuple[Any, ...]]], Sequence[Any]]]
        | None = None,
    ) -> None:
        self._thread = OwnerThread(name)
        self._together = together or {}
        self._waiting: deque[_Call] = deque()
        self._closed = False

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Its result, or what it raised.

        Raises:
            NotOpen: `close` was called before; nothing was done.
        """
        if self._closed:
            raise NotOpen
        call = _Call(function, args, parking()(), _soon())
        self._waiting.append(call)
        # One that is not alone is taken along: whoever goes for the one before it stops only where nothing waits.
        if len(self._waiting) == 1:
            self._thread.begin(self._carry_out)
        result: T = await call.parked
        return result

    async def close(self, last: Callable[[], object] | None = None) -> None:
        """On return everything that waited is done, `last` has run, and the thread has ended. Again: nothing happens."""
        self._closed = True
        await self._thread.close(last)

    def _carry_out(self) -> None:
        """In the thread."""
        waiting = self._waiting
        while waiting:
            calls = [waiting.popleft() for _ in range(min(len(waiting), AT_ONCE_MAX))]
            while calls:
                done = self._do(calls)
                by_loop: dict[Callable[..., object], list[_Call]] = {}
                for call in calls[:done]:
                    by_loop.setdefault(call.soon, []).append(call)
                del calls[:done]
                for soon, answered in by_loop.items():
                    # An event loop may have ended: then nobody waits (trio's RunFinishedError is a RuntimeError).
                    with contextlib.suppress(RuntimeError):
                        soon(_answer, answered)

    def _do(self, calls: list[_Call]) -> int:
        """How many of the first of them it did, and may be answered."""
        for at, call in enumerate(calls):
            together = self._together.get(call.function)
            if together is None:
                _do_one(call)
            elif at:
                return at
            else:
                return _do_some(together, _of_one_function(calls))
        return len(calls)


def _of_one_function(calls: list[_Call]) -> list[_Call]:
    function = calls[0].function
    return list(takewhile(lambda call: call.function == function, calls))


def _do_one(call: _Call) -> None:
    try:
        call.result = call.function(*call.args)
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
        call.error = error


def _do_some(together: Callable[[Sequence[tuple[Any, ...]]], Sequence[Any]], calls: list[_Call]) -> int:
    if len(calls) == 1:
        _do_one(calls[0])
        return 1
    try:
        found = together([call.args for call in calls])
    except Exception as error:  # noqa: BLE001 - as above
        found = [error] * len(calls)
    for call, result in zip(calls, found, strict=False):
        if isinstance(result, Exception):
            call.error = result
        else:
            call.result = result
    return len(found)


def _soon() -> Callable[..., object]:
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio  # a host on asyncio need not have it

        return trio.lowlevel.current_trio_token().run_sync_soon


def _answer(calls: list[_Call]) -> None:
    for call in calls:
        if call.parked.done():  # its caller was cancelled
            continue
        if call.error is None:
            call.parked.set_result(call.result)
        else:
            call.parked.set_exception(call.error)
