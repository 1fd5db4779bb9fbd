"""Supervision of long-running tasks: a supervisor only declares its children and a strategy.

Children start in order, each when the one before has said that it has started, and stop in reverse. Budgets are counted
per child (`restart.py`), so one that crash-loops is set aside and named, and its siblings stay. A supervisor may be a
child of another (`Supervisor.as_child`).
"""

import enum
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import structlog
from anyio import CancelScope
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from ..errors import StartTimeout
from .restart import CrashHistory, Intensity, Restart, next_start

log = structlog.get_logger("sojourn.supervisor")

Run = Callable[[Callable[[], None]], Awaitable[None]]


class Strategy(enum.Enum):
    """Who starts anew when a child crashes."""

    ONE_FOR_ONE = "one_for_one"  # the child alone
    REST_FOR_ONE = "rest_for_one"  # the child and those declared after it, which stand on it
    ONE_FOR_ALL = "one_for_all"  # all: each stands on all the others


@frozen(kw_only=True)
class ChildSpec:
    """A long-running task.

    Attributes:
        run: called with a function to call once it has started; it runs until it is cancelled. It may be called again,
            though never while an earlier call has not ended.
        restart: which of its ends are followed by a new start. One that is not permanent may return.
        start_s: one that has not said so long after its start that it has started is stopped, and has crashed.
        shutdown_s: how long its clean-up may take once it is told to stop; after that it is reported, and left behind.
        fatal: errors after which the whole tree must stop, because a new start could not help.
        essential: without it the tree is of no use: where it crashes and is not started again, the whole tree stops with
            its last error.
        nested: the supervisor that `run` belongs to, for statistics.
    """

    child_id: str
    run: Run
    restart: Restart = Restart.PERMANENT
    intensity: Intensity = field(factory=Intensity)
    start_s: float = 30.0
    shutdown_s: float = 5.0
    fatal: tuple[type[Exception], ...] = ()
    essential: bool = False
    nested: "Supervisor | None" = None


class ChildState(enum.Enum):
    """Where a child is."""

    STOPPED = "stopped"  # not started yet, or told to stop
    STARTING = "starting"  # it has not said yet that it has started
    RUNNING = "running"
    CRASHED = "crashed"  # what becomes of it is decided in a moment
    BACKOFF = "backoff"  # starts again soon
    STUCK = "stuck"  # told to stop, and did not in its time; it starts again once it has
    ENDED = "ended"  # and is not started again: it returned, or is temporary
    QUARANTINED = "quarantined"  # crashed too often; a person must release it


STOPPED, STARTING, RUNNING = ChildState.STOPPED, ChildState.STARTING, ChildState.RUNNING
CRASHED, BACKOFF, STUCK = ChildState.CRASHED, ChildState.BACKOFF, ChildState.STUCK
ENDED, QUARANTINED = ChildState.ENDED, ChildState.QUARANTINED


@frozen(kw_only=True)
class ChildStatistics:
    """One child: its ChildState as text, how often it was started anew, and its own children where it has some."""

    child_id: str
    state: str
    restarts: int
    last_error: str | None
    children: "tuple[ChildStatistics, ...]" = ()


@define(eq=False)
class _Life:
    """One run of a child, from its start to its end. Shielded: a cancelled supervisor stops its children itself, one after
    the other, in reverse."""

    scope: CancelScope = field(factory=lambda: CancelScope(shield=True))
    started: anyio.Event = field(factory=anyio.Event)
    ended: anyio.Event = field(factory=anyio.Event)


@define(eq=False)
class _Child:
    spec: ChildSpec
    state: ChildState = STOPPED
    starts: int = 0
    history: CrashHistory = field(factory=CrashHistory)
    last_error: str | None = None
    generation: int = 0  # raised with every plan to start it: an earlier plan is void
    due_at: float | None = None  # when it is planned to start
    life: _Life | None = None


