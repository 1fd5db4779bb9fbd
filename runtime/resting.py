"""Work that can wait, done beside what cannot: a slice of it, a rest, the next slice.

A look at all sessions that only lets others have their turn between its slices is milliseconds of a busy event loop all the
same, in which every other thread waits for the interpreter again and again: a commit of 1 ms took 6 to 16 ms meanwhile.
"""

from collections.abc import Callable

import anyio

REST_FACTOR = 4.0
REST_S_MAX = 0.25  # then it looks again whether it may
HEAD_START = 0.25  # for what comes before the first piece is done


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
    """Awaited after each slice of work that must be done before a room is full: rests as `Rest` does while more of the work is
    done than of the room is used, less the smaller its lead, and without one not at all.

    Args:
        used: how much of the room is used, 1 where it is all of it.
        passes: how many times the work goes over all its pieces.
    """

    def __init__(self, used: Callable[[], float], passes: int) -> None:
        self._used = used
        self._passes = passes
        self._pass = self._pieces = self._done = 0
        self._began = 0.0

    def start(self) -> None:
        """The work begins anew."""
        self._pass = 0

    def begin_pass(self, pieces: int) -> None:
        """There are so many pieces in this one."""
        self._pass += 1
        self._pieces, self._done = pieces, 0
        self._began = anyio.current_time()

    def done(self) -> None:
        """One piece is."""
        self._done += 1

    @property
    def lead(self) -> float:
        """From 1, where it may take its time, to 0. Where it takes more passes than it should, it has none."""
        if not 0 < self._pass <= self._passes:
            return 0.0
        done = (self._pass - 1 + self._done / max(1, self._pieces)) / self._passes
        return min(1.0, max(0.0, 1 + (done - self._used()) / HEAD_START))

    async def __call__(self) -> None:
        worked_s = anyio.current_time() - self._began
        await anyio.sleep(min(REST_S_MAX, self.lead * REST_FACTOR * worked_s))
        self._began = anyio.current_time()
