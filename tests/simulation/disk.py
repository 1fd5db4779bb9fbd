"""Stores in memory that fail, wait and forget by a seed; what was written and what was synced are told apart.

A `Disk` outlives processes; a `Mount` is how one process sees it. Each call of a store is an operation: begun, written
(half its time is over; a killed process leaves it behind so), synced (carried out, its caller hears of it). A dead
process's operations are settled by `Disk.settle`: those that were written stay after a kill, and after a power cut or
may not, a write of several parts in part.
"""

import copy
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from attrs import define, field

from sojourn.actors.errors import ObjectExists, StaleEpoch, StorageFull, StoreError, StoreUnavailable
from sojourn.actors.ports import (
    CatalogQuery,
    CatalogRow,
    JournalStatistics,
    Mirror,
    MirrorAnswer,
    MirrorClaim,
    MirrorHead,
    MirrorUpdate,
    Record,
)
from sojourn.runtime.opening import Stores
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryJournal, MemoryMirror, MemoryObjects

from .oracle import Oracle
from .profile import DEATHS_MAX, Profile, log_uniform, rng_of
from .trace import Trace

T = TypeVar("T")

# Which part of the runtime makes a call: the outermost of these on its stack.
PHASES = {
    "CommitWriter._commit": "commit",
    "CommitWriter._try_again": "commit",
    "Snapshotter.write_due": "snapshot",
    "Compactor.compact": "compaction",
    "Compactor._move": "compaction",
    "Tiering.hand_off": "hand-off",
    "Tiering.archive": "archive",
    "Tiering.look": "look",
    "Tiering.set_facts": "facts",
    "Sessions._start_session": "recovery",
    "Runtime.over": "start",
    "Sessions._catch_up_catalog": "start",
    "Subscription.lines": "stream",
    "CatalogProjector.flush": "catalog",
}
# How much likelier a fault is in phases that are short and rare.
WEIGHTS = {"seal": 10.0, "compaction": 2.0, "facts": 3.0, "archive": 2.0, "stream": 2.0, "start": 2.0}
BEGUN, WRITTEN, CARRYING_OUT, ENDED = range(4)
PAUSES_S = (0.01, 100.0)
STEPS_S = (0.1, 20_000.0)
EPISODES_S = (0.05, 20.0)


class Killed(BaseException):
    """The process is gone: no call comes through any more."""


def phase_of_caller(otherwise: str = "ask") -> str:
    """The phase that the running task is in."""
    found, frame = otherwise, sys._getframe(2)
    while frame is not None:
        found = PHASES.get(frame.f_code.co_qualname, found)
        frame = frame.f_back  # type: ignore[assignment]
    return found


@define(eq=False)
class Operation:
    """One write on its way. `parts`: carries out a first part of it, given how much of it as a share."""

    name: str
    phase: str
    carry_out: Callable[[], Awaitable[Any]]
    in_part: Callable[[float], Awaitable[Any]] | None
    state: int = BEGUN
    done: anyio.Event = field(factory=anyio.Event)
    result: Any = None
    error: BaseException | None = None

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        if not self.done.is_set():
            self.result, self.error = result, error
            self.done.set()


@define(eq=False)
class Disk:
    """What lies there, of all processes one after the other.

    Attributes:
        calm: no fault happens any more.
        unsynced: rows of the catalog as they were before a write that a power cut may take back.
    """

    profile: Profile
    oracle: Oracle
    trace: Trace
    journal: MemoryJournal = field(factory=MemoryJournal)
    catalog: MemoryCatalog = field(factory=MemoryCatalog)
    recent: MemoryObjects = field(factory=MemoryObjects)
    archive: MemoryObjects = field(factory=MemoryObjects)
    mirror: MemoryMirror = field(factory=MemoryMirror)
    calm: bool = False
    deaths: int = 0
    store_faults: int = 0
    unsynced: list[dict[str, CatalogRow | None]] = field(factory=list)
    older: dict[str, Any] = field(factory=dict)  # of the mirror: sessions as they were
    rng: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rng = rng_of(self.profile.seed, "disk")

    def draws(self, fault: str, phase: str = "") -> bool:
        """Whether this fault happens now."""
        rate = self.profile.rates.get(fault)
        return rate is not None and not self.calm and self.rng.random() < rate * WEIGHTS.get(phase, 1.0)

    async def settle(self, mount: "Mount") -> None:
        """The process of `mount` is dead, its operations become what they will have been."""
        for operation in mount.operations:
            if operation.state == CARRYING_OUT:
                await operation.done.wait()
                continue
            survives = operation.state == WRITTEN and (mount.death == "kill" or self.rng.random() < 0.5)
            self.trace.note("settled", operation.name, survives)
            # What the store under it would have refused did not happen.
            with suppress(StaleEpoch, ObjectExists, ValueError):
                if survives:
                    await operation.carry_out()
                elif operation.in_part is not None and operation.state == WRITTEN:
                    await operation.in_part(self.rng.random())
        mount.operations.clear()
        if mount.death == "power":
            kept = self.rng.randint(0, len(self.unsynced))
            for before in reversed(self.unsynced[kept:]):
                for session_id, row in before.items():
                    if row is None:
                        del self.catalog._rows[session_id]
                    else:
                        self.catalog._rows[session_id] = row
            self.unsynced.clear()


