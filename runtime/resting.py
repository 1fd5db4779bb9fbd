"""Work that can wait, done beside what cannot: a slice of it, a rest, the next slice.

A look at all sessions that only lets others have their turn between its slices is milliseconds of a busy event loop all the
same, in which every other thread waits for the interpreter again and again: a commit of 1 ms took 6 to 16 ms meanwhile.
"""

import anyio

REST_FACTOR = 4.0


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
