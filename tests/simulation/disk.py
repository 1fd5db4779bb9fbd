"""Stores in memory that fail, wait and forget by a seed; what was written and what was synced are told apart.

A `Disk` outlives processes; a `Mount` is how one process sees it. Each call of a store is an operation: begun, written
(half its time is over; a killed process leaves it behind so), synced (carried out, its caller hears of it). A dead
process's operations are settled by `Disk.settle`: those that were written stay after a kill, and after a power cut or
may not, a write of several parts in part.
"""

import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from sojourn.actors.errors import NotOpen, ObjectExists, StaleEpoch, StorageFull, StoreError, StoreUnavailable
from sojourn.actors.ports import (
    CatalogRow,
)
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryJournal, MemoryMirror

from .oracle import Oracle
from .profile import DEATHS_MAX, Profile, log_uniform, rng_of
from .rot import RottingObjects
from .trace import Trace

T = TypeVar("T")

# Which part of the runtime makes a call: the outermost of these on its stack.
PHASES = {
    "CommitWriter._commit": "commit",
    "CommitWriter._try_again": "commit",
    "Snapshotter.write_due": "snapshot",
    "Compactor.compact": "compaction",
    "Compactor._one": "compaction",
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
WEIGHTS = {
    "seal": 40.0,
    "ask": 3.0,
    "compaction": 2.0,
    "facts": 8.0,
    "catalog": 3.0,
    "hand-off": 2.0,
    "archive": 6.0,
    "stream": 6.0,
    "start": 2.0,
}
WEIGHTED_MAX = 0.3
LATE = ("catalog.put", "journal.append", "mirror.apply")  # objects have no fence but the folder's lock
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
    recent: RottingObjects = field(factory=RottingObjects)
    archive: RottingObjects = field(factory=RottingObjects)
    mirror: MemoryMirror = field(factory=MemoryMirror)
    calm: bool = False
    deaths: int = 0
    store_faults: int = 0
    unsynced: list[dict[str, CatalogRow | None]] = field(factory=list)
    late: list[Operation] = field(factory=list)  # of processes that are dead
    older: dict[str, Any] = field(factory=dict)  # of the mirror: sessions as they were
    harmed: set[str] = field(factory=set)  # sessions that have ended, and of which something rotted
    rng: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rng = rng_of(self.profile.seed, "disk")

    def draws(self, fault: str, phase: str = "") -> bool:
        """Whether this fault happens now."""
        rate = self.profile.rates.get(fault)
        if rate is None or self.calm:
            return False
        # What always failed would be tried again for ever, and nothing else would happen.
        return self.rng.random() < min(rate * WEIGHTS.get(phase, 1.0), max(rate, WEIGHTED_MAX))

    def mend(self, now: float) -> None:
        """Somebody puts back what rotted and was to be mended by now."""
        for objects in (self.recent, self.archive):
            objects.mend(now)

    async def settle(self, mount: "Mount") -> None:
        """The process of `mount` is dead, its operations become what they will have been."""
        for operation in mount.operations:
            if operation.state == CARRYING_OUT:
                await operation.done.wait()
                continue
            if operation.name in LATE and mount.epoch is not None and self.draws("stale"):
                self.late.append(operation)
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
    opened_at: float = 0.0
    epoch: int | None = None
    death: str | None = None
    closed: bool = False
    up: bool = False
    fired: int = 0  # crashes that were planted
    taken: anyio.Event = field(factory=anyio.Event)  # this process rests, and another one takes over
    woken: anyio.Event = field(factory=anyio.Event)  # it goes on all the same
    ended: anyio.Event = field(factory=anyio.Event)
    behind: MemoryJournal | None = None  # the journal as it was then: a process knows of its own writes alone
    leave: anyio.Event = field(factory=anyio.Event)  # the process must end: it is dead, or told to
    operations: list[Operation] = field(factory=list)
    events: int = 0  # that the journal took
    writers: dict[str, int] = field(
        factory=dict
    )  # which task changes the objects of a session, by their folder
    _reading: int = 0
    _silent_until: dict[str, float] = field(factory=dict)
    _full_until: float = -1.0

    @property
    def journal(self) -> MemoryJournal:
        """As this process knows it."""
        return self.behind if self.behind is not None else self.disk.journal

    def fenced(self) -> None:
        """What the journal says to an owner that is none any more. Raises StaleEpoch."""
        if self.behind is not None and self.disk.journal.epoch > self.behind.epoch:
            raise StaleEpoch(
                f"epoch {self.behind.epoch} is fenced: the journal is at {self.disk.journal.epoch}"
            )

    async def _rest(self) -> None:
        if self.taken.is_set() and self.death is None:
            await self.woken.wait()

    def die(self, death: str) -> None:
        """From here on no call comes through."""
        if self.death is not None:
            return
        self.death = death
        self.disk.deaths += 1
        self.leave.set()
        self.woken.set()
        for operation in self.operations:
            if operation.state != CARRYING_OUT:
                operation.done.set()

    async def close(self) -> None:
        """What was begun in an orderly end is finished, and nothing is begun any more."""
        self.closed = True
        while self.death is None and (self.operations or self._reading):
            await anyio.sleep(0.001)

    def occurs(self, fault: str, *phases: str) -> None:
        """Count a fault, in its phases and in those of everything under way."""
        disk = self.disk
        disk.trace.note(fault, *phases)
        for phase in {*phases, *(operation.phase for operation in self.operations)}:
            disk.trace.covered[fault, phase] += 1

    async def read(self, store: str, verb: str, look: Callable[[], Awaitable[T]]) -> T:
        """A call that changes nothing."""
        phase = phase_of_caller("mirror" if store == "mirror" else "ask")
        if self.closed:
            raise NotOpen
        self._reading += 1
        try:
            return await self._read(f"{store}.{verb}", store, phase, look)
        finally:
            self._reading -= 1

    async def _read(self, name: str, store: str, phase: str, look: Callable[[], Awaitable[T]]) -> T:
        if self.death is None and (death := self._draw_death(phase)) is not None:
            self.die(death)
        if self.leave.is_set() and self.death is None and self.disk.rng.random() < 0.3:
            await anyio.sleep(log_uniform(self.disk.rng, *EPISODES_S))  # it may outlast an orderly end
        await self._before(store, name, phase, False)
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
        if self.closed:
            raise NotOpen
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
        if disk.late and self.epoch is not None and not disk.calm and disk.rng.random() < 0.3:
            late = disk.late.pop(0)
            self.occurs("stale", late.phase)
            with suppress(StaleEpoch, ValueError):
                await late.carry_out()
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
            await self._rest()
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
        if disk.deaths >= DEATHS_MAX or self.taken.is_set():
            return None
        if self.up and not self.leave.is_set() and disk.draws("taken", phase):
            self.occurs("taken", phase)
            disk.deaths += 1
            self.taken.set()
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
        await self._rest()
        if self.death is not None:
            raise Killed
        disk, rng = self.disk, self.disk.rng
        if disk.calm:
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
        if delay_s and not self.disk.calm:  # else the store under it gives way, once
            await anyio.sleep(self.disk.rng.expovariate(1 / delay_s))
