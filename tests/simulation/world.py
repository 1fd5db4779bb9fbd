"""One seed from its beginning to its end: processes that start, die and start again, clients beside them, then the checks."""

import math
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import structlog
import trio
import trio._core._run as scheduling
from anyio import to_thread
from attrs import define, evolve, field, frozen

from sojourn.actors.errors import (
    Damaged,
    DeadlineExceeded,
    IntensityExceeded,
    ObjectExists,
    ObjectMissing,
    SetAside,
    StoreError,
)
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

from . import checks, stale
from .clients import Client
from .disk import EPISODES_S, Disk, Killed, Mount
from .oracle import Oracle, Violation
from .plans import Fuse, Plan, Sent, fuse, plans_of
from .profile import Profile, draw, rng_of
from .stores import stores_of
from .timing import JumpingClock, SimClock
from .trace import Trace

FAULTY_S_MAX = 2_000.0  # of virtual time; then the faults stop, whatever the clients still have to do
CALM_S_MAX = (
    2_000.0  # by then everything has moved again (I24): the longest pause of a move that failed is 360 s
)
OWNER: ContextVar[Mount] = ContextVar("OWNER")  # the process that runs
STEPS_MAX = 100_000  # of tasks at one moment: more, and something turns without getting anywhere
CPU_S_MAX = 30  # the same within one step


@frozen(kw_only=True)
class Outcome:
    """What became of a seed. `violation` is the first; None: everything held."""

    seed: int
    violation: Violation | None
    digest: str
    covered: Counter[tuple[str, str]]
    commands: int
    events: int
    virtual_s: float


class Steps(trio.abc.Instrument):
    """Counts how often tasks run while no time passes."""

    def __init__(self, oracle: Oracle, virtual: JumpingClock) -> None:
        self._oracle = oracle
        self._virtual = virtual
        self._at = 0.0
        self._count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._count += 1
        if self._count > STEPS_MAX:
            now = self._virtual.current_time()
            self._oracle.must(now > self._at, "I24", f"{task.name} and others turn without getting anywhere")
            self._at, self._count = now, 0