@define(eq=False)
class Mount:
    """One process's way to the disk, and what ends it.

    Args:
        tasks: where operations go on whose callers have left.
        pause: lets the process rest for so many seconds. set_clock: by so many seconds.
    """

    disk: Disk
    tasks: TaskGroup
    pause: Callable[[float], None]
    set_clock: Callable[[float], None]
    epoch: int | None = None
    death: str | None = None
    leave: anyio.Event = field(factory=anyio.Event)  # the process must end: it is dead, or told to
    operations: list[Operation] = field(factory=list)
    _silent_until: dict[str, float] = field(factory=dict)
    _full_until: float = -1.0

    def stores(self) -> Stores:
        return Stores(
            journal=SimJournal(self),
            catalog=SimCatalog(self),
            objects=SimObjects(self, self.disk.recent, "recent"),
            archive=SimObjects(self, self.disk.archive, "archive"),
            mirror=SimPlace(self) if self.disk.profile.mirror else None,  # type: ignore[arg-type]
        )

    def die(self, death: str) -> None:
        """From here on no call comes through."""
        if self.death is not None:
            return
        self.death = death
        self.disk.deaths += 1
        self.leave.set()
        for operation in self.operations:
            if operation.state != CARRYING_OUT:
                operation.done.set()

    def occurs(self, fault: str, *phases: str) -> None:
        """Count a fault, in its phases and in those of everything under way."""
        disk = self.disk
        disk.trace.note(fault, *phases)
        for phase in {*phases, *(operation.phase for operation in self.operations)}:
            disk.trace.covered[fault, phase] += 1

    async def read(self, store: str, verb: str, look: Callable[[], Awaitable[T]]) -> T:
        """A call that changes nothing."""
        phase = phase_of_caller("mirror" if store == "mirror" else "ask")
        if self.death is None and (death := self._draw_death(phase)) is not None:
            self.die(death)
        await self._before(store, f"{store}.{verb}", phase, False)
        result = await look()
        if self.death is not None:
            raise Killed
        return result

    async def write(
        self,
        store: str,
        verb: str,
        carry_out: Callable[[], Awaitable[T]],
        *,
        lane: anyio.Lock | None = None,
        seals: bool = False,
        in_part: Callable[[float], Awaitable[Any]] | None = None,
    ) -> T:
        """A call that changes something. It is carried out though its caller leaves; in a lane one after the other.

        Args:
            seals: it makes a session sealed.
            in_part: for a write that is not all or nothing.
        """
        phase = phase_of_caller("mirror" if store == "mirror" else "ask")
        operation = Operation(f"{store}.{verb}", "seal" if seals else phase, carry_out, in_part)
        if self.death is not None:
            raise Killed
        self.operations.append(operation)
        self.tasks.start_soon(self._carry_out, operation, store, lane)
        await operation.done.wait()
        if self.death is not None and operation.state != ENDED:
            raise Killed
        if operation.error is not None:
            raise operation.error
        return operation.result  # type: ignore[no-any-return]

    async def _carry_out(self, operation: Operation, store: str, lane: anyio.Lock | None) -> None:
        if lane is None:
            await self._work(operation, store)
        else:
            async with lane:
                await self._work(operation, store)

    async def _work(self, operation: Operation, store: str) -> None:
        disk = self.disk
        error: StoreError | None = None
        try:
            if self.death is not None:
                return
            unknown = disk.draws("unknown", operation.phase)
            dies = self._draw_death(operation.phase)
            await self._before(store, operation.name, operation.phase, True)
            if self.death is not None:
                return
            operation.state = WRITTEN
            if dies is not None:
                self.die(dies)
                return
            await self._delay()
            if self.death is not None:
                return
            operation.state = CARRYING_OUT
            result = None
            if unknown:
                self.occurs("unknown", operation.phase)
                disk.store_faults += 1
                error = StoreUnavailable(f"{operation.name}: nobody knows what became of it")
                chance = disk.rng.random()
                if chance < 0.4:
                    await operation.carry_out()
                elif chance < 0.6 and operation.in_part is not None:
                    await operation.in_part(disk.rng.random())
            else:
                result = await operation.carry_out()
            operation.state = ENDED
            disk.trace.note(operation.name, operation.phase, error is None)
            operation.end(result, error)
        except Exception as other:  # noqa: BLE001 - what the store under it refuses is for the caller
            operation.state = ENDED
            operation.end(error=other)
        except Killed:
            operation.end()
        finally:
            if self.death is None or operation.state in (CARRYING_OUT, ENDED):
                if operation in self.operations:
                    self.operations.remove(operation)
                operation.end()

    def _draw_death(self, phase: str) -> str | None:
        disk = self.disk
        if disk.deaths >= DEATHS_MAX:
            return None
        for death in ("kill", "power"):
            if disk.draws(death, phase):
                self.occurs(death, phase)
                if disk.rng.random() < 0.4:
                    self.die(death)  # before it has begun
                    raise Killed
                return death
        if disk.draws("stop", phase):
            self.occurs("stop", phase)
            disk.deaths += 1
            self.leave.set()
        return None

    async def _before(self, store: str, name: str, phase: str, writes: bool) -> None:
        """What may happen to any call before it does anything."""
        if self.death is not None:
            raise Killed
        disk, rng = self.disk, self.disk.rng
        if disk.calm:
            await checkpoint()
            return
        if disk.draws("clock", phase):
            self.occurs("clock", phase)
            self.set_clock(rng.choice([-1, 1]) * log_uniform(rng, *STEPS_S))
        await self._delay()
        if disk.draws("stall", phase):
            self.occurs("stall", phase)
            await anyio.sleep(log_uniform(rng, *EPISODES_S))
        if disk.draws("pause", phase):
            self.occurs("pause", phase)
            self.pause(log_uniform(rng, *PAUSES_S))
        if self.death is not None:
            raise Killed
        now = anyio.current_time()
        if disk.draws("silence", phase):
            self._silent_until[store] = now + log_uniform(rng, *EPISODES_S)
        if disk.draws("full", phase):
            self._full_until = now + log_uniform(rng, *EPISODES_S)
        if now < self._silent_until.get(store, -1.0):
            self._fails("silence", phase)
            raise StoreUnavailable(f"{name}: the {store} does not answer")
        if (
            writes
            and now < self._full_until
            and not name.endswith("delete")
            and store not in ("archive", "mirror")
        ):
            self._fails("full", phase)
            raise StorageFull(f"{name}: no room")
        if disk.draws("error", phase):
            self._fails("error", phase)
            raise StoreUnavailable(f"{name}: an error")

    def _fails(self, fault: str, phase: str) -> None:
        self.disk.store_faults += 1
        self.occurs(fault, phase)

    async def _delay(self) -> None:
        delay_s = self.disk.profile.delay_s
        if delay_s and not self.disk.calm:
            await anyio.sleep(self.disk.rng.expovariate(1 / delay_s))
        else:
            await checkpoint()


