"""What happens to an actor between its slots: it is started, crashes, starts again or is set aside, and leaves memory.

The half of the kernel that is off the hot path; `scheduler.py` is the other one.
"""

import random
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from ..errors import (
    CallerError,
    DeadlineExceeded,
    IntensityExceeded,
    JobCancelled,
    JobUnknown,
    LimitReached,
    Quarantined,
    Stopped,
    StoreError,
)
from .actor import Actor, ActorContext, ActorSpec, Cell, CellState, Job, JobDone, Kept, Timer
from .dead_letters import DeadLetters
from .envelope import Envelope
from .mailbox import bytes_of
from .park import Gate
from .restart import CrashHistory, Restart, next_start
from .watch import Down, DownReason, Told, Watches
from .wheel import Wheel

ABSENT, STARTING, IDLE, QUEUED = CellState.ABSENT, CellState.STARTING, CellState.IDLE, CellState.QUEUED
BACKOFF, QUARANTINED, COMMITTING = CellState.BACKOFF, CellState.QUARANTINED, CellState.COMMITTING
RESTART = "\0restart"  # the key of the timer that ends a pause
AGAIN = "\0again"  # keys of timers that hand something over again begin with it
AGAIN_S = 1.0
JOBS_MAX = 64  # of one actor, at once
PROMISED = (JobDone, Down)  # what an actor hears of exactly once


def set_aside(cell: Cell) -> IntensityExceeded:
    """What whoever writes to a quarantined actor is told."""
    remedy = f"; `sojourn quarantine ls {cell.actor_id}` says why" if cell.spec.keeper is not None else ""
    return IntensityExceeded(
        f"{cell.actor_id} crashed too often and is set aside until it is released{remedy}"
    )


