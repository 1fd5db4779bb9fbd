"""Sessions that report to a runtime in this process as fast as they are answered, what each was told, and whether a mirror
says the same as the history.

What a session must be is folded from its events here, apart from the runtime: nothing of its memory is believed.
"""

import asyncio
import hashlib
import random
import re
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psutil
from attrs import Factory, define, field

from sojourn.actors.errors import DeadlineExceeded, DurabilityUnavailable, StoreError
from sojourn.actors.ports import Mirror
from sojourn.actors.session.codec import decode_event
from sojourn.actors.session.commands import AppendLog, Command, RecordResult, ReportProgress, SourceCause
from sojourn.actors.session.core import apply
from sojourn.actors.session.documents import all_documents
from sojourn.actors.session.model import Ack, CaseOutcome, Limits, SessionState
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.reader import Reader
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.stores.mirror_keys import NAMESPACE, SEQ, session_key
from sojourn.runtime.stores.mirror_redis import RedisMirror

from .processor import Mark, Processor, lost_s
from .redis import Server
from .wait import await_until

SOURCE = "fleet"
CASES = 50
CONFIRM_S = 0.5
GAP_S_MIN = 0.02  # one shorter is not looked into
MARK_EVERY_S = 0.005
LOOK_EVERY_S = 0.05  # a look at 200 sessions costs the process a millisecond or two
PATIENCE_S = 60.0
MIB = 1024 * 1024


@define(eq=False)
class Shadow:
    """A session as its history tells it, and which event each numbered command became."""

    session_id: str
    state: SessionState = field(init=False)
    seq_of: "array[int]" = field(factory=lambda: array("Q"))  # of n = 1, 2, ...
    wrong: list[str] = field(factory=list)
    digest: "hashlib._Hash" = field(factory=hashlib.sha256)

    def __attrs_post_init__(self) -> None:
        self.state = SessionState(session_id=self.session_id)

    async def catch_up(self, history: Runtime | Reader) -> None:
        """Takes in what the history has had since."""
        limits = Limits()
        async for line in history.events(self.session_id, after=self.state.seq):
            event = decode_event(line.line)
            if event.seq != self.state.seq + 1:
                self.wrong.append(f"{self.session_id}: {event.seq} follows {self.state.seq}")
            self.digest.update(line.line)
            apply(self.state, event, limits)
            cause = event.cause
            if isinstance(cause, SourceCause) and cause.source == SOURCE:
                if cause.n != len(self.seq_of) + 1:
                    self.wrong.append(f"{self.session_id}: command {cause.n} after {len(self.seq_of)}")
                self.seq_of.append(event.seq)


@define(eq=False)
class Reporter:
    """One session's reporter. `told` is the seq that it was answered for each of its commands, 1, 2, ..."""

    fleet: "Fleet"
    session_id: str
    ack: Ack
    rng: random.Random
    told: "array[int]" = field(factory=lambda: array("Q"))

    async def report(self) -> None:
        fleet = self.fleet
        while not fleet.stopping:
            if not fleet.going.is_set():
                fleet.resting += 1
                await fleet.going.wait()
                fleet.resting -= 1
                continue
            await self.tell()

    async def tell(self) -> None:
        """One command, to its answer."""
        fleet = self.fleet
        command = a_command(self.rng, len(self.told) + 1)
        if self.ack is Ack.MIRRORED:
            self.told.append(await fleet.ask_mirrored(self.session_id, command))
        else:
            self.told.append((await fleet.runtime.ask(self.session_id, command)).seq)
            fleet.heard()


def a_command(rng: random.Random, n: int) -> Command:
    kind = rng.randrange(3)
    body: Any
    if kind == 0:
        name, body = "log.append", AppendLog(stream="stdout", text=f"line {n} " + "x" * rng.randrange(200))
    elif kind == 1:
        name, body = "progress.report", ReportProgress(done=n)
    else:
        name = "result.record"
        body = RecordResult(case_id=f"c{n % CASES}", duration_s=0.1, outcome=CaseOutcome.PASSED)
    return Command(name, body, None, "", SOURCE, n)