class SimJournal:
    """See ports.Journal."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._disk = mount.disk
        self._inner = mount.disk.journal
        self._lane = anyio.Lock()

    @property
    def epoch(self) -> int:
        return self._inner.epoch

    def heads(self) -> Mapping[str, int]:
        return self._inner.heads()

    def pending_bytes(self, session_id: str, after_seq: int) -> int:
        return self._inner.pending_bytes(session_id, after_seq)

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def released(self, session_id: str) -> int:
        return self._inner.released(session_id)

    def oldest(self, size_bytes: int) -> dict[str, int]:
        return self._inner.oldest(size_bytes)

    async def append(self, records: Sequence[Record]) -> None:
        records = list(records)

        async def append() -> None:
            await self._inner.append(records)
            self._disk.oracle.appended(records, self._mount)

        seals = any(b'"session.sealed"' in record.payload for record in records)
        await self._mount.write("journal", "append", append, lane=self._lane, seals=seals)

    async def read(
        self, session_id: str, after_seq: int = 0, *, bytes_max: int | None = None
    ) -> list[Record]:
        async with self._lane:  # one thread owns it
            return await self._mount.read(
                "journal", "read", lambda: self._inner.read(session_id, after_seq, bytes_max=bytes_max)
            )

    async def marks(self) -> list[Record]:
        async with self._lane:
            return await self._mount.read("journal", "marks", self._inner.marks)

    async def release(self, upto: Mapping[str, int]) -> None:
        async def release(share: float = 1.0) -> None:
            some = dict(list(upto.items())[: round(share * len(upto))])
            for session_id, seq in some.items():
                self._disk.oracle.releases(session_id, seq, self._inner.heads().get(session_id, 0))
            await self._inner.release(some)
            self._disk.oracle.copies_left(self._disk, some)

        await self._mount.write("journal", "release", release, lane=self._lane, in_part=release)

    async def forget(self, session_ids: Collection[str]) -> None:
        async def forget(share: float = 1.0) -> None:
            some = list(session_ids)[: round(share * len(session_ids))]
            await self._inner.forget(some)
            self._disk.oracle.copies_left(self._disk, some)

        await self._mount.write("journal", "forget", forget, lane=self._lane, in_part=forget)

    def statistics(self) -> JournalStatistics:
        return self._inner.statistics()

    async def close(self) -> None:
        await self._inner.close()


class SimCatalog:
    """See ports.Catalog."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._disk = mount.disk
        self._inner = mount.disk.catalog
        self._lane = anyio.Lock()

    async def put(self, rows: Sequence[CatalogRow]) -> None:
        async def put() -> None:
            before = {row.session_id: self._inner._rows.get(row.session_id) for row in rows}
            await self._inner.put(rows)
            if any(row.tier != "active" for row in rows):
                self._disk.unsynced.clear()
            else:
                self._disk.unsynced.append(before)
            self._told(rows)

        await self._mount.write("catalog", "put", put, lane=self._lane)

    async def switch(self, row: CatalogRow, *, from_tier: str) -> bool:
        async def switch() -> bool:
            switched = await self._inner.switch(row, from_tier=from_tier)
            self._disk.unsynced.clear()
            if switched:
                self._told([row])
            return switched

        return await self._mount.write("catalog", "switch", switch, lane=self._lane)

    def _told(self, rows: Sequence[CatalogRow]) -> None:
        for row in rows:
            stands = self._inner._rows.get(row.session_id)
            if stands is not None:
                self._disk.oracle.listed(stands, self._disk)

    async def in_tier(self, tier: str, *, updated_before: datetime, limit: int) -> list[str]:
        return await self._mount.read(
            "catalog",
            "in_tier",
            lambda: self._inner.in_tier(tier, updated_before=updated_before, limit=limit),
        )

    async def due(
        self, *, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> list[tuple[datetime, str]]:
        return await self._mount.read(
            "catalog", "due", lambda: self._inner.due(before=before, after=after, limit=limit)
        )

    async def get(self, session_id: str) -> CatalogRow | None:
        return await self._mount.read("catalog", "get", lambda: self._inner.get(session_id))

    async def page(self, query: CatalogQuery) -> list[CatalogRow]:
        return await self._mount.read("catalog", "page", lambda: self._inner.page(query))

    async def heads(self) -> dict[str, int]:
        return await self._mount.read("catalog", "heads", self._inner.heads)

    async def epoch(self) -> int:
        return await self._mount.read("catalog", "epoch", self._inner.epoch)

    async def close(self) -> None:
        await self._inner.close()


class SimObjects:
    """See ports.Objects."""

    def __init__(self, mount: Mount, inner: MemoryObjects, store: str) -> None:
        self._mount = mount
        self._disk = mount.disk
        self._inner = inner
        self._store = store

    async def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        disk = self._disk

        async def put() -> None:
            if disk.draws("garbled", phase):
                self._mount.occurs("garbled", phase)
                garbled = data[: len(data) // 2]
                await self._inner.put(name, garbled, create_only=create_only)
                return
            await self._inner.put(name, data, create_only=create_only)
            disk.oracle.stored(self._store, name, data)

        phase = phase_of_caller()
        await self._mount.write(self._store, "put", put)

    async def get(self, name: str) -> bytes:
        return await self._mount.read(self._store, "get", lambda: self._inner.get(name))

    async def list(self, prefix: str) -> AsyncIterator[str]:
        async def names() -> list[str]:
            return [name async for name in self._inner.list(prefix)]

        for name in await self._mount.read(self._store, "list", names):
            yield name

    async def delete(self, name: str) -> None:
        async def delete() -> None:
            await self._inner.delete(name)
            self._disk.oracle.deleted(self._disk, name)

        await self._mount.write(self._store, "delete", delete)


class SimMirror:
    """See ports.Mirror. It may lose what it holds, all of it or the last of a session, as at a failover."""

    description = "simulated"
    is_local = False

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._disk = mount.disk
        self._inner = mount.disk.mirror
        self._lane = anyio.Lock()

    async def claim(self, owner: str, epoch: int) -> MirrorClaim:
        return await self._mount.write(
            "mirror", "claim", lambda: self._inner.claim(owner, epoch), lane=self._lane
        )

    async def epoch(self) -> int:
        return await self._mount.read("mirror", "epoch", self._inner.epoch)

    async def apply(self, batch: Sequence[MirrorUpdate]) -> list[MirrorAnswer]:
        async def apply(share: float = 1.0) -> list[MirrorAnswer]:
            self._may_lose()
            some = batch[: round(share * len(batch))]
            for update in some:
                self._disk.oracle.mirrors(update)
            answers = await self._inner.apply(some)
            for update, answer in zip(some, answers, strict=True):
                if answer in (MirrorAnswer.OK, MirrorAnswer.DUP):
                    self._disk.oracle.mirrored(update)
            return answers

        return await self._mount.write("mirror", "apply", apply, lane=self._lane, in_part=apply)

    def _may_lose(self) -> None:
        disk, sessions = self._disk, self._inner._sessions
        if sessions and disk.draws("lost"):
            self._mount.occurs("lost", "mirror")
            self._inner.lose(*([] if disk.rng.random() < 0.3 else [disk.rng.choice(sorted(sessions))]))
        elif sessions and disk.draws("older"):
            self._mount.occurs("older", "mirror")
            session_id = disk.rng.choice(sorted(sessions))
            if session_id in disk.older:
                sessions[session_id] = copy.deepcopy(disk.older[session_id])
        elif sessions and "older" in disk.profile.rates:
            session_id = disk.rng.choice(sorted(sessions))
            disk.older[session_id] = copy.deepcopy(sessions[session_id])

    async def head(self, session_id: str) -> MirrorHead | None:
        return await self._mount.read("mirror", "head", lambda: self._inner.head(session_id))

    async def heads(self) -> dict[str, MirrorHead]:
        return await self._mount.read("mirror", "heads", self._inner.heads)

    async def documents(self, session_id: str) -> dict[str, bytes]:
        return await self._mount.read("mirror", "documents", lambda: self._inner.documents(session_id))

    async def events(self, session_id: str, after_seq: int = 0) -> list[tuple[int, bytes]]:
        return await self._mount.read("mirror", "events", lambda: self._inner.events(session_id, after_seq))

    async def trim(self, session_id: str, epoch: int, upto_seq: int) -> MirrorAnswer:
        return await self._mount.write(
            "mirror", "trim", lambda: self._inner.trim(session_id, epoch, upto_seq), lane=self._lane
        )

    async def remove(self, session_id: str, epoch: int, tier: str = "recent") -> MirrorAnswer:
        return await self._mount.write(
            "mirror", "remove", lambda: self._inner.remove(session_id, epoch, tier), lane=self._lane
        )

    async def close(self) -> None:
        await self._inner.close()


class SimPlace:
    """See runtime.mirror_place.MirrorPlace: a server that outlives the process."""

    private = False
    owner = "here"

    def __init__(self, mount: Mount) -> None:
        self._mirror = SimMirror(mount)

    async def connect(self) -> Mirror:
        return self._mirror

    async def epoch(self, known: int) -> int:
        try:
            return await self._mirror.epoch()
        except StoreError:  # as the real one: the data folder knows its own
            return 0

    async def watch(self, started: Callable[[], None]) -> None:
        started()
        await anyio.sleep_forever()

    async def close(self) -> None:
        """It stays."""
