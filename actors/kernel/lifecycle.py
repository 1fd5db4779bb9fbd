"""What happens to an actor between its slots: it is started, crashes, starts again or is set aside, and leaves memory.

The half of the kernel that is off the hot path; `scheduler.py` is the other one.
"""

import random
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import CallerError, DeadlineExceeded, IntensityExceeded, Quarantined, StoreError
from .actor import Actor, ActorContext, ActorSpec, Cell, CellState, Job, JobDone, Timer
from .dead_letters import DeadLetters
from .envelope import Envelope
from .mailbox import bytes_of
from .park import Gate
from .restart import CrashHistory, Restart, next_start
from .wheel import Wheel

ABSENT, STARTING, IDLE, QUEUED = CellState.ABSENT, CellState.STARTING, CellState.IDLE, CellState.QUEUED
BACKOFF, QUARANTINED = CellState.BACKOFF, CellState.QUARANTINED
RESTART = "\0restart"  # the key of the timer that ends a pause


def set_aside(cell: Cell) -> IntensityExceeded:
    """What whoever writes to a quarantined actor is told."""
    return IntensityExceeded(f"{cell.actor_id} crashed too often and is set aside until it is released")


class Lifecycle(ABC):
    """The registry of actors, their starts and restarts, timers and jobs. `Kernel` says what its arguments are."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        dynamic: ActorSpec | None,
        random_: Callable[[], float] = random.random,
        starts_max: int,
    ) -> None:
        self.clock = clock
        self.cells: dict[str, Cell] = {}
        self.starts: list[tuple[Cell, ActorContext]] = []
        self.jobs: list[Job] = []
        self.dead_letters = DeadLetters()
        self.ready = Gate()  # woken when there is something to step
        self._dynamic = dynamic
        self._random = random_
        self._starts_max = starts_max
        self._run_queue: deque[Cell] = deque()
        self._start_queue: deque[Cell] = deque()
        self._starting = 0
        self._wheel = Wheel()
        self._inbound_bytes = 0
        self._rejected = self._quarantined = self._crashes = 0

    @abstractmethod
    def tell_or_bury(self, actor_id: str, message: Any, *, control: bool = False) -> None:
        """A tell from inside the kernel: there is nobody to answer, so a refusal makes it a dead letter."""

    # -- starting -----------------------------------------------------------------------------------------------------

    def _start_soon(self, cell: Cell) -> None:
        cell.state = STARTING
        self._start_queue.append(cell)
        self._start_more()

    def _start_more(self) -> None:
        while self._start_queue and self._starting < self._starts_max:
            cell = self._start_queue.popleft()
            self._starting += 1
            self.starts.append((cell, ActorContext(self, cell)))
            self.ready.wake()

    def started(self, cell: Cell, actor: Actor) -> None:
        """The actor of a taken start is loaded."""
        self._starting -= 1
        self._start_more()
        cell.actor = actor
        cell.active_at = self.clock()
        if cell.mailbox.depth:
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
            self._reject_all(cell, error)
            cell.state = ABSENT
        else:
            self._restart(cell)

    def start_cancelled(self, cell: Cell) -> None:
        """The driver was stopped while the actor was being loaded; the next driver begins anew."""
        self._starting -= 1
        self._start_soon(cell)

    # -- crashing -----------------------------------------------------------------------------------------------------

    def _crashed(self, cell: Cell, turns: list[Envelope], crash: Exception) -> None:
        """Nothing of the slot happened. Its messages go back, to be handled one per slot; one that crashes alone for the
        second time is quarantined, and the actor goes on without it."""
        for envelope in turns:
            envelope.answer = None
            if not isinstance(envelope.error, DeadlineExceeded):
                envelope.error = None  # else its asker has left, and it is dropped when taken
        if len(turns) == 1:
            culprit = turns[0]
            culprit.attempts += 1
            if culprit.attempts >= 2:
                turns = []
                self._quarantine(cell, culprit, crash)
                # These crashes were the message's, and it is gone: the actor's budget is whole.
                cell.history = None
        cell.solo = max(cell.solo, len(turns))
        self._put_back(cell, turns)
        self._restart(cell)

    def _quarantine(self, cell: Cell, envelope: Envelope, crash: Exception) -> None:
        self._quarantined += 1
        error = Quarantined(
            f"the message crashed {cell.actor_id} twice ({crash!r}) and was set aside; the session goes on"
        )
        error.__cause__ = crash
        envelope.error = error
        self._answer(envelope)
        self.dead_letters.keep(cell.actor_id, "quarantined", envelope.message)

    def _restart(self, cell: Cell) -> None:
        self._crashes += 1
        self._drop_actor(cell)
        if cell.history is None:
            cell.history = CrashHistory()
        pause_s = None
        if cell.spec.restart is not Restart.TEMPORARY:
            pause_s = next_start(cell.history, cell.spec.intensity, now=self.clock(), random=self._random())
        if pause_s is None:
            cell.state = QUARANTINED
            self._reject_all(cell, set_aside(cell))
            return
        cell.state = BACKOFF
        self.set_timer(cell, RESTART, pause_s, None)
        self.ready.wake()

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
        if cell is None or cell.state is not IDLE or cell.timers or cell.spec is not self._dynamic:
            return False
        del self.cells[actor_id]
        return True

    def _drop_actor(self, cell: Cell) -> None:
        cell.actor = None
        cell.effects = None
        cell.state = ABSENT

    def _reject_all(self, cell: Cell, error: Exception) -> None:
        envelopes = cell.mailbox.take(sys.maxsize)
        self._inbound_bytes -= bytes_of(envelopes)
        for envelope in envelopes:
            self._bury(cell, envelope, error)

    def _put_back(self, cell: Cell, envelopes: list[Envelope]) -> None:
        cell.mailbox.put_back(envelopes)
        self._inbound_bytes += bytes_of(envelopes)

    def _answer(self, envelope: Envelope) -> None:
        reply = envelope.reply
        envelope.reply = None
        bucket = envelope.bucket
        if bucket is not None:
            bucket.discard(envelope)
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

    def launch(self, job: Job) -> None:
        """Leave a job for the driver."""
        self.jobs.append(job)
        self.ready.wake()

    def job_ended(self, job: Job, value: Any, error: Exception | None) -> None:
        """The driver's word on a launched job; the actor hears it on its control lane."""
        self.tell_or_bury(job.cell.actor_id, JobDone(key=job.key, value=value, error=error), control=True)
