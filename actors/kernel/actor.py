"""What the kernel asks of an actor, and what it gives one."""

import enum
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field, frozen

from .envelope import Envelope
from .mailbox import Mailbox, MailboxLimits
from .restart import CrashHistory, Intensity, Restart

if TYPE_CHECKING:
    from .lifecycle import Lifecycle


class Actor(Protocol):
    """The one owner of its state. Its methods never await and never block.

    An error of the families CallerError and StoreError is the turn's answer, and the actor lives. Any other crashes the
    actor: its whole slot is discarded, the actor dropped and started anew, and the slot's messages are handled one by one.
    """

    def receive(self, message: Any) -> Any:
        """One turn: handle the message and return the answer to it."""
        ...

    def close_slot(self) -> Any:
        """What the turns since the last call changed, as one record to commit; None where nothing needs to be kept."""
        ...


@frozen(kw_only=True)
class Kept:
    """What becomes of a message that is set aside, or of an actor that crashes in a loop.

    Attributes:
        error: what its asker is told; for an actor: whoever writes to it.
        record: is committed before anyone is told; None: nothing is kept.
        again: only a part of the message was set aside, and the rest of it is handled again.
    """

    error: Exception
    record: Any = None
    again: bool = False


class Keeper(Protocol):
    """Keeps what an actor cannot handle. Its methods are called in the midst of a crash: they don't wait and don't raise."""

    def attempts(self, actor_id: str, message: Any, crash: Exception) -> int:
        """How often the message has taken an earlier process along; that counts as crashing alone."""
        ...

    def poisonous(self, actor_id: str, message: Any, crash: Exception) -> Kept:
        """The message has crashed its actor alone, for the second time."""
        ...

    def crash_loop(self, actor_id: str, crash: Exception) -> Kept:
        """The actor has crashed more often than its intensity allows, and is not started again."""
        ...


@frozen(kw_only=True)
class ActorSpec:
    """How an actor comes to be and is kept running. `start` may read from stores; it is given the actor's context and
    returns the actor with its state loaded. Its StoreErrors are answered to whoever waits, other errors are crashes.
    `restart`: an actor does not end by itself, so a transient one is as a permanent one; a temporary one is set aside by
    its first crash. Without a `keeper` what is set aside is kept nowhere: a poison message is a dead letter."""

    start: "Callable[[ActorContext], Awaitable[Actor]]"
    restart: Restart = Restart.PERMANENT
    intensity: Intensity = field(factory=Intensity)
    mailbox: MailboxLimits = field(factory=MailboxLimits)
    keeper: Keeper | None = None


class CellState(enum.Enum):
    """Where a registered actor is. Messages are taken in all of them but QUARANTINED."""

    ABSENT = "absent"  # nothing in memory; the next message starts it
    STARTING = "starting"  # its state is being read
    IDLE = "idle"  # loaded, nothing waits
    QUEUED = "queued"  # in the run queue, or in its slot
    COMMITTING = "committing"  # parked until its slot's record is committed or refused
    BACKOFF = "backoff"  # crashed; starts again soon
    QUARANTINED = "quarantined"  # crashed too often; a person must release it


@define(eq=False)
class Cell(Mailbox):
    """An actor's place in the registry: it outlives the actor, and is its mailbox (one object, because where many actors
    have a message each, what a turn costs is fetching them from memory).

    While COMMITTING it is the slot that waits, too: `turns` are its messages, `record` what is to be committed, `effects`
    what leaves with it. An actor has one slot at a time, so a slot needs no object of its own. What is set aside is
    committed in the same way: then there is no actor, and the one message of `turns`, or none, is that.
    """

    actor_id: str
    spec: ActorSpec
    state: CellState = CellState.ABSENT
    actor: Actor | None = None
    effects: "list[Effect] | None" = None
    history: CrashHistory | None = None
    solo: int = 0  # so many of the next messages run one per slot: their slot crashed
    active_at: float = 0.0
    timers: "dict[str, Timer] | None" = None
    jobs: "dict[str, Job] | None" = None  # begun and not ended
    restarts: int = 0  # after crashes, since it was registered
    lost_jobs: "dict[str, None] | None" = None  # whose end the actor does not hear: said at its next start
    turns: Sequence[Envelope] = ()
    record: Any = None
    early: bool = False  # one of the messages that wait may be answered before its slot is committed


