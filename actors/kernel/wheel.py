"""One wheel for every deadline and timer of a kernel.

Asks almost always end long before their deadline, so what counts is the cost of adding and removing: a dictionary a
tick gives both in constant time, and the order in which they were added (a cancel scope an ask costs 3x, a heap leaves
millions of dead entries at 300 k asks/s).
"""

import heapq
import math
from collections.abc import Iterator
from typing import Protocol

TICKS_PER_S = 20


class Entry(Protocol):
    """What hangs in the wheel; the wheel writes its place into `bucket`."""

    bucket: "dict[Entry, None] | None"


class Wheel:
    """Deadlines in ticks of 50 ms: nothing is early, and nothing later than one tick and the loop's own lag.

    `bucket` holds what is due from `since` until before `until`: the last one that was added to, because the asks of a
    moment have one deadline. (`Kernel.ask` adds to it itself: finding the tick again costs as much as all the rest.)
    """

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Entry, None]] = {}
        self._ticks: list[int] = []
        self.bucket: dict[Entry, None] = {}
        self.since = self.until = 0.0

    def add(self, entry: Entry, deadline: float) -> bool:
        """Args: deadline: on the kernel's monotonic clock, in seconds. Returns whether it may be the next to ring."""
        tick = int(deadline * TICKS_PER_S) + 1
        bucket = self._buckets.get(tick)
        is_new = bucket is None
        if bucket is None:
            bucket = self._buckets[tick] = {}
            heapq.heappush(self._ticks, tick)
        bucket[entry] = None
        entry.bucket = bucket
        self.bucket, self.since, self.until = bucket, (tick - 1) / TICKS_PER_S, tick / TICKS_PER_S
        return is_new and self._ticks[0] == tick

    @staticmethod
    def remove(entry: Entry) -> None:
        """An entry that hangs nowhere: nothing happens."""
        bucket = entry.bucket
        if bucket is not None:
            del bucket[entry]
            entry.bucket = None

    def due(self, now: float) -> Iterator[Entry]:
        """Take out and yield everything whose tick has passed, by tick, and within one as it was added."""
        ticks = self._ticks
        while ticks and ticks[0] <= now * TICKS_PER_S:
            bucket = self._pop()
            for entry in list(bucket):
                if entry.bucket is bucket:  # else what rang before it has removed it
                    entry.bucket = None
                    yield entry

    def next_at(self) -> float:
        """When something is due, in seconds on the same clock; infinity where nothing is."""
        ticks = self._ticks
        while ticks:
            if self._buckets[ticks[0]]:
                return ticks[0] / TICKS_PER_S
            self._pop()
        return math.inf

    def _pop(self) -> dict[Entry, None]:
        bucket = self._buckets.pop(heapq.heappop(self._ticks))
        if bucket is self.bucket:
            self.until = 0.0  # it rings no more, so nothing may be added to it
        return bucket

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))
