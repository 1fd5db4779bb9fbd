"""The tiering supervisor: seals ended sessions, has them handed over, and archived once they are old.

It decides when and how many at once; the moves themselves are its jobs. Nothing it knows is kept across a restart.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from attrs import define, frozen

from ..errors import NoSuchSession, NotOpen, Rejected, SojournError
from ..kernel.actor import ActorContext, JobDone
from .core import Desk, TieringLimits, Work, failed, next_due_at, note, room, start_next, succeeded

log = structlog.get_logger("sojourn.tiering")

TIERING = "tiering"  # the actor's id: no session has one like it
LOOK_EVERY_S = 300.0
# A move of the largest session to a slow archive. It is stopped there and begun again, so that it holds no place for ever.
MOVE_DEADLINE_S = 3600.0
_LOOK, _DUE = "look", "due"

REMEDIES = {
    "storage_full": "make room on the disk; the sessions stay where they are meanwhile",
    "store_unavailable": "check the disk or the archive it names; the sessions stay where they are meanwhile",
    "damaged": "put the damaged file back from a copy; the session stays where it is meanwhile",
    "set_aside": "put the damaged files back from a copy, or accept the loss; the session stays where it is meanwhile",
    "timeout": "check that the archive answers; the move is begun again",
}
REMEDY = "it is tried again; the session stays where it is meanwhile"


@define
class Ended:
    """A session has ended. `clean`: its reporter says that nothing more will come, so there is nothing to wait for."""

    session_id: str
    clean: bool = False


@define
class Sealed:
    """A session is sealed."""

    session_id: str


@define
class Look:
    """Look at the catalog for what waits; sent at the start, and then by the actor to itself. `sweep`: also clear away what
    moves left behind that broke off."""

    sweep: bool = False


@define
class _Due:
    """The pause before the next move is over."""


@frozen
class Waiting:
    """A session that was found to wait for `work`, in `due_in_s` seconds."""

    session_id: str
    work: Work
    due_in_s: float


class Mover(Protocol):
    """Who does the work. Every method may be cancelled, killed and called again at any time: what was done stays done."""

    async def hand_off(self, session_id: str) -> None:
        """Seal it where it is not, and move it from active to recent. Raises Rejected: there is nothing to move; any other
        SojournError: it stays where it is."""
        ...

    async def archive(self, session_id: str) -> None:
        """Move it from recent to the archive. Raises as `hand_off`."""
        ...

    async def look(self, known: frozenset[str], rooms: Mapping[Work, int], sweep: bool) -> Sequence[Waiting]:
        """At most so many sessions of each kind that wait and are not `known`, the catalog says."""
        ...


@frozen(kw_only=True)
class TieringStatistics:
    """What the tiering supervisor did since it started, and what lies before it. `failing` counts sessions whose last try
    failed, by the failure's code."""

    waiting: int = 0
    running: int = 0
    handed_over: int = 0
    archived: int = 0
    failures: int = 0
    failing: Mapping[str, int] = {}


