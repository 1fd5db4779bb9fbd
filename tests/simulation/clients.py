"""Those who use the runtime: they send, send again what they were not told of, read, watch, leave early, and remember."""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from sojourn.actors.errors import (
    CallerError,
    DeadlineExceeded,
    DurabilityUnavailable,
    IntensityExceeded,
    MailboxFull,
    NoSuchSession,
    OutOfOrder,
    Quarantined,
    Rejected,
    SetAside,
    StaleEpoch,
    Stopped,
    StorageFull,
    StoreError,
)
from sojourn.actors.ports import TIERS, CatalogQuery
from sojourn.actors.session.actor import Done
from sojourn.actors.session.codec import command_digest
from sojourn.actors.session.commands import (
    AppendLog,
    Body,
    Cancel,
    Command,
    Complete,
    Fail,
    Pause,
    RecordResult,
    ReportProgress,
    Resume,
    SampleResources,
    Seal,
    Start,
)
from sojourn.actors.session.model import Ack, CaseOutcome, Outcome

from . import checks, persons
from .disk import Killed
from .plans import NOTHING, UNKNOWN, Plan, Sent

if TYPE_CHECKING:
    from sojourn.runtime.runtime import Runtime

    from .world import World

TRIES_MAX = 200
CLIENT_S_MAX = 3_000.0  # a caller that was not answered by then never will be


