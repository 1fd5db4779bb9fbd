"""Load in an open loop: arrivals have times of their own, and latency counts from there.

A client that waits for an answer before it asks again leaves out just the asks that would have met a stall (coordinated
omission; Tene, "How not to measure latency"). Here a late loop, a full queue or a slow answer all count against the answer.
"""

import asyncio
import ctypes
import itertools
import os
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

from attrs import define, field, frozen

# More than these under way, and the next arrival waits in its generator: its latency goes on counting.
UNDER_WAY_MAX = 20_000
# The generator gives up so long after its last arrival was due: what it has not sent by then is `unsent`.
GRACE_S = 1.0
# Above this rate what comes due within half a millisecond is sent together: to wake up for each is 20 to 30 us of the
# processor that is being measured, a third of it at 10,000 a second.
TOGETHER_FROM_PER_S, TOGETHER_S = 5_000.0, 0.0005
# Within this much of the offer, the machine keeps up.
KEPT_UP_SHARE = 0.95

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


class _Timerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Pacer:
    """Waits for a moment to some 50 us. An event loop's own timers are up to a millisecond late (epoll counts in those),
    which is as long as a commit; this is a timerfd (timerfd_create(2)) that the loop watches."""

    def __enter__(self) -> Self:
        self._fd = _LIBC.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.Future[None] | None = None
        self._loop.add_reader(self._fd, self._rang)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _rang(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew between the ring and us
            return
        if self._due is not None and not self._due.done():
            self._due.set_result(None)

    async def until(self, at: float) -> None:
        """Returns once `time.perf_counter()` has reached `at`; one waiter at a time."""
        left_s = at - time.perf_counter()
        if left_s <= 0:
            return
        seconds = int(left_s)
        spec = _Timerspec(0, 0, seconds, max(1, int((left_s - seconds) * 1e9)))
        if _LIBC.timerfd_settime(self._fd, 0, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")
        self._due = self._loop.create_future()
        await self._due


@frozen(kw_only=True)
class Offered:
    """What came of an offer. Latencies, in microseconds, count from the intended moment; `late_us` is the generator's own
    part in them: how long after that moment each was sent."""

    rate_per_s: float
    answered: int
    unsent: int
    elapsed_s: float
    latencies_us: list[float]
    late_us: list[float]

    @property
    def reached_per_s(self) -> float:
        return self.answered / self.elapsed_s

    @property
    def kept_up(self) -> bool:
        return self.unsent == 0 and self.reached_per_s >= KEPT_UP_SHARE * self.rate_per_s

    def told(self) -> str | None:
        """The plain word where the machine did not keep up; None where it did."""
        if self.kept_up:
            return None
        return f"offered {_thousands(self.rate_per_s)}/s, reached {_thousands(self.reached_per_s)}/s"


def _thousands(rate_per_s: float) -> str:
    return f"{rate_per_s / 1000:,.3g} k" if rate_per_s >= 1000 else f"{rate_per_s:,.3g}"


def arrivals(rate_per_s: float, duration_s: float, seed: int = 1) -> list[float]:
    """Seconds from the start, exponentially spaced (independent callers), up to `duration_s`."""
    chance = random.Random(seed)
    found, at = [], chance.expovariate(rate_per_s)
    while at < duration_s:
        found.append(at)
        at += chance.expovariate(rate_per_s)
    return found or [0.0]


def moments(rate_per_s: float, count: int, seed: int = 1) -> list[float]:
    """The first `count` such arrivals, however long they take."""
    chance = random.Random(seed)
    return list(itertools.accumulate(chance.expovariate(rate_per_s) for _ in range(count)))


@define
class _Offer:
    """One offer under way."""

    send: Callable[[int], Awaitable[object]]
    latencies_us: list[float] = field(factory=list)
    late_us: list[float] = field(factory=list)
    due: deque[tuple[int, float]] = field(
        factory=deque
    )  # number and intended moment of those that no task is at yet
    idle: "list[asyncio.Future[None]]" = field(factory=list)  # of tasks
    under_way: int = 0
    ended_at: float = 0.0
    error: Exception | None = None
    answered: "asyncio.Future[None] | None" = None

    async def work(self) -> None:
        """Sends one after the other, and waits in between: a task for each would be half of the generator's cost."""
        while True:
            while self.due:
                await self._one(*self.due.popleft())
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.idle.append(idle)
            await idle

    async def _one(self, number: int, intended_at: float) -> None:
        self.late_us.append((time.perf_counter() - intended_at) * 1e6)
        try:
            await self.send(number)
        except Exception as error:  # noqa: BLE001 - the offer ends, and raises it
            self.error = self.error or error
        else:
            self.ended_at = time.perf_counter()
            self.latencies_us.append((self.ended_at - intended_at) * 1e6)
        finally:
            self.under_way -= 1
            if self.answered is not None and not self.answered.done():
                self.answered.set_result(None)

    async def one_is_answered(self) -> None:
        self.answered = asyncio.get_running_loop().create_future()
        await self.answered


async def offer(
    send: Callable[[int], Awaitable[object]], *, rate_per_s: float, duration_s: float, seed: int = 1
) -> Offered:
    """Call `send(0)`, `send(1)`, ... each at its own moment, or up to half a millisecond later above 5,000 a second, whether or
    not those before it were answered.

    What a `send` raised first is raised here, and nothing more is sent from then on.
    """
    due = arrivals(rate_per_s, duration_s, seed)
    together_s = TOGETHER_S if rate_per_s > TOGETHER_FROM_PER_S else 0.0
    offer_ = _Offer(send)
    tasks: list[asyncio.Task[None]] = []
    sent = 0
    try:
        with Pacer() as pacer:
            began = time.perf_counter()
            give_up_at = began + due[-1] + GRACE_S
            while sent < len(due) and offer_.error is None and (now := time.perf_counter()) < give_up_at:
                while sent < len(due) and began + due[sent] <= now and offer_.under_way < UNDER_WAY_MAX:
                    offer_.due.append((sent, began + due[sent]))
                    offer_.under_way += 1
                    sent += 1
                    if offer_.idle:
                        offer_.idle.pop().set_result(None)
                    else:
                        tasks.append(asyncio.create_task(offer_.work()))
                if offer_.under_way >= UNDER_WAY_MAX:
                    await offer_.one_is_answered()
                elif sent < len(due):
                    await pacer.until(max(began + due[sent], now + together_s))
        while offer_.under_way:
            await offer_.one_is_answered()
    finally:
        for task in tasks:
            task.cancel()
    if offer_.error is not None:
        raise offer_.error
    return Offered(
        rate_per_s=rate_per_s,
        answered=len(offer_.latencies_us),
        unsent=len(due) - sent,
        # From the first moment to the last answer, and not less than was offered: a tail counts, an early end does not.
        elapsed_s=max(offer_.ended_at - began, due[-1]) or 1e-6,
        latencies_us=offer_.latencies_us,
        late_us=offer_.late_us,
    )


async def generator_cpu_us(rate_per_s: float, duration_s: float = 0.5) -> float:
    """What one arrival costs in CPU where nothing is done with it: the generator's own share of an open loop."""
    cpu_s = time.process_time()
    done = await offer(_nothing, rate_per_s=rate_per_s, duration_s=duration_s)
    return (time.process_time() - cpu_s) / max(1, done.answered) * 1e6


async def _nothing(number: int) -> None:
    return None


LAG_EVERY_S = 0.01


class LagMeter:
    """How late the event loop is, looked at every 10 ms from a task of its own."""

    async def __aenter__(self) -> Self:
        self.lag_us: list[float] = []
        self._pacer = Pacer().__enter__()
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._pacer.__exit__()

    async def _look(self) -> None:
        while True:
            at = time.perf_counter() + LAG_EVERY_S
            await self._pacer.until(at)
            self.lag_us.append((time.perf_counter() - at) * 1e6)
