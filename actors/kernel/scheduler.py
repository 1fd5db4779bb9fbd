"""The scheduler: sans-IO, one run queue over all actors, slots of plain-function turns, slot commit.

`step(now)` runs what is ready and says when it wants to be called again. It never waits, reads no clock but the one it is
given, and starts nothing: records to commit, actors to start and jobs to run are left in `outbox`, `starts` and `jobs`
for whoever drives it (`driver.py`, or a simulation). So the same code runs on asyncio, on trio and on a heap.

A cell is in the run queue, in its slot, parked on its commit, or waiting for a message or for its start; never in two of
these. So a turn sees only what is durable or of its own slot, whose answers leave only with its commit.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import CallerError, DeadlineExceeded, IntensityExceeded, MailboxFull, Stopped, StoreError
from .actor import ActorSpec, Cell, CellState, Timer
from .envelope import Envelope
from .lifecycle import PROMISED, RESTART, Lifecycle, set_aside
from .park import Parked
from .statistics import KernelStatistics

SLOT_MESSAGES_MAX = 64
SLOT_S = 0.002
STEP_S = 0.004
TURNS_A_CLOCK = 8

ABSENT, STARTING, IDLE = CellState.ABSENT, CellState.STARTING, CellState.IDLE
QUEUED, COMMITTING = CellState.QUEUED, CellState.COMMITTING
BACKOFF, QUARANTINED = CellState.BACKOFF, CellState.QUARANTINED


class Kernel(Lifecycle):
    """The registry of actors and the scheduler over them.

    Args:
        clock: monotonic seconds.
        dynamic: the spec of actors that come to be with their first message; None: unknown ids are refused.
        random_: uniform in [0, 1), for jitter.
        inbound_bytes_max: what all mailboxes together may hold.
        starts_max: how many actors may be starting at once; those that somebody waits to read go first.
        place: (epoch, last durable seq) of a dynamic actor, None where there is none of that id; for `Down` messages.
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
        place: Callable[[str], tuple[int, int] | None] | None = None,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(clock=clock, dynamic=dynamic, random_=random_, starts_max=starts_max, place=place)
        self.now = clock()  # of the last step
        self._before_step = before_step
        self._inbound_bytes_max = inbound_bytes_max
        self._expired = self._refused = self._slots = 0

    # -- sending ------------------------------------------------------------------------------------------------------

    def spawn(self, actor_id: str, spec: ActorSpec) -> None:
        """Register an actor; it starts with its first message. Raises ValueError for an id that is taken."""
        if actor_id in self.cells:
            raise ValueError(f"actor {actor_id!r} is registered already")
        self.cells[actor_id] = Cell(spec.mailbox, actor_id, spec)

    def tell(self, actor_id: str, message: Any, size_bytes: int = 0, control: bool = False) -> None:
        """Put a message into the mailbox. Raises MailboxFull, IntensityExceeded (the actor is set aside)."""
        try:
            cell = self.cells[actor_id]
        except KeyError:
            cell = self._virtual(actor_id)
        envelope = Envelope(message, size_bytes, None, False, control)
        # `_accept`, inlined for its common cases: an idle actor's mailbox is empty, so no bound of it is near, and a hot
        # actor's normal lane has room.
        if size_bytes or control or self._stopped:
            self._accept(cell, envelope)
        elif cell.state is IDLE:
            cell.lone = envelope
            cell.state = QUEUED
            self._accepted += 1
            run_queue = self._run_queue
            if not run_queue:
                self.ready.wake()
            run_queue.append(cell)
        elif (
            cell.state is QUEUED
            and (lane := cell.normal) is not None
            and len(lane) < cell.limits.messages_max
        ):
            lane.append(envelope)
            self._accepted += 1
        else:
            self._accept(cell, envelope)

    def ask(
        self,
        actor_id: str,
        message: Any,
        reply: Parked,
        deadline_s: float = 30.0,
        size_bytes: int = 0,
        early: bool = False,
        control: bool = False,
    ) -> Parked:
        """Put a message into the mailbox; awaiting the returned `reply` gives its answer or raises its error.

        Not async, and `reply` comes from the caller's `parking()`: an ask is worth two task switches, and a coroutine
        between them would cost a tenth. A caller that is cancelled leaves the message where it is. Arguments may
        be given by place, because by keyword they cost half as much as a message object does.

        Args:
            deadline_s: then `reply` raises DeadlineExceeded: the outcome is unknown.
            early: the answer may leave before the slot's commit.

        Raises:
            MailboxFull, IntensityExceeded: at once; nothing was taken.
            Stopped: at once, after `stop`; nothing was taken.
        """
        try:
            cell = self.cells[actor_id]
        except KeyError:
            cell = self._virtual(actor_id)
        envelope = Envelope(message, size_bytes, reply, early, control)
        inbound_bytes = self._inbound_bytes + size_bytes
        if cell.state is IDLE and inbound_bytes <= self._inbound_bytes_max and not control:
            # As in `tell`.
            cell.lone = envelope
            cell.payload_bytes = size_bytes
            cell.state = QUEUED
            self._inbound_bytes = inbound_bytes
            self._accepted += 1
            run_queue = self._run_queue
            if not run_queue:
                self.ready.wake()
            run_queue.append(cell)
        else:
            self._accept(cell, envelope)
        if early:
            cell.early = True
        deadline = self.clock() + deadline_s
        wheel = self._wheel
        if deadline < wheel.until and deadline >= wheel.since:
            envelope.bucket = bucket = wheel.bucket
            bucket[envelope] = None
        elif wheel.add(envelope, deadline):
            self.ready.wake()  # the alarm that is set may be later, and nothing else may be ready
        return reply

    def tell_or_bury(self, actor_id: str, message: Any, *, control: bool = False) -> None:
        """See Lifecycle.tell_or_bury."""
        try:
            self.tell(actor_id, message, control=control)
        except (MailboxFull, IntensityExceeded, Stopped) as refusal:
            self._accepted += 1
            self.dead_letters.add(actor_id, refusal.code, message)

    def _accept(self, cell: Cell, envelope: Envelope) -> None:
        if self._stopped:
            raise Stopped
        state = cell.state
        size_bytes = envelope.size_bytes
        try:
            if state is QUARANTINED:
                raise set_aside(cell)
            if size_bytes and self._inbound_bytes + size_bytes > self._inbound_bytes_max:
                raise MailboxFull(f"the node's inbound budget ({self._inbound_bytes_max:,} bytes)")
            cell.put(envelope)
        except (MailboxFull, IntensityExceeded):
            self._refused += 1
            raise
        self._accepted += 1
        if size_bytes:
            self._inbound_bytes += size_bytes
        if state is QUEUED:  # the common case of a hot actor
            return
        if state is IDLE:
            cell.state = QUEUED
            if not self._run_queue:
                self.ready.wake()
            self._run_queue.append(cell)
        elif state is ABSENT:
            self._start_soon(cell)
        elif state is STARTING and envelope.control and envelope.reply is not None:
            self._start_sooner(cell)

    # -- stepping -----------------------------------------------------------------------------------------------------

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
        if self._run_queue:
            self._run_slots(now)
            if self._run_queue:
                return now
        return wheel.next_at()

    def _run_slots(self, now: float) -> None:
        """Slots, until none is ready or the step is over. The innermost code, where every call and attribute shows: names
        are local, what can be counted once a step is, and the clock is read every 8 turns. Where many actors are at work
        nearly every slot is one message: its turn stands here, those of all other slots in `_run_slot`."""
        run_queue, clock, outbox = self._run_queue, self.clock, self.outbox
        until = now + STEP_S
        replied = parked = taken_bytes = 0
        try:
            while run_queue and now < until:
                for _ in range(min(len(run_queue), TURNS_A_CLOCK)):
                    cell = run_queue.popleft()
                    cell.active_at = now
                    envelope = cell.lone
                    if envelope is None or envelope.error is not None:
                        self._run_slot(cell, now)
                        break
                    actor = cell.actor
                    assert actor is not None
                    cell.lone = None
                    size_bytes = envelope.size_bytes
                    if size_bytes:
                        cell.payload_bytes = 0
                        taken_bytes += size_bytes
                    try:
                        try:
                            envelope.answer = actor.receive(envelope.message)
                        except (CallerError, StoreError) as error:
                            envelope.error = error
                        record = actor.close_slot()
                    except Exception as crash:  # noqa: BLE001 - whatever a turn raises is that actor's crash
                        self._crashed(cell, [envelope], crash)
                        continue
                    if record is None:
                        replied += 1
                        if envelope.reply is not None:
                            self._answer(envelope)
                        if (
                            cell.effects is None
                            and cell.lone is None
                            and cell.normal is None
                            and cell.control is None
                        ):
                            cell.state = IDLE
                        else:
                            self._let_go(cell)
                    else:
                        parked += 1
                        self._park(cell, (envelope,), record)
                now = clock()
        finally:
            self._slots += replied + parked
            self._replied += replied
            self._inbound_bytes -= taken_bytes
            if outbox:
                self.commits.wake()

    def _run_slot(self, cell: Cell, now: float) -> None:
        """One slot of any kind: several messages, the control lane, one by one after a crash, an asker who has left."""
        actor, clock = cell.actor, self.clock
        assert actor is not None
        waiting_bytes = cell.payload_bytes
        turns = self._take(cell)
        self._inbound_bytes -= waiting_bytes - cell.payload_bytes
        count, expired, done = len(turns), 0, 0
        try:
            while True:
                for envelope in turns if count <= TURNS_A_CLOCK else turns[done : done + TURNS_A_CLOCK]:
                    if envelope.error is None:
                        try:
                            envelope.answer = actor.receive(envelope.message)
                        except (CallerError, StoreError) as error:
                            envelope.error = error
                    else:
                        expired += 1  # its asker was told so, and has left
                done += TURNS_A_CLOCK
                if done >= count:
                    break
                if clock() >= now + SLOT_S:
                    self._put_back(cell, turns[done:])
                    del turns[done:]
                    break
            record = actor.close_slot()
        except Exception as crash:  # noqa: BLE001 - whatever a turn raises is that actor's crash
            done = turns.index(envelope) + 1  # found now, so that no turn pays for a counter
            self._put_back(cell, turns[done:])
            self._crashed(cell, turns[:done], crash)
            return
        self._slots += 1
        if expired:
            self._expired += expired
            turns = [envelope for envelope in turns if not isinstance(envelope.error, DeadlineExceeded)]
        if record is not None:
            self._park(cell, turns, record)
            return
        for envelope in turns:
            if envelope.reply is not None:
                self._answer(envelope)
        self._replied += len(turns)
        self._let_go(cell)

    def _park(self, cell: Cell, turns: Sequence[Envelope], record: Any) -> None:
        cell.state = COMMITTING
        cell.turns = turns
        cell.record = record
        if cell.early:
            self._answer_early(cell)
        self.outbox.append(cell)

    @staticmethod
    def _take(cell: Cell) -> list[Envelope]:
        if cell.solo:
            cell.solo -= 1
            return cell.take(1)
        return cell.take(SLOT_MESSAGES_MAX)

    def _let_go(self, cell: Cell) -> None:
        """A slot of it is over: effects leave, and it waits for a message or for its next slot."""
        effects = cell.effects
        if effects is not None:
            cell.effects = None
            for effect in effects:
                effect()
            if cell.actor is None:  # it was set aside, or a message of it: that was seen to
                return
        if cell.depth:
            cell.state = QUEUED
            self._run_queue.append(cell)
        else:
            cell.state = IDLE

    def _answer_early(self, cell: Cell) -> None:
        cell.early = cell.depth > 0
        for envelope in cell.turns:
            if envelope.early and envelope.reply is not None:
                self._answer(envelope)

    def _due(self, entry: Any) -> None:
        if isinstance(entry, Timer):
            timers = entry.cell.timers
            if timers is not None:
                timers.pop(entry.key, None)
            if entry.cell.state is BACKOFF and entry.key == RESTART:
                self._start_soon(entry.cell)
            elif isinstance(entry.message, PROMISED):
                self.deliver(entry.cell.actor_id, entry.message)
            else:
                self.tell_or_bury(entry.cell.actor_id, entry.message, control=True)
        else:
            entry.expire(DeadlineExceeded())

    # -- commits ------------------------------------------------------------------------------------------------------

    def take_outbox(self) -> list[Cell]:
        """The cells whose records are to be committed, in order; each must come back through `committed` or `refused`."""
        cells, self.outbox = self.outbox, []
        return cells

    def committed(self, cells: Iterable[Cell]) -> None:
        """Their records are durable: answers and effects leave, the actors go on."""
        replied = 0
        for cell in cells:
            turns = cell.turns
            cell.turns, cell.record = (), None
            for envelope in turns:
                # `_answer`, inlined for its common case.
                reply = envelope.reply
                if reply is not None:
                    envelope.reply = None
                    bucket = envelope.bucket
                    if bucket is not None:
                        del bucket[envelope]
                        envelope.bucket = None
                    if not reply.done():
                        if envelope.error is None:
                            reply.set_result(envelope.answer)
                        else:
                            reply.set_exception(envelope.error)
            replied += len(turns)
            if cell.effects is None and cell.lone is None and cell.normal is None and cell.control is None:
                cell.state = IDLE
            else:
                self._let_go(cell)
        self._replied += replied
        if self._run_queue:
            self.ready.wake()

    def refused(self, cells: Iterable[Cell], error: StoreError) -> None:
        """Their records were not written: nothing of them happened. Whoever asked hears it, tells become dead letters, and
        the actors read their state anew. Not a crash: no attempt is counted. An ask of the control lane that shared its
        slot is handled again, alone: a read is then answered, and a change refused for itself."""
        for cell in cells:
            turns = cell.turns
            cell.turns, cell.record = (), None
            self._drop_actor(cell)
            if not turns:
                # What it would set aside could not be kept. It tries again, and not at once.
                self._pause(cell, cell.spec.intensity.backoff_max_s)
                continue
            again = []
            for envelope in turns:
                if envelope.control and envelope.reply is not None and len(turns) > 1:
                    envelope.answer = envelope.error = None
                    again.append(envelope)
                else:
                    self._bury(cell, envelope, error)
            if again:
                cell.solo = max(cell.solo, len(again))
                self._put_back(cell, again)
            if cell.depth:
                self._start_soon(cell)

    def stop(self) -> None:
        """No step will follow: whoever waits for an answer gets Stopped, outcome unknown, and whoever asks from now on.
        Every ask hangs in the wheel."""
        self._stopped = True
        self._inbound_bytes_max = -1  # so that no ask takes the short way, which does not look
        for entry in self._wheel.due(math.inf):
            if isinstance(entry, Envelope):
                entry.expire(Stopped())
        for told in self.watches.end_all():
            told(None)

    # -- looking ------------------------------------------------------------------------------------------------------

    def statistics(self) -> KernelStatistics:
        """A frozen value; conservation holds in it."""
        return KernelStatistics(
            accepted=self._accepted,
            replied=self._replied,
            rejected=self._rejected,
            expired=self._expired,
            dead_lettered=self.dead_letters.total,
            quarantined=self._quarantined,
            queued=sum(cell.depth for cell in self.cells.values()),
            awaiting_commit=sum(len(cell.turns) for cell in self.cells.values()),
            refused=self._refused,
            inbound_bytes=self._inbound_bytes,
            actors=len(self.cells),
            actors_quarantined=sum(cell.state is QUARANTINED for cell in self.cells.values()),
            slots=self._slots,
            crashes=self._crashes,
            starting=self._starting,
            start_queue=len(self._start_queue) + len(self._start_queue_viewed),
            jobs=self._jobs,
            monitors=len(self.watches),
            deadlines=len(self._wheel),
        )