@define(eq=False)
class Fleet:
    """All of them, and what is watched meanwhile.

    Attributes:
        server: what the runtime's mirror is in.
        witness: a way of its own to the server, past every fault between the runtime and it.
        idle: those that say something now and then only, by `stir`.
        longest_gap_s: between two durable acknowledgements of the whole fleet, since `strike`; `longest_own_gap_s` is the
            same without the time that was lost for want of a processor.
        losses: how often the server was made to forget something.
        unseen: answers `mirrored` for what the server did not have, though nothing was taken from it meanwhile.
        impossible: answers `mirrored` for what was asked and answered while the server answered nobody; and what was not
            even durable when its mirroring was refused or late.
    """

    runtime: Runtime
    server: Server
    witness: Mirror
    reporters: list[Reporter] = field(factory=list)
    idle: list[Reporter] = field(factory=list)
    shadows: dict[str, Shadow] = field(factory=dict)
    going: asyncio.Event = field(factory=asyncio.Event)
    stopping: bool = False
    resting: int = 0
    losses: int = 0
    away_since_s: float | None = None
    longest_gap_s: float = 0.0
    longest_own_gap_s: float = 0.0
    rss_at_first: int = 0
    rss_most: int = 0
    counts: Counter[str] = field(factory=Counter)
    unseen: list[str] = field(factory=list)
    impossible: list[str] = field(factory=list)
    slowest_refusal_s: float = 0.0
    processor: Processor = field(factory=Processor)
    _last_heard_s: float = 0.0
    _marked_s: float = 0.0
    _mark: Mark = field(default=Factory(lambda fleet: fleet.processor.mark(), takes_self=True))
    _process: psutil.Process = field(factory=psutil.Process)

    def heard(self) -> None:
        """A durable acknowledgement has come."""
        now_s = time.monotonic()
        gap_s = own_gap_s = now_s - self._last_heard_s
        if gap_s > GAP_S_MIN or now_s > self._marked_s + MARK_EVERY_S:
            mark = self.processor.mark()
            own_gap_s -= lost_s(self._mark, mark)
            self._marked_s, self._mark = now_s, mark
        self.longest_gap_s = max(self.longest_gap_s, gap_s)
        self.longest_own_gap_s = max(self.longest_own_gap_s, own_gap_s)
        self._last_heard_s = now_s

    def _listen(self) -> None:
        """Gaps are counted from now on."""
        self._last_heard_s = self._marked_s = time.monotonic()
        self._mark = self.processor.mark()

    async def ask_mirrored(self, session_id: str, command: Command) -> int:
        """The seq that the command's event has, whether it was mirrored or is durable only."""
        asked_at_s, losses = time.monotonic(), self.losses
        try:
            seq = (await self.runtime.ask(session_id, command, ack=Ack.MIRRORED)).seq
        except DurabilityUnavailable as error:
            self.counts["refused"] += 1
            self.slowest_refusal_s = max(self.slowest_refusal_s, time.monotonic() - asked_at_s)
            if error.reached != Ack.DURABLE.value:
                raise  # it was to be done
            seq = await self._done_before(session_id, command)
            if (error.session_id, error.seq) != (session_id, seq):
                self.impossible.append(f"{session_id} {seq} was said to be {error.session_id} {error.seq}")
            return seq
        except DeadlineExceeded:
            self.counts["late"] += 1
            return await self._done_before(session_id, command)
        self.counts["mirrored"] += 1
        if self.away_since_s is not None and asked_at_s > self.away_since_s:
            self.impossible.append(f"{session_id} {seq}")
        await self._confirm(session_id, seq, losses)
        return seq

    async def _done_before(self, session_id: str, command: Command) -> int:
        again = await self.runtime.ask(session_id, command)
        if not again.duplicate:
            self.impossible.append(f"{session_id} {again.seq} had to be durable, and was not there")
        return again.seq

    async def _confirm(self, session_id: str, seq: int, losses: int) -> None:
        """Looks until the server answers; what a fault may have taken from it meanwhile is counted apart."""
        head = None
        while losses == self.losses:
            try:
                async with asyncio.timeout(CONFIRM_S):
                    head = await self.witness.head(session_id)
                break
            except (TimeoutError, StoreError):
                await asyncio.sleep(LOOK_EVERY_S)
        if head is not None and head.seq >= seq:
            self.counts["confirmed"] += 1
        elif losses != self.losses:
            self.counts["lost_by_a_fault"] += 1
        else:
            self.unseen.append(f"{session_id} {seq}: the mirror stands at {head}")

    # -- faults ----------------------------------------------------------------------------------------------------

    def strike(self, *, loses: bool) -> None:
        """To be called right before a fault: what is measured begins anew, and what the server has may be gone."""
        self.losses += loses
        self.counts.clear()
        self.slowest_refusal_s = 0.0
        self.longest_gap_s = self.longest_own_gap_s = 0.0
        self._listen()
        self.rss_at_first = self.rss_most = self._process.memory_info().rss

    async def stir(self) -> None:
        """Each idle session says something, and rests again."""
        for reporter in self.idle:
            await reporter.tell()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Meanwhile the server answers nobody."""
        self.away_since_s = time.monotonic()
        try:
            yield
        finally:
            self.away_since_s = None

    async def watch_memory(self) -> None:
        while True:
            self.rss_most = max(self.rss_most, self._process.memory_info().rss)
            await asyncio.sleep(0.05)

    # -- the load --------------------------------------------------------------------------------------------------

    async def add(self, count: int, rng: random.Random, *, ack: Ack = Ack.DURABLE) -> list[Reporter]:
        """So many running sessions, which do not report yet."""
        added = []
        for number in range(count):
            record, _ = await self.runtime.create(read_create({"plan": "fleet", "title": str(number)}))
            session_id = record["session_id"]
            await self.runtime.ask(session_id, read_command({"type": "session.start"}))
            self.shadows[session_id] = Shadow(session_id)
            added.append(Reporter(self, session_id, ack, random.Random(rng.random())))
        self.reporters += added
        return added

    @asynccontextmanager
    async def reporting(self, reporters: Sequence[Reporter]) -> AsyncIterator[None]:
        """These report meanwhile, while `going` is set; one that is refused what must be taken ends the block."""
        self.stopping = False
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self.watch_memory())
            for reporter in reporters:
                tasks.create_task(reporter.report())
            self._expected = len(reporters)
            self.go()
            yield
            self.stopping = True
            self.going.set()
            watching.cancel()

    _expected: int = 0

    def go(self) -> None:
        self._listen()
        self.going.set()

    async def rest(self) -> None:
        """Nobody reports any more, and everybody has had their answer."""
        self.going.clear()
        await await_until(lambda: self.resting == self._expected, PATIENCE_S)

    @property
    def acknowledged(self) -> int:
        return sum(len(reporter.told) for reporter in self.reporters)

    # -- what must hold --------------------------------------------------------------------------------------------

    async def reached(self) -> None:
        """The mirror stands at, or beyond, everything that was acknowledged at the call. Asked past this event loop, which
        the load keeps busy."""
        wanted = {reporter.session_id: reporter.told[-1] for reporter in self.reporters if reporter.told}
        keys = [session_key(NAMESPACE, session_id) for session_id in wanted]
        seqs, until_s = [*wanted.values()], time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(self._stand_at, keys, seqs):
            assert time.monotonic() < until_s, f"the mirror is not there after {PATIENCE_S:g} s"
            await asyncio.sleep(LOOK_EVERY_S)

    def _stand_at(self, keys: list[str], seqs: list[int]) -> bool:
        try:
            found = self.server.run_all([("HGET", key, SEQ) for key in keys])
        except OSError:
            return False
        return all(isinstance(one, bytes) and int(one) >= seq for one, seq in zip(found, seqs, strict=True))

    async def level(self, within_s: float = PATIENCE_S, *, passivated: bool = False) -> list[str]:
        """What the mirror says otherwise than the history of resting sessions: nothing, or what is left after that time. Of
        those that are passivated it need not have the events."""
        return await self.level_of(list(self.shadows), time.monotonic() + within_s, passivated=passivated)

    async def level_of(
        self, session_ids: Sequence[str], until_s: float, *, passivated: bool = False
    ) -> list[str]:
        """The same of these sessions, until a moment of the monotonic clock."""
        epoch = None if passivated else self.runtime.epoch
        left = list(session_ids)
        for session_id in left:
            await self.shadows[session_id].catch_up(self.runtime)
        while True:
            found = {}
            for session_id in left:
                if (difference := await self._difference(session_id, epoch)) is not None:
                    found[session_id] = difference
            left = list(found)
            if not found or time.monotonic() > until_s:
                return [f"{session_id}: {difference}" for session_id, difference in found.items()]
            await asyncio.sleep(LOOK_EVERY_S)

    async def _difference(self, session_id: str, epoch: int | None) -> str | None:
        try:
            return await difference(self.runtime, self.witness, self.shadows[session_id].state, epoch=epoch)
        except StoreError as error:
            return str(error)

    async def lost(self) -> list[str]:
        """Commands that were acknowledged and whose event is not, where it was said to be; and what is doubled or out of
        order."""
        found = []
        for reporter in self.reporters:
            shadow = self.shadows[reporter.session_id]
            await shadow.catch_up(self.runtime)
            found += shadow.wrong
            if shadow.seq_of[: len(reporter.told)] != reporter.told:
                wrong = [
                    n
                    for n, seq in enumerate(reporter.told, 1)
                    if n > len(shadow.seq_of) or shadow.seq_of[n - 1] != seq
                ]
                found.append(f"{reporter.session_id}: commands {wrong[:10]} of {len(reporter.told)}")
        return found


@asynccontextmanager
async def fleet_of(runtime: Runtime, server: Server) -> AsyncIterator[Fleet]:
    """A fleet without sessions yet, to be made in the thread of the runtime's event loop."""
    witness = await RedisMirror.open(server.unix)
    fleet = Fleet(runtime, server, witness)
    try:
        yield fleet
    finally:
        fleet.processor.close()
        await witness.close()


