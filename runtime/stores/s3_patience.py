"""How long S3 is waited for, and when a request is sent again."""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
from attrs import define, field, frozen

from ...actors.errors import StoreUnavailable
from .s3_faults import DRIVER_ERRORS, may_pass, translated

T = TypeVar("T")

BYTES_PER_S_MIN = 256 * 1024  # a connection slower than this is taken for one that stands still


@frozen(kw_only=True)
class Patience:
    """How long S3 is waited for.

    Attributes:
        deadline_s: for an operation as a whole, its repetitions included; and a second for each 256 KiB it moves.
        try_s: for one request, likewise. What is not answered then is sent again.
        tries_max: how often one request is sent at most.
        pause_s: before the second try; each further pause is twice as long, and each is cut at random by up to a half.
        pause_s_max: no pause is longer.
    """

    deadline_s: float = 60.0
    try_s: float = 15.0
    tries_max: int = 6
    pause_s: float = 0.2
    pause_s_max: float = 5.0


@define
class Budget:
    """When an operation must be over. `size_bytes` is what it moves, as far as that is known."""

    deadline_s: float
    size_bytes: int = 0
    started_at_s: float = field(factory=anyio.current_time)

    @property
    def ends_at_s(self) -> float:
        return self.started_at_s + self.deadline_s + self.size_bytes / BYTES_PER_S_MIN


@frozen(kw_only=True)
class Requests:
    """Sends requests to one bucket again and again, as patience allows. `place` is the store as people know it."""

    place: str
    bucket: str
    patience: Patience

    def budget(self, size_bytes: int = 0) -> Budget:
        return Budget(self.patience.deadline_s, size_bytes)

    async def repeat(
        self,
        operation: str,
        key: str,
        call: Callable[[anyio.CancelScope], Awaitable[T]],
        budget: Budget,
        *,
        shield: bool = False,
        size_bytes: int = 0,
    ) -> T:
        """What `call` returns; it is made again while that is safe, may help, and there is time.

        Args:
            call: one request and its answer; it is given the scope that ends it.
            shield: a cancelled caller waits for the request under way, and goes before the next one.
            size_bytes: how much the request sends.

        Raises:
            Overtaken: a condition of the request does not hold any more.
            StoreError: as translated; StoreUnavailable where it was never answered.
        """
        try_s = self.patience.try_s + size_bytes / BYTES_PER_S_MIN
        cause: Exception | None = None
        for number in range(self.patience.tries_max):
            if number and not await self._pause(number, budget):
                break
            await anyio.lowlevel.checkpoint_if_cancelled()
            cause = None
            ends_at_s = min(anyio.current_time() + try_s, budget.ends_at_s)
            with anyio.CancelScope(deadline=ends_at_s, shield=shield) as scope:
                try:
                    return await call(scope)
                except DRIVER_ERRORS as error:
                    cause = error
            if cause is not None and not may_pass(cause):
                break
        if cause is None:
            raise StoreUnavailable(
                f"{self.place} did not answer {operation} of {key} in time; the outcome is unknown"
            )
        raise translated(cause, operation, place=self.place, bucket=self.bucket, key=key) from cause

    async def _pause(self, number: int, budget: Budget) -> bool:
        """Waits before try `number`; False, and at once, where no time would be left for it."""
        longest_s = min(self.patience.pause_s * 2 ** (number - 1), self.patience.pause_s_max)
        pause_s = longest_s * random.uniform(0.5, 1.0)  # or all that were refused would come back together
        if anyio.current_time() + pause_s >= budget.ends_at_s:
            return False
        await anyio.sleep(pause_s)
        return True