@define(eq=False)
class World:
    """Everything that a seed consists of."""

    profile: Profile
    virtual: JumpingClock
    trace: Trace
    oracle: Oracle = field(init=False)
    disk: Disk = field(init=False)
    clock: SimClock = field(init=False)
    fuse: Fuse = field(init=False)
    settings: Settings = field(init=False)
    plans: list[Plan] = field(init=False)
    clients: list[Client] = field(init=False)
    runtime: Runtime | None = None
    last: Runtime | None = None  # the one that was up last
    mount: Mount | None = None
    refused: int = 0  # records, by runtimes before this one
    starts: int = 0
    stale: list[Mount] = field(factory=list)  # processes whose folder another one has taken over
    mounts: list[Mount] = field(factory=list)  # of processes that have not ended
    taken: int = 0  # how often that was so
    finished: bool = False
    _up: anyio.Event = field(factory=anyio.Event)
    _down: anyio.Event = field(factory=anyio.Event)
    _all_fired: int = 0
    _bombs: dict[str, Plan] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        profile = self.profile
        self.oracle = Oracle(limits=profile.settings.limits, failed=anyio.Event())
        self.disk = Disk(profile, self.oracle, self.trace)
        limits = profile.settings.limits
        self.fuse = fuse(limits.dedup_commands_max, self.crashed)
        self.settings = evolve(profile.settings, limits=evolve(limits, dedup_commands_max=self.fuse))
        self.clock = SimClock(self.virtual, reading_s=profile.rate("slow"))
        rng = rng_of(profile.seed, "workload")
        self.plans = plans_of(rng, profile.sessions)
        budget = max(1, profile.commands // profile.clients)
        self.clients = [
            Client(self, f"c{n}", rng_of(profile.seed, f"client {n}"), self.plans, budget)
            for n in range(profile.clients)
        ]

    # -- what clients ask of it ----------------------------------------------------------------------------------------

    async def running(self) -> Runtime:
        """The runtime that is up, or comes up. One that has just died hears nobody, though it does not know yet."""
        while self.runtime is None or (self.mount is not None and self.mount.death is not None):
            await (self._up.wait() if self.runtime is None else anyio.lowlevel.checkpoint())
        return self.runtime

    @property
    def undone(self) -> int:
        """How much went wrong so far that may undo what was answered before it was durable."""
        refused = self.runtime._writer.statistics().refused if self.runtime is not None else 0
        return self.disk.store_faults + self.disk.deaths + self._all_fired + self.refused + refused

    def crashed(self, command_id: str) -> None:
        """A planted crash happens now."""
        self._bombs[command_id].bombs.append(anyio.current_time())
        self._all_fired += 1
        mount = OWNER.get()
        mount.fired += 1
        mount.occurs("crash")

    def arm(self, command_id: str, plan: Plan, times: int) -> None:
        """The code fails so many times on this command of a session."""
        self.fuse.armed[command_id] = times
        self._bombs[command_id] = plan

    def disarm(self, command_id: str | None) -> None:
        """It fails no more."""
        self.fuse.armed.pop(command_id or "", None)

    def left(self, *phases: str) -> None:
        """A caller has left."""
        if self.mount is not None:
            self.mount.occurs("cancel", *phases)

    def lost_early(self, sent: Sent) -> None:
        """It was answered before it was durable, and did not become so."""
        self.oracle.must(
            sent.early is None or sent.early != self.undone,
            "I7",
            f"{sent.session_id}: {sent.cause} was answered as applied, and nothing went wrong that could undo it",
        )

    def may_fail(self, error: Exception) -> None:
        """An answer that there is a cause for, if anything went wrong at all."""
        if isinstance(error, Damaged | SetAside | ObjectMissing | ObjectExists):
            if isinstance(error, Damaged | SetAside) and any(id_ in str(error) for id_ in self.disk.harmed):
                self.trace.covered["rot", "declared"] += 1
                return
            # Objects have no fence but the folder's lock: who goes on without it may sweep what another one reads.
            self.oracle.must(bool(self.taken) and isinstance(error, ObjectMissing), "I9", f"{error}")
        # A commit that waits for room in a small journal, on a slow disk, is not answered in a short time.
        slow = self.profile.delay_s and self.settings.journal_bytes_max < 1 << 20
        faults = bool(self.profile.rates) or (slow and isinstance(error, DeadlineExceeded))
        self.oracle.must(bool(faults), "I24", f"without a fault: {error!r}")

    def set_aside(self, error: IntensityExceeded) -> list[str]:
        """Which session it is: one is set aside only for crashes of its own."""
        plans = [plan for plan in self.plans if plan.session_id in str(error)]
        crashed = [len(plan.bombs) for plan in plans]
        self.oracle.must(
            any(count > 5 for count in crashed), "I15", f"{error}, and it crashed {crashed} times"
        )
        return [plan.session_id for plan in plans]

    # -- a seed --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until everything is checked. Raises Violation."""
        assert self.oracle.failed is not None
        trio.lowlevel.add_instrument(Steps(self.oracle, self.virtual))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._fail_when_violated)
            tasks.start_soon(self._look)
            at_rest = trio.lowlevel.current_statistics().tasks_living
            tasks.start_soon(self._host)
            await self._clients_end()
            await self._all_moves(tasks)
            self.finished = True
            assert self.mount is not None
            self.mount.leave.set()
            await self._down.wait()
            # A call that stalls may outlast who asked for it.
            with anyio.move_on_after(10 + EPISODES_S[1]):
                while trio.lowlevel.current_statistics().tasks_living > at_rest:
                    await anyio.sleep(0.1)
            self.oracle.must(
                trio.lowlevel.current_statistics().tasks_living <= at_rest, "I23", "a task is left at rest"
            )
            checks.nothing_held(self)
            self._raise()
            tasks.cancel_scope.cancel()

    async def _fail_when_violated(self) -> None:
        assert self.oracle.failed is not None
        try:
            await self.oracle.failed.wait()
        finally:
            for mount in self.mounts:
                mount.die("kill")  # or what is begun would be waited for, whatever ends the seed
        self._raise()

    def _raise(self) -> None:
        if self.oracle.violations:
            raise self.oracle.violations[0]

    async def _clients_end(self) -> None:
        """The faults stop once the clients are done, or when that takes too long."""
        pending = len(self.clients)
        done = anyio.Event()

        async def run(client: Client) -> None:
            nonlocal pending
            await client.run()
            pending -= 1
            if not pending:
                done.set()

        async with anyio.create_task_group() as clients:
            for client in self.clients:
                clients.start_soon(run, client)
            with anyio.move_on_after(FAULTY_S_MAX):
                await done.wait()
            self.disk.calm = True
            self.disk.mend(math.inf)
            self.clock.set_right()
            self.trace.note("calm")
            with anyio.move_on_after(CALM_S_MAX):
                await done.wait()
            late = f"{pending} clients are not done {CALM_S_MAX:g} s after the faults"
            self.oracle.must(not pending, "I24", late)
            clients.cancel_scope.cancel()

    async def _all_moves(self, tasks: Any) -> None:
        """The runtime as it is takes commands again; started anew it ends all that was begun."""
        while self.stale:
            await anyio.sleep(0.1)
        await checks.everything_moves(self, CALM_S_MAX)
        starts = self.starts
        assert self.mount is not None
        self.mount.leave.set()
        while self.starts == starts:
            await anyio.sleep(0.01)
        runtime = await self.running()
        await checks.everything_rests(self, runtime, CALM_S_MAX)
        await checks.what_was_told_is_there(self, runtime)

    async def _host(self) -> None:
        """Processes, one after the other."""
        async with anyio.create_task_group() as machine:
            while not self.finished:
                mount = self.mount = Mount(self.disk, machine, self.virtual.jump, self.clock.set)
                mount.opened_at = self.virtual.current_time()
                self.mounts.append(mount)
                machine.start_soon(self._process, mount)
                await either(mount.ended, mount.taken)
                if not mount.ended.is_set():
                    assert self.runtime is not None
                    machine.start_soon(stale.outlived, self, mount, self.runtime)
                    self._gone()
                if not self.finished:
                    await anyio.sleep(0.2)
            self._down.set()

    async def _process(self, mount: Mount) -> None:
        OWNER.set(mount)
        runtime: Runtime | None = None
        self.trace.note("start")
        try:
            async with Runtime.over(self.settings, stores_of(mount), self.clock) as runtime:
                self.last = runtime
                self.starts += 1
                self.runtime = runtime
                self._up.set()
                mount.up = True
                await mount.leave.wait()
                self._left(mount)
                if mount.death is not None:
                    raise Killed
        except BaseException as error:  # noqa: BLE001 - a death is none of the runtime's errors; it is judged there
            self._ended_by(error, mount, runtime)
        finally:
            self._left(mount)
        if runtime is not None and mount.death is None:
            checks.at_rest(self, runtime, mount)
        if runtime is not None:
            self.refused += runtime._writer.statistics().refused
        self.trace.note("end", mount.death)
        await mount.close()
        await self.disk.settle(mount)
        mount.ended.set()
        self.mounts.remove(mount)

    def _left(self, mount: Mount) -> None:
        """What this process ran is not there any more; what another one runs is."""
        if mount is self.mount:
            self._gone()

    def _gone(self) -> None:
        self.runtime = None
        if self._up.is_set():
            self._up = anyio.Event()

    def _ended_by(self, error: BaseException, mount: Mount, runtime: Runtime | None) -> None:
        """A runtime ends because it is told to, or dies; it may fail to start where a store fails."""
        rest: BaseException | None = error
        if isinstance(error, BaseExceptionGroup):
            rest = error.split((Killed, trio.Cancelled))[1]
        if isinstance(rest, trio.Cancelled):
            raise rest
        if rest is None or (isinstance(rest, Killed) and mount.death is not None):
            return
        if stale.is_fenced(rest) and mount.woken.is_set():
            return
        if runtime is None and isinstance(rest, StoreError) and not self.disk.calm:
            return
        self.oracle.must(False, "I15", f"the runtime ended by itself: {rest!r}")

    async def _look(self) -> None:
        """What must hold at any moment, looked at now and then."""
        rng = rng_of(self.profile.seed, "look")
        while True:
            await anyio.sleep(rng.expovariate(1.0))
            self.disk.mend(anyio.current_time())
            if self.runtime is not None and self.mount is not None:
                checks.conserved(self, self.runtime, self.mount)
                checks.bounded(self, self.runtime)


