"""Small blocking calls of many tasks, done in one thread: those that wait are done in one go, and answered in one.

A way to a thread and back costs more than most such calls: an activation listed and read its snapshot in some 40 us, and
paid 300 us for two ways through a pool. A storm of activations shares the way instead.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
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
    """

    def __init__(self, name: str) -> None:
        self._thread = OwnerThread(name)
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

    async def close(self) -> None:
        """On return everything that waited is done, and the thread has ended. Again: nothing happens."""
        self._closed = True
        await self._thread.close()

    def _carry_out(self) -> None:
        """In the thread."""
        waiting = self._waiting
        while waiting:
            done: dict[Callable[..., object], list[_Call]] = {}
            for _ in range(min(len(waiting), AT_ONCE_MAX)):
                call = waiting.popleft()
                try:
                    call.result = call.function(*call.args)
                except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
                    call.error = error
                done.setdefault(call.soon, []).append(call)
            for soon, calls in done.items():
                # An event loop may have ended: then nobody waits (trio's RunFinishedError is a RuntimeError).
                with contextlib.suppress(RuntimeError):
                    soon(_answer, calls)


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