class Client:
    """One of them. All it draws is from `rng`."""

    def __init__(
        self, world: "World", name: str, rng: random.Random, plans: Sequence[Plan], budget: int
    ) -> None:
        self.name = name
        self.world = world
        self.rng = rng
        self._plans = plans
        self._budget = budget
        self._number = 0
        self._sources: dict[str, list[Sent]] = {}
        self.sent: list[Sent] = []

    async def run(self) -> None:
        """Until its budget of commands is used up."""
        rng = self.rng
        actions: list[tuple[Callable[[Plan], Awaitable[None]], int]] = [
            (self._by_source, 30),
            (self._by_id, 14),
            (self._bare, 6),
            (self._batch, 10),
            (self._burst, 3),
            (self._read, 10),
            (self._read_ended, 7),
            (self._list, 2),
            (self._watch, 3),
            (self._history, 3),
            (self._pause, 2),
            (self._end, 3),
            (self._set_facts, 5),
            (self._heartbeat, 1),
            (self._set_timer, 3),
            (self._look_after, 6),
        ]
        names, weights = zip(*actions, strict=True)
        think_s = self.world.profile.think_s
        while self._budget > 0:
            plan = rng.choice(self._plans)
            if plan.exists:
                if not plan.sealed and self.world.disk.draws("crash"):
                    await self._crash(plan)
                await rng.choices(names, weights)[0](plan)
            else:
                await self._create(plan)
            await anyio.sleep(rng.expovariate(1 / think_s) if think_s else 0)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def _create(self, plan: Plan) -> None:
        sent = self._send(plan, plan.create)
        await self._insist(sent, lambda runtime: self._created(runtime, plan))
        if isinstance(sent.told, SetAside):
            return
        assert isinstance(sent.told, Done)
        plan.exists = True
        await self._one(plan, Start(), "session.start")

    async def _created(self, runtime: "Runtime", plan: Plan) -> Done:
        record, duplicate = await runtime.create(plan.create)
        self.world.oracle.shown_tier(plan.session_id, record)
        return Done(1, duplicate)

    async def _by_source(self, plan: Plan) -> None:
        """The next of this client's numbers in this session; where it is told that an earlier one is missing, those again."""
        source = self._sources.setdefault(plan.session_id, [])
        command = self._command(plan)
        command.source, command.n = self.name, len(source) + 1
        source.append(self._send(plan, command))
        at = len(source) - 1
        while at < len(source):
            sent = source[at]
            ack = self._ack()
            await self._insist(sent, self._ask(sent, ack), early=ack is Ack.APPLIED)
            if isinstance(sent.told, OutOfOrder):
                at = self._back_to(source, at, sent.told.expected)
            elif isinstance(sent.told, Done):
                at += 1
            else:  # refused for good, so its number is still to be given
                del source[at:]
        if self.rng.random() < 0.5:
            await checkpoint()

    def _back_to(self, source: list[Sent], at: int, expected: int) -> int:
        confirmed = max((n for n, sent in enumerate(source, 1) if sent.durable), default=0)
        self.world.oracle.must(
            confirmed < expected <= at,
            "I1",
            f"{self.name}: {expected} is expected, and {confirmed} was confirmed as durable",
        )
        for sent in source[max(0, expected - 1) : at]:
            self.world.lost_early(sent)
        return min(expected - 1, at)

    async def _by_id(self, plan: Plan) -> None:
        command = self._command(plan)
        await self.with_id(plan, command, self._ack())

    async def _one(self, plan: Plan, body: Body, kind: str) -> Sent:
        return await self.with_id(plan, Command(kind, body), Ack.DURABLE)

    async def with_id(self, plan: Plan, command: Command, ack: Ack) -> Sent:
        self._number += 1
        command.command_id = f"{self.name}-{self._number}"
        command.digest = command_digest(command)
        sent = self._send(plan, command)
        await self._insist(sent, self._ask(sent, ack), early=ack is Ack.APPLIED)
        if self.rng.random() < 0.1 and not isinstance(
            sent.told, CallerError
        ):  # it did not hear it, or forgot
            await self._insist(sent, self._ask(sent, Ack.DURABLE))
        return sent

    async def _bare(self, plan: Plan) -> None:
        sent = self._send(plan, self._line(plan))
        await self._try(sent, self._ask(sent, Ack.DURABLE))

    async def _burst(self, plan: Plan) -> None:
        """Many at once into one mailbox."""
        async with anyio.create_task_group() as tasks:
            for _ in range(self.rng.choice([3, 12, 40])):
                tasks.start_soon(self._bare, plan)

    async def _batch(self, plan: Plan) -> None:
        """Lines by source in one envelope; what is refused or left out is sent one by one later."""
        source = self._sources.setdefault(plan.session_id, [])
        lines = [self._line(plan) for _ in range(self.rng.choice([2, 8, 40]))]
        for n, line in enumerate(lines, len(source) + 1):
            line.source, line.n = self.name, n
        some = [self._send(plan, line) for line in lines]

        async def ask(runtime: "Runtime") -> Any:
            size_bytes = 100 * len(lines)
            return await runtime.ask_batch(plan.session_id, lines, size_bytes=size_bytes)

        whole = Sent(plan.session_id, lines[0])
        await self._insist(whole, ask)
        if not isinstance(whole.told, list):
            return
        for sent, answer in zip(some, whole.told, strict=True):
            sent.told = answer
            if isinstance(answer, Done):
                self._confirm(sent, answer)
                source.append(sent)
            else:
                break

    async def _pause(self, plan: Plan) -> None:
        await self._one(plan, Pause(), "session.pause")
        await self._one(plan, Resume(), "session.resume")

    async def _end(self, plan: Plan) -> None:
        """Most sessions of a seed end; one that goes on is there for the rest."""
        if self.rng.random() < 0.5 and not plan.ended:
            return
        ends: list[tuple[str, Body]] = [
            ("session.complete", Complete(outcome=self.rng.choice([Outcome.PASSED, Outcome.FAILED]))),
            ("session.fail", Fail()),
            ("session.cancel", Cancel()),
        ]
        kind, body = self.rng.choice(ends)
        sent = await self._one(plan, body, kind)
        plan.ended |= isinstance(sent.told, Done)
        if plan.ended and self.rng.random() < 0.4:
            sealing = await self._one(plan, Seal(), "session.seal")
            plan.sealed |= isinstance(sealing.told, Done)

    async def _set_facts(self, plan: Plan) -> None:
        of = self.world.oracle.of
        plan = self.rng.choice([one for one in self._plans if of(one.session_id).tier != TIERS[0]] or [plan])
        if not plan.ended:
            return
        self._number += 1
        title = f"{self.name}-{self._number}"

        async def ask(runtime: "Runtime") -> Any:
            return await runtime.set_facts(plan.session_id, title=title)

        told = await self.call(ask, "facts")
        if isinstance(told, dict):
            self.world.oracle.must(
                told["title"] == title, "I1", f"{plan.session_id}: {title} was set, {told['title']} answered"
            )
            # Nor is a title safe from an owner that is none any more.
            plan.title, plan.title_doubtful = title, len(self.world.clients) > 1 or self.world.taken > 0
        elif not isinstance(told, Rejected):
            plan.title_doubtful = True

    async def _heartbeat(self, plan: Plan) -> None:
        await self.call(lambda runtime: runtime.heartbeat(plan.session_id))

    async def _set_timer(self, plan: Plan) -> None:
        await persons.set_timer(self, plan)

    async def _look_after(self, plan: Plan) -> None:
        if plan.poisonous:
            await persons.look_after(self, plan)

    async def _crash(self, plan: Plan) -> None:
        """A command on which the code fails once, twice or always; or so many, once each, that the session is set aside."""
        if self.rng.random() < 0.3:
            for _ in range(7):
                await self._poison(plan, 1)
        else:
            await self._poison(plan, self.rng.choice([1, 2, 2, 100]))
        if self.rng.random() < 0.7:
            await self._look_after(plan)

    async def _poison(self, plan: Plan, times: int) -> None:
        command = self._line(plan)
        self._number += 1
        command.command_id = f"{self.name}-{self._number}"
        command.digest = command_digest(command)
        self.world.arm(command.command_id, plan, times)
        sent = self._send(plan, command)
        plan.poisonous.append(sent)
        await self._try(sent, self._ask(sent, Ack.DURABLE))

    def _ack(self) -> Ack:
        levels = [Ack.DURABLE, Ack.APPLIED, Ack.MIRRORED if self.world.profile.mirror else Ack.DURABLE]
        return self.rng.choices(levels, [14, 3, 3])[0]

    def _ask(self, sent: Sent, ack: Ack) -> Callable[["Runtime"], Awaitable[Any]]:
        async def ask(runtime: "Runtime") -> Any:
            try:
                done = await runtime.ask(sent.session_id, sent.command, ack=ack)
            except DurabilityUnavailable as error:
                told = (error.reached, error.session_id) == ("durable", sent.session_id)
                self.world.oracle.must(told, "I7", f"{self.name}: {error}")
                return Done(
                    error.seq or 0, duplicate=True
                )  # it may be; then of a source it is the last one's
            mirrored_seq = self.world.oracle.of(sent.session_id).mirrored_seq
            self.world.oracle.must(
                ack is not Ack.MIRRORED or done.seq <= mirrored_seq,
                "I7",
                f"{sent.session_id}: {done.seq} was answered as mirrored, {mirrored_seq} is",
            )
            return done

        return ask

    def _send(self, plan: Plan, command: Command) -> Sent:
        self._budget -= 1
        sent = Sent(plan.session_id, command)
        self.sent.append(sent)
        return sent

    # -- what was answered ---------------------------------------------------------------------------------------------

    async def _insist(
        self, sent: Sent, ask: Callable[["Runtime"], Awaitable[Any]], *, early: bool = False
    ) -> None:
        """Send it until it is known what became of it."""
        tries = 0
        while tries < TRIES_MAX:
            await self._try(sent, ask, early=early)
            if sent.told not in (UNKNOWN, NOTHING):
                return
            tries += self.world.disk.calm  # as long as stores misbehave it may take any number of them
            await anyio.sleep(self.rng.uniform(0.05, 1.0))
        self.world.oracle.must(
            False, "I24", f"{self.name}: {sent.command.type} of {sent.session_id} was never answered"
        )
        await anyio.sleep_forever()

    async def _try(
        self, sent: Sent, ask: Callable[["Runtime"], Awaitable[Any]], *, early: bool = False
    ) -> None:
        undone, sent_at = self.world.undone, anyio.current_time()
        sent.told = await self.call(ask)
        if sent.told == UNKNOWN:
            sent.doubtful = True
        answers = sent.told if isinstance(sent.told, list) else [sent.told]
        seqs = [answer.seq for answer in answers if isinstance(answer, Done) and not answer.duplicate]
        if seqs:
            # What makes no event may come between a look at who is silent and the end that follows from it.
            self.world.oracle.alive(sent.session_id, sent_at, max(seqs))
        if isinstance(sent.told, Done):
            if early:
                sent.early = undone
            else:
                self._confirm(sent, sent.told)

    def _confirm(self, sent: Sent, done: Done) -> None:
        """It was answered as durable: it must be so now."""
        oracle = self.world.oracle
        truth = oracle.of(sent.session_id)
        cause = sent.cause
        if cause is not None:
            seq = truth.causes.get(cause)
        elif isinstance(sent.command.body, AppendLog):
            seq = truth.texts.get(sent.command.body.text)
        else:
            seq = done.seq
        sent.durable = True
        oracle.known(sent.session_id, done.seq)
        later = done.duplicate and cause is not None and cause[0] == "source"  # then it is the source's last
        oracle.must(
            seq is not None and (seq <= done.seq <= truth.head if later else seq == done.seq),
            "I7",
            f"{sent.session_id}: {cause or sent.command.type} was answered with seq {done.seq}, and is durable at {seq}",
        )

    async def call(self, call: Callable[["Runtime"], Awaitable[Any]], phase: str = "") -> Any:
        """What came of a call: its answer, an error that says what was not done, UNKNOWN or NOTHING.

        Args:
            phase: the one that it makes, where callers are to leave in that one more often.
        """
        world = self.world
        runtime = await world.running()
        checks.bounded(world, runtime)
        leaves_after_s = CLIENT_S_MAX
        if world.disk.draws("cancel", phase):
            leaves_after_s = self.rng.choice([0.0, self.rng.uniform(0, 0.05), self.rng.uniform(0, 5)])
        with anyio.move_on_after(leaves_after_s):
            try:
                answer = await call(runtime)
                world.trace.note(self.name, repr(answer)[:40])
                return answer
            except Killed:  # its store was called in this task
                return UNKNOWN
            except (MailboxFull, StorageFull) as error:
                world.trace.note(self.name, error.code)
                await anyio.sleep(0.1)
                return NOTHING
            except IntensityExceeded as error:
                world.trace.note(self.name, error.code)
                for session_id in world.set_aside(error):
                    await persons.release(self, runtime, session_id)
                return UNKNOWN
            except StaleEpoch as error:
                world.trace.note(self.name, error.code)
                world.oracle.must(bool(world.taken), "I3", str(error))
                return UNKNOWN
            except (DeadlineExceeded, Stopped, StoreError) as error:
                world.trace.note(self.name, error.code)
                world.may_fail(error)
                return UNKNOWN
            except NoSuchSession as error:
                world.trace.note(self.name, error.code)
                world.oracle.must(False, "I1", str(error))
                return error
            except (Rejected, Quarantined) as error:
                world.trace.note(self.name, error.code)
                return error
            except SetAside as error:  # by what rotted: it is one who calls that cannot go on, not the store
                world.trace.note(self.name, error.code)
                world.may_fail(error)
                return error if world.disk.calm else UNKNOWN  # nothing happens to it any more
            except CallerError as error:  # of no cause that there is here
                world.oracle.must(False, "I9", f"{self.name}: {error}")
                return error
        if leaves_after_s == CLIENT_S_MAX:
            what = call.__qualname__.partition(".<locals>")[0]
            world.oracle.must(False, "I24", f"{self.name} was not answered for {CLIENT_S_MAX:g} s: {what}")
        else:
            world.left(*([phase] if phase else []))
        return UNKNOWN

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _read(self, plan: Plan) -> None:
        oracle = self.world.oracle
        how = self.rng.randrange(3)
        if how == 0:
            record = await self.call(lambda runtime: runtime.record(plan.session_id))
            if isinstance(record, dict):
                oracle.shown_tier(plan.session_id, record)
        elif how == 1:
            state = await self.call(lambda runtime: runtime.state(plan.session_id))
            if isinstance(state, tuple):
                oracle.shown_state(plan.session_id, *state)
        else:
            both = await self.call(lambda runtime: runtime.snapshot(plan.session_id))
            if isinstance(both, tuple):
                oracle.shown_tier(plan.session_id, both[0])
                oracle.shown_state(plan.session_id, *both[1:])

    async def _read_ended(self, plan: Plan) -> None:
        """Of a session that is recent, and may be archived meanwhile."""
        recent = [one for one in self._plans if self.world.oracle.of(one.session_id).tier == TIERS[1]]
        if recent:
            await self.rng.choice([self._read, self._history])(self.rng.choice(recent))

    async def _list(self, plan: Plan) -> None:
        query = CatalogQuery(limit=self.rng.choice([1, 50]))
        # What is durable without a word about it to anybody, the runtime may not have heard of either.
        known = {one.session_id: self.world.oracle.of(one.session_id).known_seq for one in self._plans}
        page = await self.call(lambda runtime: runtime.page(query))
        if isinstance(page, list):
            found = {record["session_id"]: record["seq"] for record in page}
            for session_id, seq in found.items():
                # One that cannot be read for now keeps its old row.
                rots = session_id in self.world.disk.harmed
                self.world.oracle.must(
                    seq >= known.get(session_id, 0) or rots or any(one.bombs for one in self._plans),
                    "I11",
                    f"{session_id} is listed at seq {seq}, and was known at {known.get(session_id)} before",
                )
                self.world.oracle.known(session_id, seq)

    async def _history(self, plan: Plan) -> None:
        after = self.rng.randrange(self.world.oracle.of(plan.session_id).head + 1)
        head = self.world.oracle.of(plan.session_id).head
        slow = self.rng.random() < 0.3  # it looks at each line, while the session may be moved

        async def read(runtime: "Runtime") -> int:
            at = after
            async for line in runtime.events(plan.session_id, after=after):
                self.world.oracle.must(
                    line.seq == at + 1, "I6", f"{plan.session_id}: {line.seq} was read after {at}"
                )
                at = line.seq
                self.world.oracle.shown(plan.session_id, line)
                if slow and self.rng.random() < 0.1:
                    await anyio.sleep(self.rng.choice([0.1, 1.0, 5.0]))
            return at

        at = await self.call(read)
        if isinstance(at, int):
            self.world.oracle.must(
                at >= head, "I1", f"{plan.session_id}: the history was read up to {at}, {head} was durable"
            )

    async def _watch(self, plan: Plan) -> None:
        """A live stream, for a while, and again from where it ended."""
        at = self.rng.randrange(self.world.oracle.of(plan.session_id).head + 1)

        async def watch(runtime: "Runtime") -> None:
            nonlocal at
            async with runtime.stream(plan.session_id, after=at) as lines:
                async for line in lines:
                    self.world.oracle.must(
                        line.seq == at + 1, "I6", f"{plan.session_id}: {line.seq} was streamed after {at}"
                    )
                    at = line.seq
                    self.world.oracle.shown(plan.session_id, line)
                    if self.rng.random() < 0.1:
                        await anyio.sleep(0.05)

        for _ in range(self.rng.choice([1, 3])):
            with anyio.move_on_after(self.rng.choice([0.1, 2.0])):
                await self.call(watch)

    # -- what is sent --------------------------------------------------------------------------------------------------

    def _line(self, plan: Plan) -> Command:
        text = self.new_text("x" * self.rng.choice([0, 10, 200]))
        return Command("log.append", AppendLog(stream="stdout", text=text))

    def new_text(self, rest: str) -> str:
        """A line that nobody has sent before."""
        self._number += 1
        return f"{self.name}:{self._number} {rest}"

    def _command(self, plan: Plan) -> Command:
        rng = self.rng
        kind = rng.randrange(6)
        if kind < 2:
            return self._line(plan)
        if kind < 4:
            case = RecordResult(
                case_id=f"m::{rng.randrange(12)}",
                duration_s=rng.random(),
                outcome=rng.choice(list(CaseOutcome)),
            )
            return Command("result.record", case)
        if kind == 4:
            return Command("progress.report", ReportProgress(done=rng.randrange(100), total=100))
        sample = SampleResources(
            cpu_s=rng.random(), processes=1, read_bytes=0, rss_bytes=rng.randrange(1000), written_bytes=0
        )
        return Command("resource.sample", sample)
