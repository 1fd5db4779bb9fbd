"""Sessions in tiers over stores in memory, and stores that fall away at the nth call."""

import copy
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import define, evolve, field

from sojourn.actors.ports import CatalogQuery, Record
from sojourn.actors.session.codec import (
    decode_events,
    encode_events,
    encode_snapshot,
    public_state,
)
from sojourn.actors.session.commands import AppendLog, Command, Complete, Create, RecordResult, Seal, Start
from sojourn.actors.session.core import apply, decide, fold
from sojourn.actors.session.model import CaseOutcome, Limits, Outcome, SessionState
from sojourn.actors.session.record import public_record
from sojourn.actors.tiering.core import Work
from sojourn.runtime.event_log import EventLog
from sojourn.runtime.layout import session_folder, snapshot_name
from sojourn.runtime.opening import Stores
from sojourn.runtime.projector import catalog_row
from sojourn.runtime.recovery import History, Recovery
from sojourn.runtime.segments import encode_segment, segment_name
from sojourn.runtime.shelves import Shelves
from sojourn.runtime.stores.memory import MemoryCatalog, MemoryJournal, MemoryObjects
from sojourn.runtime.tiering import Tiering
from sojourn.runtime.verified import put_one_by_one

from .faulty import TestClock

SESSION = "sess_" + "1" * 32
START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SEGMENT_BYTES_FULL = 4_000


class Killed(Exception):
    """The process is gone: no call comes through any more."""


@define
class Plan:
    """What becomes of the calls to all stores together, which are counted from 1.

    Attributes:
        kill_at: this call and every later one raise `Killed`, and do nothing.
        fault_at: this call raises `fault`; `fault_done` says whether it does its work all the same.
    """

    kill_at: int | None = None
    fault_at: int | None = None
    fault: Exception | None = None
    fault_done: bool = False
    calls: int = 0
    names: list[str] = field(factory=list)
    killed: bool = False


CALLS = frozenset(
    {"append", "read", "release", "forget", "put", "switch", "in_tier", "get", "page", "heads", "delete"}
)


class Fallible:
    """A store whose calls go by a plan."""

    def __init__(self, inner: Any, plan: Plan, name: str) -> None:
        self._inner = inner
        self._plan = plan
        self._name = name

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        if name not in CALLS or (name == "heads" and self._name == "journal"):
            return inner

        async def call(*args: Any, **kwargs: Any) -> Any:
            faulty = self._count(f"{self._name}.{name}")
            if faulty and not self._plan.fault_done:
                raise self._plan.fault or AssertionError
            try:
                return await inner(*args, **kwargs)
            finally:
                if faulty:
                    raise self._plan.fault or AssertionError

        return call

    async def put_all(self, objects: Sequence[tuple[str, bytes]]) -> None:
        await put_one_by_one(self, objects)  # so that it breaks off between any two

    async def list(self, prefix: str) -> AsyncIterator[str]:
        if self._count(f"{self._name}.list"):
            raise self._plan.fault or AssertionError
        async for name in self._inner.list(prefix):
            yield name

    def _count(self, name: str) -> bool:
        plan = self._plan
        plan.calls += 1
        plan.names.append(name)
        if plan.killed or plan.calls == plan.kill_at:
            plan.killed = True
            raise Killed(name)
        return plan.calls == plan.fault_at


class Overtaken:
    """A store for a reader: before the nth of its calls, counted over all stores, something else happens."""

    def __init__(
        self, inner: Any, count: Iterator[int], at: int, meanwhile: Callable[[], Awaitable[None]]
    ) -> None:
        self._inner = inner
        self._count = count
        self._at = at
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        if name not in {"get", "put_all", "read"}:
            return inner

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._go_on()
            return await inner(*args, **kwargs)

        return call

    async def list(self, prefix: str) -> AsyncIterator[str]:
        await self._go_on()
        async for name in self._inner.list(prefix):
            yield name

    async def _go_on(self) -> None:
        if next(self._count) == self._at:
            await self._meanwhile()


def overtaken(
    stores: Stores, at: int, meanwhile: Callable[[], Awaitable[None]]
) -> tuple[Stores, Iterator[int]]:
    """The stores as a reader sees them, and the count of its calls."""
    count = itertools.count(1)
    wrapped = (
        Overtaken(store, count, at, meanwhile)
        for store in (stores.journal, stores.catalog, stores.objects, stores.archive)
    )
    journal, catalog, objects, archive = wrapped
    return evolve(stores, journal=journal, catalog=catalog, objects=objects, archive=archive), count


def memory_stores() -> Stores:
    return Stores(
        journal=MemoryJournal(), catalog=MemoryCatalog(), objects=MemoryObjects(), archive=MemoryObjects()
    )


def clone(stores: Stores) -> Stores:
    """What lies on disk now, for another process."""
    return copy.deepcopy(stores)


def fallible(stores: Stores, plan: Plan) -> Stores:
    return Stores(
        journal=Fallible(stores.journal, plan, "journal"),
        catalog=Fallible(stores.catalog, plan, "catalog"),
        objects=Fallible(stores.objects, plan, "objects"),
        archive=Fallible(stores.archive, plan, "archive"),
    )


