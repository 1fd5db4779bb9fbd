"""A session's state: bounded maps of small frozen documents. An event replaces a constant number of them.

Fields stand in alphabetical order, because they are encoded in the order they stand in and stored JSON is canonical.
"""

import enum
from datetime import datetime

from attrs import define, field, frozen

Scalar = str | int | float | bool | None


class Status(enum.Enum):
    """Where a session is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.ABANDONED})


class Outcome(enum.Enum):
    """What came of a session."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    CANCELLED = "cancelled"


class CaseOutcome(enum.Enum):
    """What came of one test case."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    XPASSED = "xpassed"


class TimerClock(enum.Enum):
    """What a timer counts."""

    ACTIVE = "active"  # the time that the session is running
    WALL = "wall"


class TimerAction(enum.Enum):
    """What a timer does to its session beside saying that it is due."""

    FAIL = "fail"


class Ack(enum.Enum):
    """How far a command has come when it is answered (docs/protocol.md). Never downgraded silently."""

    APPLIED = "applied"
    DURABLE = "durable"
    MIRRORED = "mirrored"


@frozen(kw_only=True)
class Limits:
    """What one session may hold. Reaching one refuses what would exceed it (`LimitReached`) and stops nothing else."""

    dedup_commands_max: int = 1_024
    dedup_age_s: float = 24 * 3600.0
    results_max: int = 100_000
    sources_max: int = 4_096
    state_bytes_max: int = 96 * 1024 * 1024
    timers_max: int = 64


@frozen(kw_only=True)
class Header:
    """What the session is, and where it is in its life."""

    created_at: datetime
    ended_at: datetime | None = None
    environment: dict[str, Scalar]
    exit_code: int | None = None
    metadata: dict[str, Scalar]
    outcome: Outcome | None = None
    plan: str
    reason: str | None = None
    sealed_at: datetime | None = None
    session_id: str
    started_at: datetime | None = None
    status: Status = Status.CREATED
    title: str
    user_id: str


@define
class Progress:
    """How far the session says it is."""

    done: int
    message: str | None
    reported_at: datetime
    total: int | None


@define
class Result:
    """The latest result of one case. `seq` is its event, where the details stand; `runs` counts how often it ran."""

    duration_s: float
    message: str | None
    outcome: CaseOutcome
    runs: int
    seq: int
    started_at: datetime | None


@frozen(kw_only=True)
class Resources:
    """The last sample of the process tree, and the peak of its memory."""

    cpu_s: float
    processes: int
    read_bytes: int
    rss_bytes: int
    rss_peak_bytes: int
    sampled_at: datetime
    samples: int
    written_bytes: int


@define
class DedupEntry:
    """A command that took effect: which body, its first event and how many."""

    at: datetime
    digest: str
    events: int
    first_seq: int


@define
class SourceMark:
    """The last command of a source that took effect, and the last event of it. Changed in place, other than all else in the
    state, so a copy of the state needs copies of these."""

    n: int
    seq: int


@frozen(kw_only=True)
class Loss:
    """Events that are gone, and that a person chose to go on without."""

    accepted_at: datetime
    first_seq: int
    last_seq: int


@frozen(kw_only=True)
class Timer:
    """A timer that waits. `due_at` is what its clock will say: for the clock `active` see `ActiveClock`; `fired` counts how
    often it was due and said so."""

    action: TimerAction | None
    clock: TimerClock
    due_at: datetime
    every_s: float | None
    fired: int = 0
    reason: str | None
    set_at: datetime


@frozen(kw_only=True)
class ActiveClock:
    """A clock that goes while the session is running: it says the wall clock's time less `paused_us`, and stands while
    `stopped_at`, a time of the wall clock, is set."""

    paused_us: int = 0
    stopped_at: datetime | None


@define(eq=False, kw_only=True)
class SessionState:
    """The fold of a session's events. Only `core.apply` changes it; readers get it between turns, when all of it is durable.

    `commands` is the dedup window, oldest first; `size_bytes` is about what the documents take in memory. There are an
    `active_clock` only while there are `timers`, and timers only until the session has ended.
    """

    active_clock: ActiveClock | None = None
    commands: dict[str, DedupEntry] = field(factory=dict)
    counters: dict[str, int] = field(factory=dict)
    header: Header | None = None
    losses: list[Loss] = field(factory=list)
    progress: Progress | None = None
    resources: Resources | None = None
    results: dict[str, Result] = field(factory=dict)
    seq: int = 0
    session_id: str
    size_bytes: int = 0
    sources: dict[str, SourceMark] = field(factory=dict)
    timers: dict[str, Timer] = field(factory=dict)
    updated_at: datetime | None = None

    @property
    def status(self) -> Status | None:
        """None until the session is created."""
        return self.header.status if self.header is not None else None
