"""Wakes sessions whose timers are due, also those that are not in memory.

The timers are part of each session's state, and which of them are due is decided there: a wake-up too many changes nothing,
and none is needed for what was told before. What is held here are the sessions that are due within the next minute, from
three sources: the hint of a session whose timers have just changed, the projector's reading of every session that has
changed, and the catalog, which is looked at every few seconds. So a session that waits for next week costs nothing here, and
after a restart the catalog tells of all that fell due meanwhile. Those are asked once their reporters have had the time to
come back: what these have to say, that the work was done in time or that the timer is to wait longer, came first.
"""

import heapq
import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

import anyio
import structlog
from anyio.abc import TaskGroup
from attrs import frozen

from ..actors.errors import CallerError, SojournError, StoreError
from ..actors.ports import Catalog, Clock
from ..actors.session.record import LOST_AFTER_S

log = structlog.get_logger("sojourn.timers")

LOOK_EVERY_S = 15.0  # a step of the wall clock is noticed as soon, too
HORIZON_S = 60.0  # several looks, so that what is noted for later is in the catalog before it is looked for
RETRY_S = 10.0
AT_ONCE = 16  # fewer than sessions are read at once, so that others come through when many are due
HELD_MAX = 10_000
PAGE_ROWS = 500
SETTLE_S = LOST_AFTER_S  # as long as a session has to show a sign of life


@frozen(kw_only=True)
class TimerStatistics:
    """`held` sessions are due within the next minute, `running` of them are being woken; `woken` were, since the start, and
    `failures` tries failed. `late_s`: how late the last one that was held was asked."""

    held: int
    running: int
    woken: int
    failures: int
    late_s: float


class Timekeeper:
    """Asks sessions that are due, at most `at_once` together.

    Args:
        level: on return the catalog shows every session as it was before the call. May raise StoreError.
        tick: has a session fire what is due, durably, and answers when its next timer is (None: no more).
        hindered: whether the journal refuses changes: then nobody is woken.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        clock: Clock,
        level: Callable[[], Awaitable[None]],
        tick: Callable[[str], Awaitable[datetime | None]],
        hindered: Callable[[], bool],
        at_once: int = AT_ONCE,
        held_max: int = HELD_MAX,
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._level = level
        self._tick = tick
        self._hindered = hindered
        self._at_once = at_once
        self._held_max = held_max
        self._opened = anyio.Event()
        self._opened_at = self._settled_at = clock.now()
        self._changed = anyio.Event()
        self._held: dict[str, datetime] = {}
        self._heap: list[tuple[datetime, str]] = []  # of `_held`, and what it held before
        self._running: set[str] = set()
        self._again: set[str] = set()  # of those: due again while they are being woken
        self._resting: dict[str, float] = {}  # those that failed, until when
        self._look_at = -math.inf
        self._looking = self._left_out = self._failing = False
        self._woken = self._failures = 0
        self._late_s = 0.0

    def open(self) -> None:
        """Sessions may be read from now on."""
        self._opened_at = self._clock.now()
        self._settled_at = self._opened_at + timedelta(seconds=SETTLE_S)
        self._opened.set()

    def note(self, due: Mapping[str, datetime]) -> None:
        """These sessions are due then. Of a session that is held already the earlier moment counts: to be asked too early costs
        little, and its answer says when to come again."""
        horizon = self._clock.now() + timedelta(seconds=HORIZON_S)
        for session_id, due_at in due.items():
            if due_at <= horizon and not self._hold(session_id, due_at):
                self._left_out = True

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor; runs until cancelled."""
        started()
        await self._opened.wait()
        self._running.clear()
        self._looking = False
        self._look_at = -math.inf  # what was being woken when it crashed is found again
        async with anyio.create_task_group() as tasks:
            while True:
                now = self._clock.monotonic()
                if not self._looking and (now >= self._look_at or (self._left_out and not self._held)):
                    self._looking, self._look_at = True, now + LOOK_EVERY_S
                    tasks.start_soon(self._look)
                pause_s = self._wake_due(tasks)
                if not self._looking:  # else its end is what is waited for, however late it comes
                    pause_s = min(pause_s, self._look_at - self._clock.monotonic())
                with anyio.move_on_after(max(0.0, pause_s)):
                    await self._changed.wait()
                self._changed = anyio.Event()

    def statistics(self) -> TimerStatistics:
        """A frozen value."""
        return TimerStatistics(
            held=len(self._held),
            running=len(self._running),
            woken=self._woken,
            failures=self._failures,
            late_s=self._late_s,
        )

    async def _look(self) -> None:
        """Hold what the catalog knows to be due soon, as much as there is room for."""
        now = self._clock.monotonic()
        self._resting = {session_id: until for session_id, until in self._resting.items() if until > now}
        self._left_out = False
        horizon, after = self._clock.now() + timedelta(seconds=HORIZON_S), None
        try:
            await self._level()
            while True:
                page = await self._catalog.due(before=horizon, after=after, limit=PAGE_ROWS)
                for due_at, session_id in page:
                    # One that is being woken says itself when it is due next, and its row is that from before.
                    if session_id not in self._running and not self._hold(session_id, due_at):
                        self._left_out = True
                        return
                if len(page) < PAGE_ROWS:
                    return
                after = page[-1]
        except (StoreError, CallerError) as error:  # a session may not answer in time, as for the projector
            self._say(None, error)
        finally:
            self._looking = False
            self._changed.set()

    def _hold(self, session_id: str, due_at: datetime) -> bool:
        """False where there is no room for it."""
        if due_at < self._opened_at:
            due_at = self._settled_at
        held = self._held.get(session_id)
        if session_id in self._resting or (held is not None and held <= due_at):
            return True
        if held is None and len(self._held) >= self._held_max:
            return False
        self._held[session_id] = due_at
        if len(self._heap) > 2 * len(self._held) + PAGE_ROWS:
            self._heap = [(at, id_) for id_, at in self._held.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (due_at, session_id))
        self._changed.set()
        return True

    def _wake_due(self, tasks: TaskGroup) -> float:
        """Begin to ask those that are due. Returns after how many seconds to come again at the latest."""
        if self._held and self._hindered():
            return 1.0
        now = self._clock.now()
        while self._heap and len(self._running) < self._at_once:
            due_at, session_id = self._heap[0]
            if self._held.get(session_id) != due_at:
                heapq.heappop(self._heap)
                continue
            if due_at > now:
                return (due_at - now).total_seconds()
            heapq.heappop(self._heap)
            del self._held[session_id]
            if session_id in self._running:
                self._again.add(session_id)
                continue
            self._late_s = (now - due_at).total_seconds()
            self._running.add(session_id)
            tasks.start_soon(self._wake, session_id)
        return math.inf

    async def _wake(self, session_id: str) -> None:
        try:
            next_at = await self._tick(session_id)
        except SojournError as error:
            self._failures += 1
            if len(self._resting) < self._held_max:
                self._resting[session_id] = self._clock.monotonic() + RETRY_S
            self._say(session_id, error)
        else:
            self._woken += 1
            self._failing = False
            if session_id in self._again:
                next_at = self._clock.now()
            if next_at is not None:
                self.note({session_id: next_at})
        finally:
            self._running.discard(session_id)
            self._again.discard(session_id)
            self._changed.set()

    def _say(self, session_id: str | None, error: SojournError) -> None:
        if not self._failing:
            log.error(
                "timers.late",
                session=session_id,
                error=str(error) or type(error).__name__,
                remedy="it is tried again every few seconds; nothing is lost, and what was missed is told with it",
            )
        self._failing = True