async def difference(
    history: Runtime | Reader, mirror: Mirror, state: SessionState, *, epoch: int | None
) -> str | None:
    """What the mirror says of a session otherwise than its history, folded into `state`, does; None: nothing.

    Args:
        epoch: of the process that has the session in memory, so that every event since its snapshot has to be there; None:
            it may not be in memory, and those that are there have to be right.
    """
    session_id = state.session_id
    head = await mirror.head(session_id)
    if head is None or head.seq != state.seq or epoch not in (None, head.epoch):
        return f"stands at {head}, not at {state.seq} of epoch {epoch}"
    wanted, documents = dict(all_documents(state)), await mirror.documents(session_id)
    if documents != wanted:
        names = sorted(
            name for name in wanted.keys() | documents.keys() if wanted.get(name) != documents.get(name)
        )
        return f"other documents at {state.seq}: {names[:5]}"
    events = await mirror.events(session_id)
    after = events[0][0] - 1 if events else state.seq
    lines = [(line.seq, line.line) async for line in history.events(session_id, after=after)]
    if events != lines:
        return f"other events above {after}: {len(events)} of {len(lines)}"
    if epoch is None:
        return None
    path = (await history.record(session_id))["storage"]["snapshot_path"]
    snapshot = re.search(r"snapshot-(\d+)", path or "")
    if after > (int(snapshot[1]) if snapshot else 0):
        return f"events begin above {after}, and the snapshot is {path}"
    return None
