"""What a session can be asked, what then happens, and when that is legal: one table, `KINDS`, which a test walks.

A command's body and its event's data are the same class: the event holds the command's fields under the same names.
Fields stand in alphabetical order (canonical JSON).
"""

from datetime import datetime

from attrs import define, field, frozen

from .model import ENDED, CaseOutcome, Outcome, Scalar, Status, TimerAction, TimerClock


@frozen(kw_only=True)
class Create:
    """A new session. `environment` and `metadata` hold at most 100 keys of 128 characters."""

    environment: dict[str, Scalar] = field(factory=dict)
    metadata: dict[str, Scalar] = field(factory=dict)
    plan: str = ""
    title: str = ""
    user_id: str = ""


@frozen(kw_only=True)
class Start:
    """The session begins to run."""


@frozen(kw_only=True)
class Pause:
    """The session rests until it is resumed."""

    reason: str | None = None


@frozen(kw_only=True)
class Resume:
    """A paused session runs again."""


@frozen(kw_only=True)
class Complete:
    """The session ran to its end."""

    exit_code: int | None = None
    outcome: Outcome
    reason: str | None = None


@frozen(kw_only=True)
class Fail:
    """The session could not run to its end. The event's outcome is `error`."""

    exit_code: int | None = None
    outcome: Outcome = field(default=Outcome.ERROR, init=False)
    reason: str | None = None


@frozen(kw_only=True)
class Cancel:
    """Someone ended the session. The event's outcome is `cancelled`."""

    exit_code: int | None = None
    outcome: Outcome = field(default=Outcome.CANCELLED, init=False)
    reason: str | None = None


@frozen(kw_only=True)
class Abandon:
    """Nobody was heard of for so long that the session is taken to be over. What came of it is not known."""

    exit_code: int | None = field(default=None, init=False)
    outcome: Outcome | None = field(default=None, init=False)
    reason: str | None = None


@frozen(kw_only=True)
class Seal:
    """Nothing is added to the session any more: its last event. What it is can then be copied and checked once."""


@define(kw_only=True)
class ReportProgress:
    """How far the work is, in units of the reporter's own."""

    done: int
    message: str | None = None
    total: int | None = None


@define(kw_only=True)
class RecordResult:
    """What came of one test case. `details` (a traceback) stays in the history; the state keeps the rest."""

    case_id: str
    details: str | None = None
    duration_s: float
    message: str | None = None
    outcome: CaseOutcome
    started_at: datetime | None = None


@define(kw_only=True)
class AppendLog:
    """One line of output. `truncated_bytes` says how much of it was cut, `invalid_utf8` that some of it was replaced."""

    emitted_at: datetime | None = None
    invalid_utf8: bool = False
    level: str | None = None
    stream: str
    text: str
    truncated_bytes: int = 0


@define(kw_only=True)
class SampleResources:
    """A process tree at a moment: CPU seconds and bytes read and written so far, memory now."""

    cpu_s: float
    processes: int
    read_bytes: int
    rss_bytes: int
    written_bytes: int


@frozen(kw_only=True)
class SetTimer:
    """The session says when a moment has come: in `after_s` seconds of `clock`, or `at`, and then every `every_s` seconds. It
    replaces the timer of that key, where there is one. One whose `action` is `fail` ends the session, for that `reason`."""

    action: TimerAction | None = None
    after_s: float | None = None
    at: datetime | None = None
    clock: TimerClock = TimerClock.WALL
    every_s: float | None = None
    key: str
    reason: str | None = None


@frozen(kw_only=True)
class CancelTimer:
    """The timer of that key is gone."""

    key: str


@frozen(kw_only=True)
class TimerFired:
    """A timer was due at `due_at`, by the wall clock; so were `missed` earlier moments of a periodic one that were not told."""

    due_at: datetime
    key: str
    missed: int = 0


@frozen(kw_only=True)
class HistoryLost:
    """These events are gone, and a person chose to go on without them."""

    first_seq: int
    last_seq: int