class Lifecycle(ABC):
    """The registry of actors, their starts and restarts, timers and jobs. `Kernel` says what its arguments are."""

    # What every message reads, and a dictionary for the rest: one of more than 30 names is slow to find something in.
    __slots__ = (
        "__dict__",
        "_accepted",
        "_inbound_bytes",
        "_run_queue",
        "_stopped",
        "_wheel",
        "cells",
        "clock",
        "ready",
    )

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        dynamic: ActorSpec | None,
        random_: Callable[[], float] = random.random,
        starts_max: int,
        place: Callable[[str], tuple[int, int] | None] | None = None,
    ) -> None:
        self.clock = clock
        self.cells: dict[str, Cell] = {}
        self.starts: list[tuple[Cell, ActorContext]] = []
        self.jobs: list[Job] = []
        self.dead_letters = DeadLetters()
        self.watches = Watches()
        self.ready = Gate()  # woken when there is something to step
        self.outbox: list[Cell] = []
        self.commits = Gate()  # woken when there is something in the outbox
        self._dynamic = dynamic
        self._random = random_
        self._starts_max = starts_max
        self._run_queue: deque[Cell] = deque()
        self._place = place
        # Those that somebody waits to read, and those that are to change.
        self._start_queue_viewed: OrderedDict[Cell, None] = OrderedDict()
        self._start_queue: OrderedDict[Cell, None] = OrderedDict()
        self._starting = self._jobs = self._handed_again = 0
        self._wheel = Wheel()
        self._inbound_bytes = 0
        self._stopped = False
        self._accepted = self._rejected = self._quarantined = self._crashes = self._replied = 0

    @abstractmethod
    def tell_or_bury(self, actor_id: str, message: Any, *, control: bool = False) -> None:
        """A tell from inside the kernel: there is nobody to answer, so a refusal makes it a dead letter."""

    # -- starting -----------------------------------------------------------------------------------------------------

    def _virtual(self, actor_id: str) -> Cell:
        if self._dynamic is None:
            raise Stopped(f"there is no actor {actor_id!r}")
        cell = self.cells[actor_id] = Cell(self._dynamic.mailbox, actor_id, self._dynamic)
        return cell

    def _start_soon(self, cell: Cell) -> None:
        cell.state = STARTING
        viewed = any(envelope.reply is not None for envelope in cell.control or ())
        (self._start_queue_viewed if viewed else self._start_queue)[cell] = None
        self._start_more()

    def _start_sooner(self, cell: Cell) -> None:
        """Somebody waits to read it now: a person who looks goes before reporters, who wait by themselves."""
        if cell in self._start_queue:
            del self._start_queue[cell]
            self._start_queue_viewed[cell] = None

    def _start_more(self) -> None:
        while self._starting < self._starts_max and (queue := self._start_queue_viewed or self._start_queue):
            cell, _ = queue.popitem(last=False)
            self._starting += 1
            self.starts.append((cell, ActorContext(self, cell)))
            self.ready.wake()

    def started(self, cell: Cell, actor: Actor) -> None:
        """The actor of a taken start is loaded."""
        self._starting -= 1
        self._start_more()
        cell.actor = actor
        cell.active_at = self.clock()
        if cell.lost_jobs is not None:
            self._declare_lost(cell)
        if cell.depth:
            cell.state = QUEUED
            self._run_queue.append(cell)
            self.ready.wake()
        else:
            cell.state = IDLE

    def start_failed(self, cell: Cell, error: Exception) -> None:
        """The actor of a taken start could not be loaded. A StoreError is answered to all who wait, and the next message
        tries again; anything else counts as a crash."""
        self._starting -= 1
        self._start_more()
        if isinstance(error, StoreError | CallerError):
            self._drop_actor(cell)
            self._reject_all(cell, error)
        else:
            self._crashes += 1
            self._restart(cell, error)

    def start_cancelled(self, cell: Cell) -> None:
        """The driver was stopped while the actor was being loaded; the next driver begins anew."""
        self._starting -= 1
        self._drop_actor(cell)
        self._start_soon(cell)

    # -- crashing -----------------------------------------------------------------------------------------------------

    def _crashed(self, cell: Cell, turns: list[Envelope], crash: Exception) -> None:
        """Nothing of the slot happened. Its messages go back, to be handled one per slot; one that crashes alone for the
        second time is quarantined, and the actor goes on without it once that is durable."""
        self._crashes += 1
        for envelope in turns:
            envelope.answer = None
            if not isinstance(envelope.error, DeadlineExceeded):
                envelope.error = None  # else its asker has left, and it is dropped when taken
        if len(turns) == 1:
            culprit, keeper = turns[0], cell.spec.keeper
            culprit.attempts += 1
            before = keeper.attempts(cell.actor_id, culprit.message, crash) if keeper is not None else 0
            if culprit.attempts + before >= 2:
                # These crashes were the message's, and it is gone: the actor's budget is whole.
                cell.history = None
                self._quarantine(cell, culprit, crash)
                return
        cell.solo = max(cell.solo, len(turns))
        self._put_back(cell, turns)
        self._restart(cell, crash)

    def _quarantine(self, cell: Cell, envelope: Envelope, crash: Exception) -> None:
        keeper = cell.spec.keeper
        if keeper is not None:
            kept = keeper.poisonous(cell.actor_id, envelope.message, crash)
        else:
            kept = Kept(
                error=Quarantined(
                    f"the message crashed {cell.actor_id} twice ({crash!r}) and was set aside; the session goes on"
                )
            )
        if kept.again:
            cell.solo = max(cell.solo, 1)
            self._put_back(cell, [envelope])
        else:
            kept.error.__cause__ = crash
            envelope.error = kept.error

        def then() -> None:
            if kept.again:
                envelope.attempts = 0
            else:
                self._quarantined += 1
                self.dead_letters.keep(cell.actor_id, "quarantined", envelope.message)
            self._restart(cell, crash)

        if kept.record is None:
            self._answer(envelope)
            then()
            return

        def committed() -> None:
            if not kept.again:
                self._replied -= 1  # counted with the slots: it is quarantined
            then()

        self._commit(cell, kept.record, () if kept.again else (envelope,), committed)

    def _commit(
        self, cell: Cell, record: Any, turns: Sequence[Envelope], committed: Callable[[], None]
    ) -> None:
        """What is set aside leaves as a slot does: with its record. Until then nothing of the actor runs."""
        self._drop_actor(cell)
        cell.state = COMMITTING
        cell.turns = turns
        cell.record = record
        cell.effects = [committed]
        self.outbox.append(cell)
        self.commits.wake()

    def _pause(self, cell: Cell, pause_s: float) -> None:
        cell.state = BACKOFF
        self.set_timer(cell, RESTART, pause_s, None)

    def _restart(self, cell: Cell, crash: Exception) -> None:
        self._drop_actor(cell)
        if cell.history is None:
            cell.history = CrashHistory()
        pause_s = None
        if cell.spec.restart is not Restart.TEMPORARY:
            pause_s = next_start(cell.history, cell.spec.intensity, now=self.clock(), random=self._random())
        if pause_s is not None:
            self._pause(cell, pause_s)
            cell.restarts += 1
            self._down(cell.actor_id, DownReason.CRASHED)
            return
        keeper = cell.spec.keeper
        kept = keeper.crash_loop(cell.actor_id, crash) if keeper is not None else Kept(error=set_aside(cell))

        def leave() -> None:
            cell.state = QUARANTINED
            self._reject_all(cell, kept.error)
            self._down(cell.actor_id, DownReason.QUARANTINED)

        if kept.record is None:
            leave()
        else:
            self._commit(cell, kept.record, (), leave)

    def hold(self, actor_id: str) -> None:
        """Quarantine an actor that is not in memory: an earlier process has found that it crashes in a loop."""
        cell = self.cells.get(actor_id) or self._virtual(actor_id)
        if cell.state is ABSENT:
            cell.state = QUARANTINED

    def release(self, actor_id: str) -> None:
        """Let a quarantined actor start again, with a new budget. One that is not quarantined: nothing happens."""
        cell = self.cells.get(actor_id)
        if cell is not None and cell.state is QUARANTINED:
            cell.history = None
            cell.state = ABSENT

    # -- leaving ------------------------------------------------------------------------------------------------------

    def passivate(self, actor_id: str) -> bool:
        """Forget an idle actor; its next message starts it from its stores. False where it is not idle."""
        cell = self.cells.get(actor_id)
        if cell is None or cell.state is not IDLE or cell.spec is not self._dynamic:
            return False
        if cell.timers or cell.jobs:
            return False
        del self.cells[actor_id]
        return True

    def is_virtual(self, cell: Cell) -> bool:
        """Whether it came to be with its first message, and may leave memory."""
        return cell.spec is self._dynamic

    def removed(self, actor_id: str) -> None:
        """The actor has left for good, in memory or not: who watches it is told, and it watches nobody any more."""
        self._down(actor_id, DownReason.REMOVED)
        self.watches.remove_watcher(actor_id)

    def _drop_actor(self, cell: Cell) -> None:
        if cell.jobs:
            self._lose_jobs(cell)
        cell.actor = None
        cell.effects = None
        cell.state = ABSENT

    def _reject_all(self, cell: Cell, error: Exception) -> None:
        envelopes = cell.take(sys.maxsize)
        cell.solo = 0
        self._inbound_bytes -= bytes_of(envelopes)
        for envelope in envelopes:
            self._bury(cell, envelope, error)

    def _put_back(self, cell: Cell, envelopes: list[Envelope]) -> None:
        cell.put_back(envelopes)
        self._inbound_bytes += bytes_of(envelopes)

    def _answer(self, envelope: Envelope) -> None:
        reply = envelope.reply
        envelope.reply = None
        bucket = envelope.bucket
        if bucket is not None:
            del bucket[envelope]
            envelope.bucket = None
        if reply is not None and not reply.done():
            if envelope.error is None:
                reply.set_result(envelope.answer)
            else:
                reply.set_exception(envelope.error)

    def _bury(self, cell: Cell, envelope: Envelope, error: Exception) -> None:
        envelope.error = error
        if envelope.reply is not None:
            self._answer(envelope)
            self._rejected += 1
        elif isinstance(error, StoreError) and isinstance(envelope.message, PROMISED):
            self._rejected += 1
            self._handed_again += 1
            self.set_timer(cell, f"{AGAIN}{self._handed_again}", AGAIN_S, envelope.message)
        else:
            self.dead_letters.add(cell.actor_id, getattr(error, "code", "internal"), envelope.message)

    # -- timers and jobs ----------------------------------------------------------------------------------------------

    def set_timer(self, cell: Cell, key: str, delay_s: float, message: Any) -> None:
        """See ActorContext.set_timer."""
        self.cancel_timer(cell, key)
        timer = Timer(cell, key, message)
        if cell.timers is None:
            cell.timers = {}
        cell.timers[key] = timer
        self._wheel.add(timer, self.clock() + delay_s)
        self.ready.wake()

    def cancel_timer(self, cell: Cell, key: str) -> None:
        """See ActorContext.cancel_timer."""
        timer = cell.timers.pop(key, None) if cell.timers else None
        if timer is not None:
            self._wheel.remove(timer)

    def begin_job(self, cell: Cell, key: str, run: Callable[[], Awaitable[Any]], deadline_s: float) -> Job:
        """See ActorContext.start_job; `launch` follows with the commit, and where none does the job comes to nothing."""
        if cell.jobs is None:
            cell.jobs = {}
        if key in cell.jobs:
            raise ValueError(f"job {key!r} of {cell.actor_id} is under way; wait for its end, or cancel it")
        if len(cell.jobs) >= JOBS_MAX:
            raise LimitReached("jobs_at_once", JOBS_MAX)
        job = cell.jobs[key] = Job(cell, key, run, deadline_s)
        return job

    def launch(self, job: Job) -> None:
        """Leave a job for the driver."""
        job.launched = True
        self._jobs += 1
        self.jobs.append(job)
        self.ready.wake()

    def cancel_job(self, cell: Cell, key: str) -> None:
        """See ActorContext.cancel_job."""
        job = cell.jobs.get(key) if cell.jobs else None
        if job is not None:
            self._end_job(job)
            self.deliver(cell.actor_id, JobDone(key=key, error=JobCancelled()))

    def job_ended(self, job: Job, value: Any, error: Exception | None) -> None:
        """The driver's word on a launched job; the actor hears it, unless it was told of an end before."""
        if not job.ended:
            self._end_job(job)
            self.deliver(job.cell.actor_id, JobDone(key=job.key, value=value, error=error))

    def _end_job(self, job: Job) -> None:
        job.ended = True
        self._jobs -= 1
        assert job.cell.jobs is not None
        del job.cell.jobs[job.key]
        if job.cancel is not None:
            job.cancel()

    def _lose_jobs(self, cell: Cell) -> None:
        """Its actor falls. What was begun by a turn that is not committed never was; the rest is stopped, and the next actor
        is told."""
        assert cell.jobs is not None
        for job in tuple(cell.jobs.values()):
            if job.launched:
                self._end_job(job)
                cell.lost_jobs = (cell.lost_jobs or {}) | {job.key: None}
        cell.jobs.clear()

    def _declare_lost(self, cell: Cell) -> None:
        lost, cell.lost_jobs = cell.lost_jobs or {}, None
        waiting = [envelope.message for envelope in cell.control or ()]
        waiting += [timer.message for timer in (cell.timers or {}).values()]
        told = {message.key for message in waiting if isinstance(message, JobDone)}
        unknown = [
            Envelope(JobDone(key=key, error=JobUnknown()), control=True) for key in lost if key not in told
        ]
        self._accepted += len(unknown)
        cell.put_back(unknown)

    # -- death watch --------------------------------------------------------------------------------------------------

    def monitor(self, actor_id: str, watcher: Hashable, told: Told) -> None:
        """Have `told` called once with a Down, or None where the kernel stops first; see ActorContext.monitor. `watcher` is who watches, for `watches.remove`."""
        cell = self.cells.get(actor_id)
        spawned = cell is not None and cell.spec is not self._dynamic
        if self._stopped:
            told(None)
        elif not spawned and self._place_of(actor_id) is None:
            told(Down(actor_id=actor_id, reason=DownReason.UNKNOWN))
        elif cell is not None and cell.state is QUARANTINED:
            told(self._down_of(actor_id, DownReason.QUARANTINED))
        elif not self.watches.add(actor_id, watcher, told):
            told(self._down_of(actor_id, DownReason.LIMIT))

    def monitor_for(self, cell: Cell, actor_id: str) -> None:
        """See ActorContext.monitor."""
        watcher_id = cell.actor_id

        def told(down: Down | None) -> None:
            if down is not None:
                self.deliver(watcher_id, down)

        self.monitor(actor_id, watcher_id, told)

    def _down(self, actor_id: str, reason: DownReason) -> None:
        for told in self.watches.end(actor_id):
            told(self._down_of(actor_id, reason))

    def _down_of(self, actor_id: str, reason: DownReason) -> Down:
        epoch, seq = self._place_of(actor_id) or (0, 0)
        return Down(actor_id=actor_id, reason=reason, epoch=epoch, seq=seq)

    def _place_of(self, actor_id: str) -> tuple[int, int] | None:
        if self._place is not None:
            return self._place(actor_id)
        return (0, 0) if self._dynamic is not None else None

    # -- promises -----------------------------------------------------------------------------------------------------

    def deliver(self, actor_id: str, message: Any) -> None:
        """Hand an actor what was promised to it: it is heard exactly once, however full the mailbox is, and again later where
        a store fails meanwhile. A dead letter where the actor is set aside, or there is none."""
        self._accepted += 1
        try:
            cell = self.cells.get(actor_id) or self._virtual(actor_id)
            if self._stopped:
                raise Stopped
            if cell.state is QUARANTINED:
                raise set_aside(cell)
        except (IntensityExceeded, Stopped) as refusal:
            self.dead_letters.add(actor_id, refusal.code, message)
            return
        cell.put_promised(Envelope(message, control=True))
        if cell.state is IDLE:
            cell.state = QUEUED
            self._run_queue.append(cell)
            self.ready.wake()
        elif cell.state is ABSENT:
            self._start_soon(cell)