async def either(*events: anyio.Event) -> None:
    """Returns once one of them is set."""
    async with anyio.create_task_group() as tasks:

        async def wait(event: anyio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        for event in events:
            tasks.start_soon(wait, event)


def _drop(logger: Any, name: str, event: Any) -> Any:
    raise structlog.DropEvent


async def _inline(function: Any, *args: Any, **options: Any) -> Any:
    """In place of a worker thread, which has no virtual time: the same, at once."""
    await anyio.lowlevel.checkpoint()
    return function(*args)


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Scheduler, randomness and threads of the libraries follow the seed; logs are not written."""
    state, allowed, run_sync = (
        random.getstate(),
        scheduling._ALLOW_DETERMINISTIC_SCHEDULING,
        to_thread.run_sync,
    )
    logging = structlog.get_config()
    random.seed(seed)
    scheduling._r.seed(seed)
    scheduling._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    to_thread.run_sync = _inline  # type: ignore[assignment]
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**logging)
        to_thread.run_sync = run_sync
        scheduling._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]
        random.setstate(state)


def run_seed(seed: int, *, show: bool = False, without_lock: bool = False) -> Outcome:
    """What becomes of a seed; the same at every run."""
    profile = draw(seed, without_lock=without_lock)
    trace = Trace(show)
    worlds: list[World] = []
    violation: Violation | None = None
    virtual_s = 0.0

    async def main(virtual: JumpingClock) -> None:
        nonlocal virtual_s
        world = World(profile, virtual, trace)
        worlds.append(world)
        try:
            await world.run()
        finally:
            virtual_s = virtual.current_time()

    def too_long(*_: Any) -> None:
        raise Violation("I24", f"the seed took over {CPU_S_MAX} s of a processor")

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, CPU_S_MAX)
    try:
        with _deterministic(seed):
            virtual = JumpingClock()
            trio.run(main, virtual, clock=virtual)
    except BaseExceptionGroup as group:
        found = group.subgroup(Violation)
        if found is None:
            raise
        violation = first_of(found)
    except Violation as error:
        violation = error
    except trio.TrioInternalError as error:  # the alarm rang within the scheduler
        if not isinstance(error.__cause__, Violation):
            raise
        violation = error.__cause__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    world = worlds[0]
    if violation is not None and world.oracle.violations:
        violation = world.oracle.violations[0]
    return Outcome(
        seed=seed,
        violation=violation,
        digest=trace.digest,
        covered=trace.covered,
        commands=sum(len(client.sent) for client in world.clients),
        events=sum(truth.head for truth in world.oracle.truths.values()),
        virtual_s=virtual_s,
    )


def first_of(group: BaseExceptionGroup[Any]) -> Violation:
    """The first violation in it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Violation)
    return error