class TieringActor:
    """See kernel.actor.Actor.

    Args:
        clock: monotonic seconds.
        seal_after_s: so long after its end a session is sealed.
    """

    def __init__(
        self,
        context: ActorContext,
        mover: Mover,
        *,
        clock: Callable[[], float],
        limits: TieringLimits,
        seal_after_s: float,
        look_every_s: float = LOOK_EVERY_S,
        random_: Callable[[], float] = random.random,
    ) -> None:
        self._context = context
        self._mover = mover
        self._clock = clock
        self._limits = limits
        self._seal_after_s = seal_after_s
        self._look_every_s = look_every_s
        self._random = random_
        self._desk = Desk()
        self._looking = self._look_failed = self._look_set = False
        self._done = dict.fromkeys(Work, 0)
        self._failures = 0

    def receive(self, message: Any) -> None:
        """Ended, Sealed, Look, and what its own timers and jobs say. Raises NoSuchSession for a command: this is none."""
        now = self._clock()
        if isinstance(message, Ended):
            pause_s = 0.0 if message.clean else self._seal_after_s
            note(self._desk, message.session_id, Work.HAND_OFF, now + pause_s, self._limits)
        elif isinstance(message, Sealed):
            note(self._desk, message.session_id, Work.HAND_OFF, now, self._limits)
        elif isinstance(message, Look):
            self._look(message.sweep)
        elif isinstance(message, JobDone):
            self._ended(message, now)
        elif not isinstance(message, _Due):
            raise NoSuchSession(self._context.actor_id)
        if not self._look_set:  # with the first message of all, so that no crash ends the looking
            self._look_set = True
            self._look_later()
        self._go_on(now)

    def close_slot(self) -> None:
        """Nothing of this is kept."""

    def statistics(self) -> TieringStatistics:
        """A frozen value."""
        desk = self._desk
        running = sum(desk.running.values())
        return TieringStatistics(
            waiting=len(desk.pending) - running,
            running=running,
            handed_over=self._done[Work.HAND_OFF],
            archived=self._done[Work.ARCHIVE],
            failures=self._failures,
            failing=dict(desk.failing),
        )

    def _look(self, sweep: bool) -> None:
        if self._looking:
            return
        self._looking = True
        known = frozenset(self._desk.pending)
        rooms = {work: room(self._desk, work, self._limits) for work in Work}
        self._context.start_job(
            _LOOK, lambda: self._mover.look(known, rooms, sweep), deadline_s=MOVE_DEADLINE_S
        )

    def _look_later(self) -> None:
        pause_s = self._look_every_s * (0.9 + 0.2 * self._random())
        self._context.set_timer(_LOOK, pause_s, Look())

    def _ended(self, done: JobDone, now: float) -> None:
        if done.key == _LOOK:
            self._looked(done, now)
            return
        name, _, session_id = done.key.partition(":")
        pending = self._desk.pending.get(session_id)
        if pending is None or not pending.running:
            return  # begun by this actor before it crashed; what the move did stays done
        work, error = Work(name), done.error
        if error is None or isinstance(error, Rejected):  # it is not there, or has not ended after all
            self._done[work] += error is None
            if failure := succeeded(self._desk, session_id):
                log.info("tiering.goes_on_again", failure=failure)
            return
        self._failures += 1
        failure = code_of(error)
        if failed(self._desk, session_id, failure, now, self._random(), self._limits):
            # One that the runtime's end came before is found by the next start.
            say = log.info if isinstance(error, NotOpen) else log.error
            say(
                "tiering.failed",
                session=session_id,
                work=name,
                failure=failure,
                error=str(error) or type(error).__name__,
                remedy=REMEDIES.get(failure, REMEDY),
                exc_info=None if isinstance(error, SojournError | TimeoutError) else error,
            )

    def _looked(self, done: JobDone, now: float) -> None:
        self._looking = False
        self._look_later()
        if done.error is not None:
            if not self._look_failed:
                log.error(
                    "tiering.look_failed",
                    error=str(done.error) or type(done.error).__name__,
                    remedy="it looks again in some minutes; sessions stay where they are meanwhile",
                    exc_info=None if isinstance(done.error, SojournError | TimeoutError) else done.error,
                )
            self._look_failed = True
            return
        self._look_failed = False
        for waiting in done.value:
            note(self._desk, waiting.session_id, waiting.work, now + waiting.due_in_s, self._limits)

    def _go_on(self, now: float) -> None:
        for session_id, work in start_next(self._desk, now, self._limits):
            move = self._mover.hand_off if work is Work.HAND_OFF else self._mover.archive
            self._context.start_job(
                f"{work.value}:{session_id}",
                lambda move=move, session_id=session_id: move(session_id),  # type: ignore[misc]
                deadline_s=MOVE_DEADLINE_S,
            )
        due_at = next_due_at(self._desk, self._limits)
        if due_at is not None:
            self._context.set_timer(_DUE, max(0.0, due_at - now), _Due())


def code_of(error: Exception) -> str:
    """By what failures are told apart: the error's code, `timeout`, or its class."""
    if isinstance(error, SojournError):
        return error.code
    return "timeout" if isinstance(error, TimeoutError) else type(error).__name__
