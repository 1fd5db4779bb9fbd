"""Work that can wait, done beside what cannot: a slice of it, a rest, the next slice.

A look at all sessions that only lets others have their turn between its slices is milliseconds of a busy event loop all the
same, in which every other thread waits for the interpreter again and again: a commit of 1 ms took 6 to 16 ms meanwhile.
"""

from collections.abc import Callable
from typing import Self

import anyio

REST_FACTOR = 4.0
REST_S_MAX = 0.25  # then it looks again whether it may
HEAD_START = 0.25  # for what comes before the first piece is done
AT_ONCE = 8


class Rest:
    """Awaited after each slice: sleeps so long that the slices take a fifth of the time.

    Args:
        factor: how long to rest, by the length of the slice.
    """

    def __init__(self, factor: float = REST_FACTOR) -> None:
        self._factor = factor
        self._began = anyio.current_time()

    async def __call__(self) -> None:
        await anyio.sleep(self._factor * (anyio.current_time() - self._began))
        self._began = anyio.current_time()


class Pace:
    """Awaited after each slice of work that must be done before a room is full. Its lead is how much more of the work is done
    than of the room is used. With much of a lead it rests as `Rest` does, with less of it less; with little it does not rest,
    and more is done together the smaller it is. Once it is lost that stays so until the work begins anew.

    Args:
        used: how much of the room is used, 1 where it is all of it.
    """

    def __init__(self, used: Callable[[], float]) -> None:
        self._used = used
        self._pieces = self._done = 0
        self._under_way = self._share = 0.0
        self._is_late = True
        self._began = 0.0

    def begin(self, pieces: int) -> None:
        """There is so much to do."""
        self._pieces, self._done = pieces, 0
        self._is_late = not pieces
        self._began = anyio.current_time()

    def more(self, pieces: int) -> None:
        """There is more to do than was thought."""
        self._pieces += pieces

    def done(self, pieces: int = 1) -> None:
        """So many are."""
        self._done += pieces
        self._under_way = 0.0

    def now(self, pieces: int) -> Self:
        """Itself, for work of which it is told the share that is done: all of it is so many pieces."""
        self._under_way, self._share = pieces, 0.0
        return self

    @property
    def _ease(self) -> float:
        """From 1, where it may take its time, over 0, where it may not rest, to -1, where it is late."""
        if self._is_late:
            return -1.0
        lead = ((self._done + self._share * self._under_way) / self._pieces - self._used()) / HEAD_START
        self._is_late = lead <= -1
        return min(1.0, max(-1.0, 1 + 2 * lead))

    @property
    def at_once(self) -> int:
        """How much may be done together."""
        return max(1, round(-self._ease * AT_ONCE))

    async def __call__(self, share: float = 0.0) -> None:
        self._share = share
        worked_s = anyio.current_time() - self._began
        await anyio.sleep(min(REST_S_MAX, max(0.0, self._ease) * REST_FACTOR * worked_s))
        self._began = anyio.current_time()
