"""The scheduler: sans-IO, one run queue over all actors, slots of plain-function turns, slot commit.

`step(now)` runs what is ready and says when it wants to be called again. It never waits, reads no clock but the one it is
given, and starts nothing: records to commit, actors to start and jobs to run are left in `outbox`, `starts` and `jobs`
for whoever drives it (`driver.py`, or a simulation). So the same code runs on asyncio, on trio and on a heap.

A cell is in the run queue, in its slot, parked on its commit, or waiting for a message or for its start; never in two of
these. So a turn sees only what is durable or of its own slot, whose answers leave only with its commit.
"""

import math
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import (
    CallerError,
    DeadlineExceeded,
    IntensityExceeded,
    MailboxFull,
    Quarantined,
    Stopped,
    StoreError,
)
from .actor import Actor, ActorContext, ActorSpec, Cell, CellState, Job, JobDone, Restart, Slot, Timer
from .dead_letters import DeadLetters
from .envelope import Envelope
from .mailbox import Mailbox, bytes_of
from .park import Gate, Parked
from .restart import CrashHistory, next_start
from .statistics import KernelStatistics
from .wheel import Wheel

SLOT_MESSAGES_MAX = 64
SLOT_S = 0.002
STEP_S = 0.004
TURNS_A_CLOCK = 8

ABSENT, STARTING, IDLE, QUEUED = CellState.ABSENT, CellState.STARTING, CellState.IDLE, CellState.QUEUED
RUNNING, COMMITTING = CellState.RUNNING, CellState.COMMITTING
BACKOFF, QUARANTINED = CellState.BACKOFF, CellState.QUARANTINED


