"""Turns that held the event loop up: who, with what message, for how long, and where in the code.

A thread looks at the loop's own stack every `stall_s` / 2. Where it finds the scheduler there, the scheduler's local names
say which actor and message it is at; so a turn pays nothing for being watched. What a look finds running it may have
missed the beginning and the end of, by one look each.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import structlog
from attrs import define, evolve, frozen

from ..actors.kernel.scheduler import Kernel

log = structlog.get_logger("sojourn.stalls")

KEPT_MAX = 100
STACK_FRAMES_MAX = 30
LOG_PAUSE_S = 60.0
LOGGED_ACTORS_MAX = 1_000
LOOK_EVERY_MIN_S = 0.001

_SLOTS = (Kernel._run_slots.__code__, Kernel._run_slot.__code__)


@frozen(kw_only=True)
class Stall:
    """A turn that took too long.

    Attributes:
        message: the type of its message.
        duration_s: at least so long; while it runs on, so far.
        noticed_at: when it had gone on for too long.
        stack: where it was then, `file:line function`, the innermost last.
    """

    actor_id: str
    message: str
    duration_s: float
    noticed_at: datetime
    stack: tuple[str, ...]


@frozen(kw_only=True)
class StallStatistics:
    """How many there were since the start, the longest of them, and the last 100, oldest first."""

    total: int = 0
    longest_s: float = 0.0
    recent: tuple[Stall, ...] = ()


@frozen(eq=False)
class RunningTurn:
    """What a look found: `envelope` is the message on its way, and tells one turn from the next."""

    actor_id: str
    envelope: Any
    slot_began_s: float
    stack: tuple[str, ...]


@define(eq=False)
class _Watched:
    envelope: Any
    began_s: float
    noticed: bool = False


class StallLedger:
    """Decides from looks what has stalled, and keeps it. May be read from any thread."""

    def __init__(self, stall_s: float, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._stall_s = stall_s
        self._now = now
        self._lock = threading.Lock()
        self._recent: deque[Stall] = deque(maxlen=KEPT_MAX)
        self._total = 0
        self._longest_s = 0.0
        self._watched: _Watched | None = None
        self._looked_s = 0.0
        self._logged_s: dict[str, float] = {}

    def look(self, now_s: float, turn: RunningTurn | None) -> None:
        """Take note of what runs at `now_s`, in seconds on the kernel's clock; None: no turn does."""
        watched = self._watched
        if turn is None:
            self._watched = None
        else:
            if watched is None or watched.envelope is not turn.envelope:
                # Begun since the last look. Where that was long ago, a call held the interpreter all the while, and this
                # thread with it: then it has run for as long as its slot.
                watched = _Watched(turn.envelope, max(turn.slot_began_s, self._looked_s))
                self._watched = watched
            duration_s = now_s - watched.began_s
            if duration_s >= self._stall_s:
                self._note(turn, watched, duration_s, now_s)
        self._looked_s = now_s

    def statistics(self) -> StallStatistics:
        """A frozen value."""
        with self._lock:
            return StallStatistics(total=self._total, longest_s=self._longest_s, recent=tuple(self._recent))

    def _note(self, turn: RunningTurn, watched: _Watched, duration_s: float, now_s: float) -> None:
        with self._lock:
            self._longest_s = max(self._longest_s, duration_s)
            if watched.noticed:
                self._recent[-1] = evolve(self._recent[-1], duration_s=duration_s)
                return
            watched.noticed = True
            stall = Stall(
                actor_id=turn.actor_id,
                message=message_type(turn.envelope.message),
                duration_s=duration_s,
                noticed_at=self._now(),
                stack=turn.stack,
            )
            self._total += 1
            self._recent.append(stall)
        if now_s - self._logged_s.get(turn.actor_id, -LOG_PAUSE_S) >= LOG_PAUSE_S:
            self._logged_s.pop(turn.actor_id, None)
            if len(self._logged_s) >= LOGGED_ACTORS_MAX:
                del self._logged_s[next(iter(self._logged_s))]
            self._logged_s[turn.actor_id] = now_s
            # While it runs: of one that never ends, nothing else will ever tell.
            log.warning(
                "turn.stalled",
                session=stall.actor_id,
                message=stall.message,
                duration_s=round(duration_s, 3),
                where=" > ".join(stall.stack),
                remedy="nothing else is served meanwhile: `where` says what it did; send less at once, or make it a job",
            )


class StallWatch:
    """The thread that looks.

    Args:
        kernel: whose turns are watched; its clock must be the machine's.
        stall_s: turns from so long on are kept; 0: none is watched.
    """

    def __init__(self, kernel: Kernel, stall_s: float) -> None:
        self._kernel = kernel
        self._stall_s = stall_s
        self._ledger = StallLedger(stall_s)

    def statistics(self) -> StallStatistics:
        """A frozen value."""
        return self._ledger.statistics()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calling thread, which is the kernel's, until the context is left."""
        if self._stall_s <= 0:
            yield
            return
        stop = threading.Event()
        thread = threading.Thread(
            target=self._look_on, args=(threading.get_ident(), stop), name="sojourn-stalls", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _look_on(self, thread_id: int, stop: threading.Event) -> None:
        kernel, pause_s = self._kernel, max(LOOK_EVERY_MIN_S, self._stall_s / 2)
        while not stop.wait(pause_s):
            turn = running_turn(kernel, sys._current_frames().get(thread_id))
            self._ledger.look(kernel.clock(), turn)


def running_turn(kernel: Kernel, frame: FrameType | None) -> RunningTurn | None:
    """The turn that `kernel` is at on the stack above `frame`; None where it is at none."""
    stack: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code in _SLOTS:
            names = frame.f_locals
            cell, envelope = names.get("cell"), names.get("envelope")
            if names.get("self") is not kernel or cell is None or envelope is None or not stack:
                return None
            return RunningTurn(cell.actor_id, envelope, cell.active_at, tuple(reversed(stack)))
        if len(stack) < STACK_FRAMES_MAX:
            stack.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return None


def message_type(message: Any) -> str:
    """A command's type; of any other message, its class."""
    kind = getattr(message, "type", None)
    return kind if isinstance(kind, str) else type(message).__name__
