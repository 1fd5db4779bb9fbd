"""Supervision of long-running tasks: a supervisor only declares its children and a strategy.

Children start in order, each when the one before says that it has started, and stop in reverse. Budgets are counted per
child (`restart.py`), so one that crash-loops is set aside and named, and its siblings stay.
"""

import enum
import random
from collections.abc import Awaitable, Callable, Sequence

import anyio
import structlog
from anyio import CancelScope
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from .restart import CrashHistory, Intensity, next_start

log = structlog.get_logger("sojourn.supervisor")

Run = Callable[[Callable[[], None]], Awaitable[None]]


class Strategy(enum.Enum):
    """Who starts anew when a child crashes."""

    ONE_FOR_ONE = "one_for_one"  # the child alone
    REST_FOR_ONE = "rest_for_one"  # the child and those declared after it, which stand on it


@frozen(kw_only=True)
class ChildSpec:
    """A long-running task.

    Attributes:
        run: called with a function to call once it has started; it runs until it is cancelled. It may be called again.
        shutdown_s: how long its clean-up may take once it is told to stop; after that it is reported, and left behind.
        fatal: errors after which the whole tree must stop, because a new start could not help.
        essential: without it the tree is of no use, so beyond its intensity the whole tree stops with its last error.
    """

    child_id: str
    run: Run
    intensity: Intensity = field(factory=Intensity)
    shutdown_s: float = 5.0
    fatal: tuple[type[Exception], ...] = ()
    essential: bool = False


@frozen(kw_only=True)
class ChildStatistics:
    """One child: `running starting backoff stopped quarantined`, and how often it was started anew."""

    child_id: str
    state: str
    restarts: int
    last_error: str | None


@define(eq=False)
class _Child:
    spec: ChildSpec
    state: str = "stopped"
    restarts: int = 0
    history: CrashHistory = field(factory=CrashHistory)
    last_error: str | None = None
    generation: int = 0  # raised whenever it falls: a start that was planned before is void
    scope: CancelScope | None = None
    started: anyio.Event = field(factory=anyio.Event)
    ended: anyio.Event = field(factory=anyio.Event)


class Supervisor:
    """Keeps its children running while its context is entered; leaving it stops them in reverse order.

    Raises:
        Exception: a child's fatal error, once all children are stopped; out of the context.
    """

    def __init__(self, strategy: Strategy, children: Sequence[ChildSpec]) -> None:
        self._strategy = strategy
        self._children = [_Child(spec) for spec in children]
        self._crashes: list[tuple[_Child, Exception]] = []
        self._crashed = anyio.Event()
        self._stopping = False

    def statistics(self) -> tuple[ChildStatistics, ...]:
        """In the order of declaration."""
        return tuple(
            ChildStatistics(
                child_id=child.spec.child_id,
                state=child.state,
                restarts=child.restarts,
                last_error=child.last_error,
            )
            for child in self._children
        )

    async def run(self, started: Callable[[], None]) -> None:
        """Start the children, call `started`, keep them running until cancelled."""
        async with anyio.create_task_group() as tasks:
            try:
                for child in self._children:
                    await self._start(tasks, child)
                started()
                while True:
                    await self._crashed.wait()
                    self._crashed = anyio.Event()
                    crashes, self._crashes = self._crashes, []
                    for child, error in crashes:
                        await self._handle(tasks, child, error)
            finally:
                self._stopping = True
                with CancelScope(shield=True):
                    for child in reversed(self._children):
                        await self._stop(child)
                    tasks.cancel_scope.cancel()

    async def _handle(self, tasks: TaskGroup, child: _Child, error: Exception) -> None:
        if self._stopping:
            return
        if isinstance(error, child.spec.fatal):
            raise error
        pause_s = next_start(
            child.history, child.spec.intensity, now=anyio.current_time(), random=random.random()
        )
        if pause_s is None:
            child.state = "quarantined"
            log.error(
                "child.quarantined",
                child=child.spec.child_id,
                error=repr(error),
                remedy="mend the cause, which the restarts before say, and start the process again",
            )
            if child.spec.essential:
                raise error
            return
        log.warning(
            "child.restarting",
            child=child.spec.child_id,
            pause_s=round(pause_s, 3),
            remedy="none is needed: it is started again",
            exc_info=error,
        )
        child.state = "backoff"
        fallen = [child]
        if self._strategy is Strategy.REST_FOR_ONE:
            fallen = self._children[self._children.index(child) :]
            for later in reversed(fallen[1:]):
                await self._stop(later)
        for one in fallen:
            one.generation += 1
        tasks.start_soon(self._start_later, tasks, [(one, one.generation) for one in fallen], pause_s)

    async def _start_later(self, tasks: TaskGroup, fallen: list[tuple[_Child, int]], pause_s: float) -> None:
        await anyio.sleep(pause_s)
        for child, generation in fallen:
            if not self._stopping and child.state != "quarantined" and child.generation == generation:
                child.restarts += 1
                await self._start(tasks, child)

    async def _start(self, tasks: TaskGroup, child: _Child) -> None:
        child.state = "starting"
        child.started, child.ended = anyio.Event(), anyio.Event()
        tasks.start_soon(self._run_child, child)
        await child.started.wait()

    async def _run_child(self, child: _Child) -> None:
        def say_started() -> None:
            child.state = "running"
            child.started.set()

        if self._stopping:
            child.started.set()
            child.ended.set()
            return
        try:
            # Shielded: a cancelled supervisor stops its children itself, one after the other, in reverse.
            with CancelScope(shield=True) as child.scope:
                await child.spec.run(say_started)
                raise RuntimeError("the child returned; it should run until it is cancelled")
            child.state = "stopped"
        except Exception as error:
            child.last_error = repr(error)
            if child.scope is not None and child.scope.cancel_called:
                child.state = "stopped"
                log.warning(
                    "child.failed_while_stopping",
                    child=child.spec.child_id,
                    remedy="none is needed: it was being stopped",
                    exc_info=error,
                )
            else:
                child.state = "crashed"
                self._crashes.append((child, error))
                self._crashed.set()
        finally:
            child.scope = None
            child.started.set()
            child.ended.set()

    async def _stop(self, child: _Child) -> None:
        if child.scope is None:
            return
        child.scope.cancel()
        with anyio.move_on_after(child.spec.shutdown_s) as patience:
            await child.ended.wait()
        if patience.cancelled_caught:
            log.error(
                "child.stuck",
                child=child.spec.child_id,
                shutdown_s=child.spec.shutdown_s,
                remedy="it is left behind; if the process does not end, kill it",
            )