class Kernel:
    """The registry of actors and the scheduler over them.

    Args:
        clock: monotonic seconds.
        dynamic: the spec of actors that come to be with their first message; None: unknown ids are refused.
        random_: uniform in [0, 1), for jitter.
        inbound_bytes_max: what all mailboxes together may hold.
        starts_max: how many actors may be starting at once.
        before_step: called at the start of each step: what all turns of a step share may be read there once.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        dynamic: ActorSpec | None = None,
        random_: Callable[[], float] = random.random,
        inbound_bytes_max: int = 256 * 1024 * 1024,
        starts_max: int = 50,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.clock = clock
        self.now = clock()  # of the last step
        self.cells: dict[str, Cell] = {}
        self.outbox: list[Slot] = []
        self.starts: list[tuple[Cell, ActorContext]] = []
        self.jobs: list[Job] = []
        self.dead_letters = DeadLetters()
        self.ready = Gate()  # woken when there is something to step
        self.commits = Gate()  # woken when there is something in the outbox
        self._before_step = before_step
        self._dynamic = dynamic
        self._random = random_
        self._inbound_bytes_max = inbound_bytes_max
        self._starts_max = starts_max
        self._run_queue: deque[Cell] = deque()
        self._start_queue: deque[Cell] = deque()
        self._starting = 0
        self._wheel = Wheel()
        self._inbound_bytes = 0
        self._awaiting = 0
        self._accepted = self._replied = self._rejected = self._expired = 0
        self._quarantined = self._refused = self._slots = self._crashes = 0

    # -- sending ---------------------------------------------------------------------------------------------------

    def spawn(self, actor_id: str, spec: ActorSpec) -> None:
        """Register an actor; it starts with its first message. Raises ValueError for an id that is taken."""
        if actor_id in self.cells:
            raise ValueError(f"actor {actor_id!r} is registered already")
        self.cells[actor_id] = Cell(actor_id, spec, Mailbox(spec.mailbox))

    def tell(self, actor_id: str, message: Any, *, size_bytes: int = 0, control: bool = False) -> None:
        """Put a message into the mailbox. Raises MailboxFull, IntensityExceeded (the actor is set aside)."""
        cell = self.cells.get(actor_id) or self._virtual(actor_id)
        self._accept(cell, Envelope(message, size_bytes, None, False, control))

    def ask(
        self,
        actor_id: str,
        message: Any,
        reply: Parked,
        *,
        deadline_s: float = 30.0,
        size_bytes: int = 0,
        early: bool = False,
        control: bool = False,
    ) -> Parked:
        """Put a message into the mailbox; awaiting the returned `reply` gives its answer or raises its error.

        Not async, and `reply` comes from the caller's `parking()`: an ask is worth two task switches, and a coroutine
        between them would cost a tenth. A caller that is cancelled leaves the message where it is.

        Args:
            deadline_s: then `reply` raises DeadlineExceeded: the outcome is unknown.
            early: the answer may leave before the slot's commit.

        Raises:
            MailboxFull, IntensityExceeded: at once; nothing was taken.
        """
        cell = self.cells.get(actor_id) or self._virtual(actor_id)
        envelope = Envelope(message, size_bytes, reply, early, control)
        self._accept(cell, envelope)
        if self._wheel.add(envelope, self.clock() + deadline_s):
            self.ready.wake()  # the alarm that is set may be later, and nothing else may be ready
        return reply

    def tell_or_bury(self, actor_id: str, message: Any, *, control: bool = False) -> None:
        """A tell from inside the kernel: there is nobody to answer, so a refusal makes it a dead letter."""
        try:
            self.tell(actor_id, message, control=control)
        except (MailboxFull, IntensityExceeded, Stopped) as refusal:
            self._accepted += 1
            self.dead_letters.add(actor_id, refusal.code, message)

    def _virtual(self, actor_id: str) -> Cell:
        if self._dynamic is None:
            raise Stopped(f"there is no actor {actor_id!r}")
        cell = self.cells[actor_id] = Cell(actor_id, self._dynamic, Mailbox(self._dynamic.mailbox))
        return cell

    def _accept(self, cell: Cell, envelope: Envelope) -> None:
        state = cell.state
        if state is QUARANTINED:
            self._refused += 1
            raise IntensityExceeded(
                f"{cell.actor_id} crashed too often and is set aside until it is released"
            )
        size_bytes = envelope.size_bytes
        try:
            if size_bytes and self._inbound_bytes + size_bytes > self._inbound_bytes_max:
                raise MailboxFull(f"the node's inbound budget ({self._inbound_bytes_max:,} bytes)")
            cell.mailbox.put(envelope)
        except MailboxFull:
            self._refused += 1
            raise
        self._accepted += 1
        if size_bytes:
            self._inbound_bytes += size_bytes
        if state is QUEUED:  # the common case of a hot actor
            return
        if state is IDLE:
            cell.state = QUEUED
            run_queue = self._run_queue
            run_queue.append(cell)
            if len(run_queue) == 1:
                self.ready.wake()
        elif state is ABSENT:
            self._start_soon(cell)

    # -- stepping --------------------------------------------------------------------------------------------------

    def step(self, now: float) -> float:
        """Run what is ready, for about 4 ms at most.

        Args:
            now: `clock()`, at the call.

        Returns:
            When to call again at the latest, on the same clock: `now` where more is ready, infinity where nothing waits.
        """
        self._before_step()
        self.now = now
        wheel = self._wheel
        if now >= wheel.next_at():
            for entry in wheel.due(now):
                self._due(entry)
        run_queue = self._run_queue
        run_slot = self._run_slot
        clock = self.clock
        until = now + STEP_S
        turns = 0
        while run_queue:
            turns += run_slot(run_queue.popleft(), now)
            if turns >= TURNS_A_CLOCK:
                turns = 0
                now = clock()
                if now >= until:
                    break
        if run_queue:
            return now
        return wheel.next_at()

    def _run_slot(self, cell: Cell, now: float) -> int:
        """Returns how many turns it took. The innermost code: names are local, what can be counted once a slot is, and
        the clock is read every 8 turns, because a read costs as much as a tenth of one."""
        cell.state = RUNNING
        cell.active_at = now
        actor = cell.actor
        assert actor is not None
        receive = actor.receive
        mailbox = cell.mailbox
        limit = SLOT_MESSAGES_MAX
        if cell.solo:
            cell.solo -= 1
            limit = 1
        waiting_bytes = mailbox.payload_bytes
        turns = mailbox.take(limit)
        self._inbound_bytes -= waiting_bytes - mailbox.payload_bytes
        count = len(turns)
        expired = 0
        try:
            done = 0
            while done < count:
                for envelope in turns[done : done + TURNS_A_CLOCK] if count > TURNS_A_CLOCK else turns:
                    if envelope.error is None:
                        try:
                            envelope.answer = receive(envelope.message)
                        except (CallerError, StoreError) as error:
                            envelope.error = error
                    else:
                        expired += 1  # its asker was told so, and has left
                done += TURNS_A_CLOCK
                if done < count and self.clock() >= now + SLOT_S:
                    self._put_back(cell, turns[done:])
                    del turns[done:]
                    count = done
            record = actor.close_slot()
        except Exception as crash:  # noqa: BLE001 - whatever a turn raises is that actor's crash
            done = turns.index(envelope) + 1  # found now, so that no turn pays for a counter
            self._put_back(cell, turns[done:])
            self._crashed(cell, turns[:done], crash)
            return count
        self._slots += 1
        if expired:
            self._expired += expired
            turns = [envelope for envelope in turns if not isinstance(envelope.error, DeadlineExceeded)]
            count = len(turns)
        effects = cell.effects
        if record is None:
            # The common end of an actor without a journal, inlined: a Slot object would be a third of a tell.
            for envelope in turns:
                if envelope.reply is not None:
                    self._answer(envelope)
            self._replied += count
            if effects is not None:
                cell.effects = None
                for effect in effects:
                    effect()
            if mailbox.normal or mailbox.control:
                cell.state = QUEUED
                self._run_queue.append(cell)
            else:
                cell.state = IDLE
            return count
        cell.effects = None
        cell.state = COMMITTING
        for envelope in turns:
            if envelope.early and envelope.reply is not None:
                self._answer(envelope)
        self._awaiting += count
        outbox = self.outbox
        outbox.append(Slot(cell, turns, record, effects))
        if len(outbox) == 1:
            self.commits.wake()
        return count

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

    def _due(self, entry: Any) -> None:
        if isinstance(entry, Timer):
            timers = entry.cell.timers
            if timers is not None:
                timers.pop(entry.key, None)
            if entry.cell.state is BACKOFF and entry.key == _RESTART:
                self._start_soon(entry.cell)
            else:
                self.tell_or_bury(entry.cell.actor_id, entry.message, control=True)
        else:
            entry.expire(DeadlineExceeded())

    # -- commits ---------------------------------------------------------------------------------------------------

    def take_outbox(self) -> list[Slot]:
        """The slots whose records are to be committed, in order; each must come back through `committed` or `refused`."""
        slots, self.outbox = self.outbox, []
        return slots

    def committed(self, slots: Iterable[Slot]) -> None:
        """Their records are durable: answers and effects leave, the actors go on."""
        run_queue = self._run_queue
        was_empty = not run_queue
        for slot in slots:
            for envelope in slot.turns:
                # `_answer`, inlined for its common case.
                reply = envelope.reply
                if reply is not None:
                    envelope.reply = None
                    bucket = envelope.bucket
                    if bucket is not None:
                        bucket.discard(envelope)
                        envelope.bucket = None
                    if not reply.done():
                        if envelope.error is None:
                            reply.set_result(envelope.answer)
                        else:
                            reply.set_exception(envelope.error)
            count = len(slot.turns)
            self._awaiting -= count
            self._replied += count
            if slot.effects is not None:
                for effect in slot.effects:
                    effect()
            cell = slot.cell
            mailbox = cell.mailbox
            if mailbox.normal or mailbox.control:
                cell.state = QUEUED
                run_queue.append(cell)
            else:
                cell.state = IDLE
        if was_empty and run_queue:
            self.ready.wake()

    def refused(self, slots: Iterable[Slot], error: StoreError) -> None:
        """Their records were not written: nothing of them happened. Whoever asked hears it, tells become dead letters, and
        the actors read their state anew. Not a crash: no attempt is counted. An ask of the control lane that shared its
        slot is handled again, alone: a read is then answered, and a change refused for itself."""
        for slot in slots:
            self._awaiting -= len(slot.turns)
            again = []
            for envelope in slot.turns:
                if envelope.control and envelope.reply is not None and len(slot.turns) > 1:
                    envelope.answer = envelope.error = None
                    again.append(envelope)
                else:
                    self._bury(slot.cell, envelope, error)
            self._drop_actor(slot.cell)
            if again:
                slot.cell.solo = max(slot.cell.solo, len(again))
                self._put_back(slot.cell, again)
            if slot.cell.mailbox.depth:
                self._start_soon(slot.cell)

    def _bury(self, cell: Cell, envelope: Envelope, error: Exception) -> None:
        envelope.error = error
        if envelope.reply is not None:
            self._answer(envelope)
            self._rejected += 1
        else:
            self.dead_letters.add(cell.actor_id, getattr(error, "code", "internal"), envelope.message)

    # -- starting, crashing, stopping ------------------------------------------------------------------------------

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

    def _crashed(self, cell: Cell, turns: list[Envelope], crash: Exception) -> None:
        """Nothing of the slot happened. Its messages go back, to be handled one per slot; one that crashes alone for the
        second time is quarantined, and the actor goes on without it."""
        for envelope in turns:
            envelope.answer = None
            if not isinstance(
                envelope.error, DeadlineExceeded
            ):  # that one's asker has left; it is dropped when taken
                envelope.error = None
        if len(turns) == 1:
            culprit = turns[0]
            culprit.attempts += 1
            if culprit.attempts >= 2:
                turns = []
                self._quarantine(cell, culprit, crash)
                cell.history = (
                    None  # these crashes were the message's, and it is gone: the actor's budget is whole
                )
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
        if cell.spec.restart is Restart.PERMANENT:
            pause_s = next_start(cell.history, cell.spec.intensity, now=self.clock(), random=self._random())
        if pause_s is None:
            cell.state = QUARANTINED
            self._reject_all(
                cell,
                IntensityExceeded(f"{cell.actor_id} crashed too often and is set aside until it is released"),
            )
            return
        cell.state = BACKOFF
        self.set_timer(cell, _RESTART, pause_s, None)
        self.ready.wake()

    def release(self, actor_id: str) -> None:
        """Let a quarantined actor start again, with a new budget. One that is not quarantined: nothing happens."""
        cell = self.cells.get(actor_id)
        if cell is not None and cell.state is QUARANTINED:
            cell.history = None
            cell.state = ABSENT

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

    def stop(self) -> None:
        """No step will follow: whoever waits for an answer gets Stopped, outcome unknown. Every ask hangs in the wheel."""
        for entry in self._wheel.due(math.inf):
            if isinstance(entry, Envelope):
                entry.expire(Stopped())

    # -- timers and jobs -------------------------------------------------------------------------------------------

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

    # -- looking ---------------------------------------------------------------------------------------------------

    def statistics(self) -> KernelStatistics:
        """A frozen value; conservation holds in it."""
        return KernelStatistics(
            accepted=self._accepted,
            replied=self._replied,
            rejected=self._rejected,
            expired=self._expired,
            dead_lettered=self.dead_letters.total,
            quarantined=self._quarantined,
            queued=sum(cell.mailbox.depth for cell in self.cells.values()),
            awaiting_commit=self._awaiting,
            refused=self._refused,
            inbound_bytes=self._inbound_bytes,
            actors=len(self.cells),
            actors_quarantined=sum(cell.state is QUARANTINED for cell in self.cells.values()),
            slots=self._slots,
            crashes=self._crashes,
            starting=self._starting,
            deadlines=len(self._wheel),
        )


_RESTART = "\0restart"
