"""Stores that fail when told, around ones that work. Fault points live here and in no shipped code."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import anyio
from attrs import define, field

from sojourn.actors.errors import StorageFull, StoreError, StoreUnavailable
from sojourn.actors.ports import JournalStatistics, Record, RecordKind, Resting
from sojourn.runtime.stores.memory import MemoryJournal


@define(eq=False)
class FaultyJournal:
    """A memory journal in front of which a fault can stand.

    Attributes:
        fault: raised by every append while it is set, with nothing written.
        fault_after: raised by the next append once it has written: the outcome that nobody knows.
        refuse_kind: while it is set, an append with a record of this kind finds no room.
        hold: while set to an event, an append waits for it before it writes.
        hold_after: the same once it has written: the heads have moved, and nobody has been told.
    """

    inner: MemoryJournal = field(factory=MemoryJournal)
    fault: StoreError | None = None
    fault_after: StoreError | None = None
    hold: anyio.Event | None = None
    hold_after: anyio.Event | None = None
    unreadable: bool = False
    refuse_kind: RecordKind | None = None

    @property
    def epoch(self) -> int:
        return self.inner.epoch

    def heads(self) -> Mapping[str, int]:
        return self.inner.heads()

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        return self.inner.pending_bytes(session_id, after_seq)

    @property
    def size_bytes(self) -> int:
        return self.inner.size_bytes

    @property
    def freed_bytes(self) -> int:
        return self.inner.freed_bytes

    def epoch_of(self, session_id: str) -> int:
        return self.inner.epoch_of(session_id)

    def released(self, session_id: str) -> int:
        return self.inner.released(session_id)

    def oldest(self, size_bytes: int) -> dict[str, int]:
        return self.inner.oldest(size_bytes)

    async def oldest_sparing(
        self, size_bytes: int, spare_bytes: int, rest: Callable[[], Awaitable[None]]
    ) -> dict[str, int]:
        return await self.inner.oldest_sparing(size_bytes, spare_bytes, rest)

    async def marks(self) -> list[Record]:
        if self.unreadable:
            raise StoreUnavailable("the disk does not answer")
        return await self.inner.marks()

    async def release(self, upto: Mapping[str, int], rest: Resting | None = None) -> None:
        await self.inner.release(upto, rest)

    async def forget(self, session_ids: Collection[str]) -> None:
        await self.inner.forget(session_ids)

    async def append(self, records: Sequence[Record]) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.fault is not None:
            raise self.fault
        if self.refuse_kind in [record.kind for record in records]:
            raise StorageFull
        await self.inner.append(records)
        if self.hold_after is not None:
            await self.hold_after.wait()
        if self.fault_after is not None:
            fault, self.fault_after = self.fault_after, None
            raise fault

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        if self.unreadable:
            raise StoreUnavailable("the disk does not answer")
        return await self.inner.read(session_id, after_seq, bytes_max=bytes_max)

    async def read_several(
        self, after: Mapping[str, int], upto: Mapping[str, int] | None = None, rest: Resting | None = None
    ) -> Mapping[str, Sequence[Record]]:
        if self.unreadable:
            raise StoreUnavailable("the disk does not answer")
        return await self.inner.read_several(after, upto, rest)

    def statistics(self) -> JournalStatistics:
        return self.inner.statistics()

    async def close(self) -> None:
        await self.inner.close()


@define(eq=False)
class TestClock:
    """Wall and monotonic time that move only when told."""

    __test__ = False

    wall: datetime = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
    seconds: float = 1_000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds

    def pass_time(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall += timedelta(seconds=seconds)