@define(eq=False)
class Mover:
    """A `Tiering` over stores, without a runtime; `events` and `state` read as a runtime does."""

    stores: Stores
    clock: TestClock = field(factory=TestClock)
    segment_bytes_full: int = SEGMENT_BYTES_FULL
    moved: list[str] = field(factory=list)
    tiering: Tiering = field(init=False)
    recovery: Recovery = field(init=False)
    history: History = field(init=False)
    event_log: EventLog = field(init=False)

    def __attrs_post_init__(self) -> None:
        stores = self.stores
        shelves = Shelves(
            journal=stores.journal, catalog=stores.catalog, recent=stores.objects, archive=stores.archive
        )
        self.event_log = EventLog(stores.journal, shelves)
        self.recovery = Recovery(
            journal=stores.journal,
            event_log=self.event_log,
            shelves=shelves,
            limits=Limits(),
            known_heads={},
        )
        self.history = History(self.event_log, self.recovery)
        self.tiering = Tiering(
            journal=stores.journal,
            catalog=stores.catalog,
            shelves=shelves,
            event_log=self.event_log,
            history=self.history,
            recovery=self.recovery,
            clock=self.clock,
            seal=self.seal,
            moved=lambda session_id, _tier: self.moved.append(session_id),
            archive_at="archive",
            recent_days=30.0,
            seal_after_s=30.0,
            segment_bytes_full=self.segment_bytes_full,
        )

    async def seal(self, session_id: str) -> None:
        """As the session's actor does it."""
        state = (await self.recovery.recover(session_id)).state
        header = state.header
        assert header is not None
        if header.sealed_at is None:
            await append(self.stores, state, Command("session.seal", Seal()), epoch=self.stores.journal.epoch)

    async def settle(self) -> None:
        """As the supervisor does it: look, and do what waits, until nothing waits."""
        rooms = dict.fromkeys(Work, 100)
        sweep = True
        while waiting := await self.tiering.look(frozenset(), rooms, sweep):
            for one in waiting:
                move = self.tiering.hand_off if one.work is Work.HAND_OFF else self.tiering.archive
                await move(one.session_id)
            sweep = False

    async def events(self, session_id: str = SESSION) -> bytes:
        """Every event, line by line."""
        lines: list[bytes] = []
        while records := await self.history.read(session_id, len(lines)):
            for record in records:
                lines += [
                    line
                    for event, line in zip(
                        decode_events(record.payload), record.payload.splitlines(), strict=True
                    )
                    if event.seq > len(lines)
                ]
        return b"\n".join(lines)

    async def state(self, session_id: str = SESSION) -> bytes:
        recovered = await self.recovery.recover(session_id)
        assert recovered.missing is None
        return public_state(recovered.state)


async def append(stores: Stores, state: SessionState, *commands: Command, epoch: int = 1) -> None:
    """Commit what commands make happen to a session, each as a record of its own."""
    for command in commands:
        now = START + timedelta(seconds=state.seq)
        for event in decide(state, command, now=now, limits=Limits()):
            apply(state, event, limits=Limits())
            line = encode_events([event])
            await stores.journal.append([Record(state.session_id, event.seq, 1, epoch, line)])


async def record_session(
    stores: Stores, session_id: str = SESSION, *, lines: int = 30, epoch: int = 1
) -> SessionState:
    """An ended session that is not sealed, in the journal alone, and its row; written under `epoch` and, from half of its
    lines on, the next one."""
    state = SessionState(session_id=session_id)
    await append(
        stores, state, Command("session.create", Create(plan="nightly", title="a title")), epoch=epoch
    )
    await append(stores, state, Command("session.start", Start()), epoch=epoch)
    for n in range(lines):
        line = AppendLog(stream="stdout", text=f"{n} ".ljust(400, "x"))
        await append(stores, state, Command("log.append", line), epoch=epoch + (n >= lines // 2))
    result = RecordResult(case_id="m::a", outcome=CaseOutcome.PASSED, duration_s=0.5)
    await append(stores, state, Command("result.record", result), epoch=epoch + 1)
    await append(
        stores, state, Command("session.complete", Complete(outcome=Outcome.PASSED)), epoch=epoch + 1
    )
    await stores.catalog.put([catalog_row(public_record(state, epoch=epoch + 1))])
    return state


async def compact(stores: Stores, *ends: int, session_id: str = SESSION, snapshot_at: int = 0) -> None:
    """Segments that end at these seqs, from the first on; the journal is released up to `snapshot_at`, where an older
    snapshot stands."""
    first = 1
    for end in ends:
        records = [r for r in await stores.journal.read(session_id, first - 1) if r.last_seq <= end]
        name = segment_name(session_folder(session_id), first, end)
        await stores.objects.put(name, encode_segment(session_id, records))
        first = end + 1
    if snapshot_at:
        records = [r for r in await stores.journal.read(session_id) if r.last_seq <= snapshot_at]
        state = fold(session_id, [e for r in records for e in decode_events(r.payload)], limits=Limits())
        await stores.objects.put(
            snapshot_name(session_id, snapshot_at), encode_snapshot(state, records[-1].epoch)
        )
        await stores.journal.release({session_id: snapshot_at})


async def contents(stores: Stores) -> dict[str, Any]:
    """Everything that lies in the stores, to be compared."""

    def objects(store: Any) -> Any:
        return dict(store._objects)

    heads: Callable[[], Any] = stores.journal.heads
    return {
        "recent": objects(stores.objects),
        "archive": objects(stores.archive),
        "rows": await stores.catalog.page(CatalogQuery(limit=1_000)),
        "heads": dict(heads()),
    }
