"""What is moved next between the tiers: pure.

All that is pending is a fold of what is stored (ended and not sealed; sealed and active; recent and old), so nothing here
is kept across a restart: what is forgotten, or does not fit, is found again at the next look.
"""

import enum
from collections.abc import Mapping

from attrs import define, field, frozen


class Work(enum.Enum):
    """What a session waits for."""

    HAND_OFF = "hand_off"  # from active to recent: sealed first, where it is not
    ARCHIVE = "archive"  # from recent to the archive


@frozen(kw_only=True)
class TieringLimits:
    """How much is done at once, and when something that failed is tried again. Times in seconds.

    Attributes:
        at_once_max: moves that run together, of both kinds. Archiving takes at most half of them (one, where that is all
            there is), so that an archive that hangs holds no hand-off up.
        pending_max: sessions of each kind that wait or run.
        backoff_s: the pause after a session's first failure; it doubles with each further one.
        backoff_max_s: the longest pause.
        jitter: a pause is scaled by a factor within 1 +- jitter.
    """

    at_once_max: int = 4
    pending_max: int = 1_000
    backoff_s: float = 1.0
    backoff_max_s: float = 300.0
    jitter: float = 0.2


@define
class Pending:
    """A session that waits, or runs: `due_at` on a clock that does not fall; `failure` is the code of its last one."""

    work: Work
    due_at: float
    failures: int = 0
    failure: str | None = None
    running: bool = False


@define
class Desk:
    """What lies before the supervisor. `counts` and `running` say how many sessions there are of each kind, `failing` how
    many whose last try failed, by the failure's code."""

    pending: dict[str, Pending] = field(factory=dict)
    counts: dict[Work, int] = field(factory=lambda: dict.fromkeys(Work, 0))
    running: dict[Work, int] = field(factory=lambda: dict.fromkeys(Work, 0))
    failing: dict[str, int] = field(factory=dict)


def room(desk: Desk, work: Work, limits: TieringLimits) -> int:
    """How many more sessions of this kind fit."""
    return limits.pending_max - desk.counts[work]


def note(desk: Desk, session_id: str, work: Work, due_at: float, limits: TieringLimits) -> bool:
    """A session waits for `work`. One that waits already comes no later than `due_at`, unless it failed before: its pause
    stands. Returns False where there is no room; the next look finds it again."""
    pending = desk.pending.get(session_id)
    if pending is not None:
        if not pending.failures:
            pending.due_at = min(pending.due_at, due_at)
        return True
    if room(desk, work, limits) <= 0:
        return False
    desk.pending[session_id] = Pending(work, due_at)
    desk.counts[work] += 1
    return True


def start_next(desk: Desk, now: float, limits: TieringLimits) -> list[tuple[str, Work]]:
    """Which sessions' moves begin now, the longest due first; they count as running until `succeeded` or `failed`."""
    free = _free(desk, limits)
    started = []
    waiting = ((pending.due_at, id_) for id_, pending in desk.pending.items() if not pending.running)
    for due_at, session_id in sorted(waiting):
        if due_at > now or not any(free.values()):
            break
        pending = desk.pending[session_id]
        if free[pending.work] > 0:
            pending.running = True
            desk.running[pending.work] += 1
            started.append((session_id, pending.work))
            free = _free(desk, limits)
    return started


def next_due_at(desk: Desk, limits: TieringLimits) -> float | None:
    """When `start_next` would next have something to start; None: not before a move ends or something is noted."""
    free = _free(desk, limits)
    return min(
        (
            pending.due_at
            for pending in desk.pending.values()
            if not pending.running and free[pending.work] > 0
        ),
        default=None,
    )


def succeeded(desk: Desk, session_id: str) -> str | None:
    """A move has ended well. Returns the code of the failure that no session shows any more, where there is one."""
    pending = desk.pending.pop(session_id)
    desk.counts[pending.work] -= 1
    desk.running[pending.work] -= pending.running
    return _forget_failure(desk, pending)


def failed(
    desk: Desk, session_id: str, failure: str, now: float, random: float, limits: TieringLimits
) -> bool:
    """A move has failed, and is tried again after a pause that doubles with every failure of this session.

    Args:
        random: uniform in [0, 1).

    Returns:
        Whether no other session failed alike last: what is worth a line in the log.
    """
    pending = desk.pending[session_id]
    _forget_failure(desk, pending)
    desk.running[pending.work] -= pending.running
    pending.running = False
    pending.failure = failure
    # No power beyond what the longest pause needs: 2.0 ** 1024 is an error.
    pause_s = min(limits.backoff_s * 2.0 ** min(pending.failures, 60), limits.backoff_max_s)
    pending.failures += 1
    pending.due_at = now + pause_s * (1 + limits.jitter * (2 * random - 1))
    desk.failing[failure] = desk.failing.get(failure, 0) + 1
    return desk.failing[failure] == 1


def _forget_failure(desk: Desk, pending: Pending) -> str | None:
    failure = pending.failure
    if failure is None:
        return None
    desk.failing[failure] -= 1
    if desk.failing[failure]:
        return None
    del desk.failing[failure]
    return failure


def _free(desk: Desk, limits: TieringLimits) -> Mapping[Work, int]:
    """How many moves of each kind may begin."""
    running = desk.running
    free = max(0, limits.at_once_max - sum(running.values()))
    archiving_max = max(1, limits.at_once_max // 2)
    return {Work.HAND_OFF: free, Work.ARCHIVE: min(free, max(0, archiving_max - running[Work.ARCHIVE]))}