Body = (
    Create | Start | Pause | Resume | Complete | Fail | Cancel | Abandon | Seal
    | ReportProgress | RecordResult | AppendLog | SampleResources | HistoryLost
    | SetTimer | CancelTimer | TimerFired
)  # fmt: skip


@define
class Command:
    """Asked of a session. At most one of `command_id` and (`source`, `n`) makes it safe to send again; with neither, a
    second sending takes effect twice. `digest` tells one body from another and is needed with a `command_id` only."""

    type: str
    body: Body
    command_id: str | None = None
    digest: str = ""
    source: str | None = None
    n: int = 0


@define
class Cause:
    """Which command an event came from. `events` is how many that command has, on the first of them, else 0."""

    command_id: str
    digest: str
    events: int


@define
class SourceCause:
    """Which message of a source an event came from. `events` as in `Cause`."""

    events: int
    n: int
    source: str


@define
class Event:
    """Something that happened to a session. `seq` counts from 1 without a gap; `at` never falls within a session."""

    at: datetime
    cause: Cause | SourceCause | None
    data: Body
    seq: int
    type: str


@frozen(kw_only=True)
class Kind:
    """A row of the table: a command, its event, their body, and the statuses in which it is legal (none: no session yet).
    Once a session is sealed, nothing is legal."""

    command: str
    event: str
    body: type[Body]
    legal: frozenset[Status]


_ACTIVE = frozenset({Status.RUNNING, Status.PAUSED})
_OPEN = _ACTIVE | {Status.CREATED}
_ANY = frozenset(Status)

KINDS: tuple[Kind, ...] = (
    Kind(command="session.create", event="session.created", body=Create, legal=frozenset()),
    Kind(command="session.start", event="session.started", body=Start, legal=frozenset({Status.CREATED})),
    Kind(command="session.pause", event="session.paused", body=Pause, legal=frozenset({Status.RUNNING})),
    Kind(command="session.resume", event="session.resumed", body=Resume, legal=frozenset({Status.PAUSED})),
    Kind(command="session.complete", event="session.completed", body=Complete, legal=_ACTIVE),
    Kind(command="session.fail", event="session.failed", body=Fail, legal=_OPEN),
    Kind(command="session.cancel", event="session.cancelled", body=Cancel, legal=_OPEN),
    Kind(command="session.seal", event="session.sealed", body=Seal, legal=ENDED),
    Kind(command="progress.report", event="progress.reported", body=ReportProgress, legal=_ACTIVE),
    Kind(command="result.record", event="result.recorded", body=RecordResult, legal=_ACTIVE),
    # Late lines and samples are taken after the end: output is drained after the process has gone.
    Kind(command="log.append", event="log.appended", body=AppendLog, legal=_ANY),
    Kind(
        command="resource.sample",
        event="resource.sampled",
        body=SampleResources,
        legal=_ANY - {Status.CREATED},
    ),
    Kind(command="timer.set", event="timer.set", body=SetTimer, legal=_OPEN),
    Kind(command="timer.cancel", event="timer.cancelled", body=CancelTimer, legal=_OPEN),
)
# Not a reporter's to ask: the owner makes it happen when a person accepts a loss, in any status, sealed or not.
HISTORY_LOST = Kind(
    command="history.accept_loss", event="history.lost", body=HistoryLost, legal=frozenset(Status)
)
# Not a reporter's either: the owner makes it happen to a session that shows no sign of life.
ABANDONED = Kind(command="session.abandon", event="session.abandoned", body=Abandon, legal=_OPEN)
# Nor this one: the owner asks when a moment has come, and the session itself says which timers are due.
TIMER_FIRED = Kind(command="timer.tick", event="timer.fired", body=TimerFired, legal=_OPEN)
KIND_BY_COMMAND = {kind.command: kind for kind in KINDS}
KIND_BY_EVENT = {kind.event: kind for kind in (*KINDS, HISTORY_LOST, ABANDONED, TIMER_FIRED)}
ENDING_COMMANDS = frozenset({"session.complete", "session.fail", "session.cancel"})
ENDING_EVENTS = frozenset({"session.completed", "session.failed", "session.cancelled", ABANDONED.event})