@define(eq=False)
class Timer:
    """A message to an actor at a moment. The wheel holds it."""

    cell: Cell
    key: str
    message: Any
    bucket: "dict[Any, None] | None" = None


@define(eq=False)
class Job:
    """Slow work started by a turn. Its result comes back to the actor as a `JobDone` on the control lane.

    Attributes:
        launched: its turn is committed; before that it may still come to nothing.
        ended: its actor has been told of its end, or will be; whatever it comes to now is dropped.
        cancel: stops it; None while it does not run.
    """

    cell: Cell
    key: str
    run: Callable[[], Awaitable[Any]]
    deadline_s: float
    launched: bool = False
    ended: bool = False
    cancel: Callable[[], None] | None = None


@frozen(kw_only=True)
class JobDone:
    """How a job ended: `value`, or `error`: its own, a TimeoutError past its deadline, JobCancelled, or JobUnknown."""

    key: str
    value: Any = None
    error: Exception | None = None


Effect = Callable[[], None]


class ActorContext:
    """What an actor may start from within a turn. All of it leaves with the slot: not before its record is committed, and
    not at all where that is refused or the slot crashes."""

    def __init__(self, kernel: "Lifecycle", cell: Cell) -> None:
        self._kernel = kernel
        self._cell = cell

    @property
    def actor_id(self) -> str:
        return self._cell.actor_id

    def start_job(self, key: str, run: Callable[[], Awaitable[Any]], *, deadline_s: float = 60.0) -> None:
        """Run slow work; its end is a later turn: exactly one `JobDone` with this key.

        It is never run twice. Where the actor or the driver falls meanwhile the job is cancelled, and its end is JobUnknown:
        the first turn of the actor that is started anew. With the process all is lost but the actor's state: one whose state
        tells of a job says so by `jobs_begun` when it starts.

        Args:
            deadline_s: after so long it is cancelled; its error is a TimeoutError.

        Raises:
            LimitReached: the actor has `JOBS_MAX` under way.
            ValueError: one of this key is under way.
        """
        job = self._kernel.begin_job(self._cell, key, run, deadline_s)
        self._after_commit(lambda: self._kernel.launch(job))

    def cancel_job(self, key: str) -> None:
        """Stop the job; its end is JobCancelled. None of this key is under way: nothing happens."""
        self._after_commit(lambda: self._kernel.cancel_job(self._cell, key))

    def jobs_begun(self, keys: Iterable[str]) -> None:
        """While the actor starts: its state says that it had begun these jobs and has not heard of their end. Each whose
        end is not in the mailbox ends now, with JobUnknown, before any other turn."""
        lost = self._cell.lost_jobs
        self._cell.lost_jobs = (lost or {}) | dict.fromkeys(keys)

    def monitor(self, actor_id: str) -> None:
        """Be told once, by a `Down`, when that actor crashes, is set aside or is removed; at once where there is none, or
        it is set aside already. It lasts over this actor's own crashes and passivation, and not over the process's end. Again
        before that: nothing happens."""
        self._after_commit(lambda: self._kernel.monitor_for(self._cell, actor_id))

    def unmonitor(self, actor_id: str) -> None:
        """No `Down` of that actor comes any more, unless it waits in the mailbox already."""
        self._after_commit(lambda: self._kernel.watches.remove(actor_id, self._cell.actor_id))

    def set_timer(self, key: str, delay_s: float, message: Any) -> None:
        """Tell the actor `message` after `delay_s`, once, in steps of 50 ms; a timer of the same key is replaced."""
        self._after_commit(lambda: self._kernel.set_timer(self._cell, key, delay_s, message))

    def cancel_timer(self, key: str) -> None:
        """No timer of this key: nothing happens."""
        self._after_commit(lambda: self._kernel.cancel_timer(self._cell, key))

    def tell(self, actor_id: str, message: Any) -> None:
        """To another actor. A full mailbox there makes it a dead letter."""
        self._after_commit(lambda: self._kernel.tell_or_bury(actor_id, message))

    def _after_commit(self, effect: Effect) -> None:
        effects = self._cell.effects
        if effects is None:
            effects = self._cell.effects = []
        effects.append(effect)