class Supervisor:
    """Keeps its children running while `run` is."""

    def __init__(self, strategy: Strategy, children: Sequence[ChildSpec]) -> None:
        self._strategy = strategy
        self._children = [_Child(spec) for spec in children]
        self._crashes: list[tuple[_Child, Exception]] = []
        self._released: list[_Child] = []
        self._noticed = anyio.Event()
        self._stopping = False

    def as_child(self, child_id: str, **options: Any) -> ChildSpec:
        """This supervisor as a child of another. Each start of it starts all its children, with new budgets. Unless
        `options` say otherwise, it has as long to start and to stop as they have together."""
        specs = [child.spec for child in self._children]
        times = {
            "start_s": sum(spec.start_s for spec in specs) + 1.0,
            "shutdown_s": sum(spec.shutdown_s for spec in specs) + 1.0,
        }
        return ChildSpec(child_id=child_id, run=self.run, nested=self, **(times | options))

    def statistics(self) -> tuple[ChildStatistics, ...]:
        """In the order of declaration."""
        return tuple(
            ChildStatistics(
                child_id=child.spec.child_id,
                state=child.state.value,
                restarts=max(0, child.starts - 1),
                last_error=child.last_error,
                children=child.spec.nested.statistics() if child.spec.nested is not None else (),
            )
            for child in self._children
        )

    def release(self, child_id: str) -> bool:
        """Let a quarantined child start again, with a new budget, as after a crash: those that stand on it start with it.

        Returns:
            Whether it was quarantined; where it was not, nothing happens.

        Raises:
            ValueError: there is no such child.
        """
        for child in self._children:
            if child.spec.child_id == child_id:
                break
        else:
            known = ", ".join(child.spec.child_id for child in self._children)
            raise ValueError(f"there is no child {child_id!r}; there are {known}")
        if child.state is not QUARANTINED:
            return False
        child.state = BACKOFF
        child.history = CrashHistory()
        self._released.append(child)
        self._noticed.set()
        return True

    async def run(self, started: Callable[[], None]) -> None:
        """Start the children, call `started` (one that crashes at its start holds nobody up), keep them running until
        cancelled; then all have stopped, or are reported as stuck. May be called again once it has ended.

        Raises:
            Exception: a child's fatal error, or the last one of an essential child, once all have stopped.
        """
        self._stopping = False
        self._crashes, self._released, self._noticed = [], [], anyio.Event()
        for child in self._children:
            child.history, child.state, child.due_at = CrashHistory(), STOPPED, None
            child.generation += 1
        async with anyio.create_task_group() as tasks:
            try:
                await self._start_all(tasks, [(child, child.generation) for child in self._children])
                started()
                end = await self._supervise(tasks)
            finally:
                self._stopping = True
                with CancelScope(shield=True):
                    for child in reversed(self._children):
                        await self._stop(child)
                    tasks.cancel_scope.cancel()
        raise end  # here, outside of the task group, which would wrap it

    async def _supervise(self, tasks: TaskGroup) -> Exception:
        """Returns what ends the tree."""
        while True:
            await self._noticed.wait()
            self._noticed = anyio.Event()
            released, self._released = self._released, []
            for child in released:
                await self._start_anew(tasks, child, 0.0)
            crashes, self._crashes = self._crashes, []
            for child, error in crashes:
                if isinstance(error, child.spec.fatal):
                    return error
                pause_s = self._pause_s(child, error)
                if pause_s is None and child.spec.essential:
                    return error
                if pause_s is not None:
                    await self._start_anew(tasks, child, pause_s)
                else:
                    child.generation += 1
                    child.due_at = None
                    self._plan(tasks, [], anyio.current_time())  # whoever waited for it waits no more

    def _pause_s(self, child: _Child, error: Exception) -> float | None:
        """How long to wait before the crashed child starts again; None: it does not."""
        spec = child.spec
        if spec.restart is Restart.TEMPORARY:
            child.state = ENDED
            log.error(
                "child.ended",
                child=spec.child_id,
                remedy="it is not started again; mend the cause and start the process again",
                exc_info=error,
            )
            return None
        pause_s = next_start(child.history, spec.intensity, now=anyio.current_time(), random=random.random())
        if pause_s is None:
            child.state = QUARANTINED
            log.error(
                "child.quarantined",
                child=spec.child_id,
                error=repr(error),
                remedy="mend the cause, which the restarts before say; then release it, or start the process again",
            )
        else:
            log.warning(
                "child.restarting",
                child=spec.child_id,
                pause_s=round(pause_s, 3),
                remedy="none is needed: it is started again",
                exc_info=error,
            )
        return pause_s

    async def _start_anew(self, tasks: TaskGroup, child: _Child, pause_s: float) -> None:
        """Stop those that fall with the child, and start them all in `pause_s` seconds."""
        fallen = [child]
        if self._strategy is not Strategy.ONE_FOR_ONE:
            first = self._children.index(child) if self._strategy is Strategy.REST_FOR_ONE else 0
            others = [other for other in self._children[first:] if other is not child]
            for other in reversed(others):
                await self._stop(other)
            fallen += [
                other
                for other in others
                if other.state not in (ENDED, QUARANTINED) and other.spec.restart is not Restart.TEMPORARY
            ]
        self._plan(tasks, fallen, anyio.current_time() + pause_s)

    def _plan(self, tasks: TaskGroup, fallen: list[_Child], due_at: float) -> None:
        """Start them at `due_at`. Where children stand on each other they start in order, and together with those that wait
        already: else one could start before what it stands on."""
        if self._strategy is not Strategy.ONE_FOR_ONE:
            waiting = {
                child.spec.child_id: child.due_at for child in self._children if child.due_at is not None
            }
            due_at = max([due_at, *waiting.values()])
            fallen = [child for child in self._children if child in fallen or child.spec.child_id in waiting]
        for child in fallen:
            child.generation += 1
            child.due_at = due_at
            if child.state is not STUCK:
                child.state = BACKOFF
        if fallen:
            plan = [(child, child.generation) for child in fallen]
            tasks.start_soon(self._start_later, tasks, plan, due_at)

    async def _start_later(self, tasks: TaskGroup, plan: list[tuple[_Child, int]], due_at: float) -> None:
        await anyio.sleep_until(due_at)
        await self._start_all(tasks, plan)

    async def _start_all(self, tasks: TaskGroup, plan: list[tuple[_Child, int]]) -> None:
        """One after the other. Where they stand on each other, those behind one that crashes at its start wait until it is
        decided what becomes of it."""
        for index, (child, generation) in enumerate(plan):
            if not await self._start(tasks, child, generation) and self._strategy is not Strategy.ONE_FOR_ONE:
                for later, planned in plan[index + 1 :]:
                    if later.generation == planned:
                        later.due_at = anyio.current_time()
                return

    async def _start(self, tasks: TaskGroup, child: _Child, generation: int) -> bool:
        """Returns once it has said that it has started, or has crashed: whether it has started. Where another plan has taken
        over, nothing is done."""
        if child.generation == generation and child.life is not None:
            child.state = STUCK  # it must not run twice at once
            await child.life.ended.wait()
        if self._stopping or child.generation != generation:
            return False
        child.state, child.due_at = STARTING, None
        child.starts += 1
        life = child.life = _Life()
        tasks.start_soon(self._live, child, life)
        with anyio.move_on_after(child.spec.start_s):
            await life.started.wait()
        if not life.started.is_set():
            await self._stop(child)
            self._fell(child, StartTimeout(child.spec.child_id, child.spec.start_s))
        return child.state in (RUNNING, ENDED)

    async def _live(self, child: _Child, life: _Life) -> None:
        def say_started() -> None:
            if child.life is life and child.state is STARTING:
                child.state = RUNNING
            life.started.set()

        error: Exception | None = None
        try:
            with life.scope:
                await child.spec.run(say_started)
                if child.spec.restart is Restart.PERMANENT:
                    error = RuntimeError("the child returned; it should run until it is cancelled")
        except Exception as raised:  # noqa: BLE001 - whatever a child raises is its crash
            error = raised
        finally:
            child.life = None
            life.started.set()
            life.ended.set()
        if life.scope.cancel_called:
            child.state = STOPPED
            if error is not None and not life.scope.cancelled_caught:
                child.last_error = repr(error)
                log.warning(
                    "child.failed_while_stopping",
                    child=child.spec.child_id,
                    remedy="none is needed: it was being stopped",
                    exc_info=error,
                )
        elif error is not None:
            self._fell(child, error)
        else:
            child.state = ENDED

    def _fell(self, child: _Child, error: Exception) -> None:
        child.last_error = repr(error)
        if child.state is not STUCK:
            child.state = CRASHED
        self._crashes.append((child, error))
        self._noticed.set()

    async def _stop(self, child: _Child) -> None:
        life = child.life
        if life is None:
            return
        life.scope.cancel()
        with anyio.move_on_after(child.spec.shutdown_s):
            await life.ended.wait()
        if not life.ended.is_set():
            child.state = STUCK
            log.error(
                "child.stuck",
                child=child.spec.child_id,
                shutdown_s=child.spec.shutdown_s,
                remedy="it is left behind, and starts again only once it has ended; if the process does not end, kill it",
            )
