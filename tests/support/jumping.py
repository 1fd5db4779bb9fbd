"""Virtual time on asyncio and on trio: it jumps to the next deadline as soon as nothing else is to be done."""

import asyncio
import selectors
from typing import Any

import trio.testing


class JumpingLoop(asyncio.SelectorEventLoop):
    """asyncio with a clock that moves only where the loop would wait. What a thread or a socket does takes none of its time:
    it is heard between two jumps, or while nothing is planned."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now_s

    def jump(self, seconds: float) -> None:
        self._now_s += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready:
            self._loop.jump(timeout)
        return ready


def virtual(backend: str) -> tuple[str, dict[str, Any]]:
    """An `anyio_backend`, `asyncio` or `trio`, on virtual time."""
    if backend == "asyncio":
        return backend, {"loop_factory": JumpingLoop}
    return backend, {"clock": trio.testing.MockClock(autojump_threshold=0)}
