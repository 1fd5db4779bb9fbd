"""The session's pure core: `decide` says what a command makes happen, `apply` folds an event into the state.

No clock, no randomness, no log, no input or output: time comes in as an argument, so a history replays alike.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from attrs import evolve

from ..errors import (
    AlreadyExists,
    IdempotencyMismatch,
    IllegalInStatus,
    LimitReached,
    NoSuchSession,
    NoSuchTimer,
    OutOfOrder,
    SessionSealed,
)
from . import timers
from .commands import (
    ABANDONED,
    KINDS,
    Abandon,
    CancelTimer,
    Cause,
    Command,
    Event,
    RecordResult,
    SetTimer,
    SourceCause,
)
from .model import (
    DedupEntry,
    Header,
    Limits,
    Loss,
    Progress,
    Resources,
    Result,
    SessionState,
    SourceMark,
    Status,
)

# What a result costs beside its texts: measured with `sys.getsizeof`, rounded up.
RESULT_BYTES = 240

# What a command becomes, by status: the table in the form that `decide` asks. By the member's value, because an enum
# member hashes in Python, at a tenth of `decide`.
_EVENT_IN = {
    status.value: {kind.command: kind.event for kind in KINDS if status in kind.legal} for status in Status
}


def decide(state: SessionState, command: Command, now: datetime, limits: Limits) -> tuple[Event, ...]:
    """What `command` makes happen to `state`, which stays as it is; empty where the command took effect before.

    Args:
        now: aware UTC; an event's time is the later of it and the last event's, so times never fall.

    Raises:
        Rejected: the command has no effect; its class says why. Never for a command that took effect before.
    """
    header = state.header
    if header is not None and header.sealed_at is not None:
        if took_effect(state, command):
            return ()
        raise SessionSealed(state.session_id, header.sealed_at)
    cause: Cause | SourceCause | None = None
    source = command.source
    if source is not None:
        n = command.n
        mark = state.sources.get(source)
        expected = mark.n + 1 if mark is not None else 1
        if n != expected:
            if n < expected:
                return ()
            raise OutOfOrder(source, n, expected)
        if mark is None and len(state.sources) >= limits.sources_max:
            raise LimitReached("sources_max", limits.sources_max)
        cause = SourceCause(1, n, source)
    elif command.command_id is not None:
        entry = state.commands.get(command.command_id)
        if entry is not None:
            if entry.digest != command.digest:
                raise IdempotencyMismatch
            return ()
        cause = Cause(command.command_id, command.digest, 1)

    kind = command.type
    if header is None:
        if kind != "session.create":
            raise NoSuchSession(state.session_id)
        event = "session.created"
    else:
        event = _EVENT_IN[header.status._value_].get(kind, "")
        if not event:
            if kind == "session.create":
                raise AlreadyExists(f"session {state.session_id} exists already")
            raise IllegalInStatus(kind, header.status.value, tuple(sorted(_EVENT_IN[header.status.value])))
        check = _CHECK.get(kind)
        if check is not None:
            check(state, command.body, limits)
    last = state.updated_at
    at = now if last is None or now > last else last
    return (Event(at, cause, command.body, state.seq + 1, event),)


def abandon(state: SessionState, seq: int, reason: str, now: datetime, before: datetime) -> Event | None:
    """The end of a session that nobody was heard of since its event `seq`; None where something has happened to it since,
    or it is over. So, too, where that event is not from `before`: a session with timers may have made it by itself, and no
    other. `state` stays as it is; `now` as for `decide`."""
    header, last = state.header, state.updated_at
    if header is None or last is None or state.seq != seq or header.status not in ABANDONED.legal:
        return None
    if last > before and not state.timers:
        return None
    return Event(max(now, last), None, Abandon(reason=reason), seq + 1, ABANDONED.event)


def answer_seq(state: SessionState, command: Command) -> int:
    """The last event of a command that took effect before (for a source: of the source's last one)."""
    if command.source is not None:
        return state.sources[command.source].seq
    assert command.command_id is not None
    entry = state.commands[command.command_id]
    return entry.first_seq + entry.events - 1


def apply(state: SessionState, event: Event, limits: Limits) -> None:
    """Fold `event` into `state`. Total for every event that `decide` made; the cost does not grow with the state."""
    seq = event.seq
    if seq != state.seq + 1:
        raise AssertionError(f"event {seq} does not follow {state.seq} in {state.session_id}")
    _APPLY[event.type](state, event.data, event)
    state.seq = seq
    state.updated_at = event.at
    cause = event.cause
    if cause is not None and cause.events:
        if type(cause) is SourceCause:
            mark = state.sources.get(cause.source)
            if mark is None:
                mark = state.sources[cause.source] = SourceMark(0, 0)
            # The one document that is changed and not replaced: every event of a source would make one.
            mark.n = cause.n
            mark.seq = seq + cause.events - 1
        elif type(cause) is Cause:
            _remember_command(state, cause, event, limits)


def fold(session_id: str, events: list[Event], *, limits: Limits) -> SessionState:
    """The state after `events`, from nothing."""
    state = SessionState(session_id=session_id)
    for event in events:
        apply(state, event, limits=limits)
    return state


def took_effect(state: SessionState, command: Command) -> bool:
    """Whether sending the command again changes nothing."""
    if command.source is not None:
        mark = state.sources.get(command.source)
        return mark is not None and command.n <= mark.n
    entry = state.commands.get(command.command_id) if command.command_id is not None else None
    return entry is not None and entry.digest == command.digest


def _remember_command(state: SessionState, cause: Cause, event: Event, limits: Limits) -> None:
    window = state.commands
    window[cause.command_id] = DedupEntry(event.at, cause.digest, cause.events, event.seq)
    if len(window) > limits.dedup_commands_max:
        del window[next(iter(window))]
    # Two a time at most: one comes in, so the old ones go at least as fast, and the cost stays constant.
    horizon = event.at - timedelta(seconds=limits.dedup_age_s)
    for _ in range(2):
        oldest = next(iter(window))
        if window[oldest].at >= horizon:
            break
        del window[oldest]


def _result_bytes(body: RecordResult) -> int:
    return len(body.case_id) + len(body.message or "") + RESULT_BYTES


def _check_room(state: SessionState, body: RecordResult, limits: Limits) -> None:
    if body.case_id not in state.results and len(state.results) >= limits.results_max:
        raise LimitReached("results_max", limits.results_max)
    if state.size_bytes + _result_bytes(body) > limits.state_bytes_max:
        raise LimitReached("state_bytes_max", limits.state_bytes_max)


def _check_timers(state: SessionState, body: SetTimer, limits: Limits) -> None:
    if body.key not in state.timers and len(state.timers) >= limits.timers_max:
        raise LimitReached("timers_max", limits.timers_max)


def _check_timer(state: SessionState, body: CancelTimer, limits: Limits) -> None:
    if body.key not in state.timers:
        raise NoSuchTimer(body.key)


# What is legal in the status, and may be refused all the same.
_CHECK: dict[str, Callable[[SessionState, Any, Limits], None]] = {
    "result.record": _check_room,
    "timer.set": _check_timers,
    "timer.cancel": _check_timer,
}


def _created(state: SessionState, body: Any, event: Event) -> None:
    state.header = Header(
        created_at=event.at,
        environment=body.environment,
        metadata=body.metadata,
        plan=body.plan,
        session_id=state.session_id,
        title=body.title,
        user_id=body.user_id,
    )


def _started(state: SessionState, body: Any, event: Event) -> None:
    state.header = evolve(_header(state), status=Status.RUNNING, started_at=event.at)
    timers.on_running(state, event.at)


def _paused(state: SessionState, body: Any, event: Event) -> None:
    state.header = evolve(_header(state), status=Status.PAUSED, reason=body.reason)
    timers.on_resting(state, event.at)


def _resumed(state: SessionState, body: Any, event: Event) -> None:
    state.header = evolve(_header(state), status=Status.RUNNING, reason=None)
    timers.on_running(state, event.at)


def _ended(status: Status) -> Callable[[SessionState, Any, Event], None]:
    def end(state: SessionState, body: Any, event: Event) -> None:
        state.header = evolve(
            _header(state),
            status=status,
            ended_at=event.at,
            exit_code=body.exit_code,
            outcome=body.outcome,
            reason=body.reason,
        )
        timers.on_ended(state)

    return end


def _sealed(state: SessionState, body: Any, event: Event) -> None:
    state.header = evolve(_header(state), sealed_at=event.at)


def _progress(state: SessionState, body: Any, event: Event) -> None:
    state.progress = Progress(body.done, body.message, event.at, body.total)


def _result(state: SessionState, body: Any, event: Event) -> None:
    counters = state.counters
    before = state.results.get(body.case_id)
    runs = 1
    if before is not None:
        runs = before.runs + 1
        counters[f"results.{before.outcome.value}"] -= 1
        state.size_bytes -= len(body.case_id) + len(before.message or "") + RESULT_BYTES
    name = f"results.{body.outcome.value}"
    counters[name] = counters.get(name, 0) + 1
    state.results[body.case_id] = Result(
        body.duration_s, body.message, body.outcome, runs, event.seq, body.started_at
    )
    state.size_bytes += _result_bytes(body)


def _log(state: SessionState, body: Any, event: Event) -> None:
    counters = state.counters
    counters["logs.lines"] = counters.get("logs.lines", 0) + 1
    counters["logs.bytes"] = counters.get("logs.bytes", 0) + len(body.text.encode())


def _resources(state: SessionState, body: Any, event: Event) -> None:
    before = state.resources
    state.resources = Resources(
        cpu_s=body.cpu_s,
        processes=body.processes,
        read_bytes=body.read_bytes,
        rss_bytes=body.rss_bytes,
        rss_peak_bytes=max(body.rss_bytes, before.rss_peak_bytes if before is not None else 0),
        sampled_at=event.at,
        samples=before.samples + 1 if before is not None else 1,
        written_bytes=body.written_bytes,
    )


def _header(state: SessionState) -> Header:
    assert state.header is not None
    return state.header


def _lost(state: SessionState, body: Any, event: Event) -> None:
    state.losses = [
        *state.losses,
        Loss(accepted_at=event.at, first_seq=body.first_seq, last_seq=body.last_seq),
    ]


_APPLY: dict[str, Callable[[SessionState, Any, Event], None]] = {
    "session.created": _created,
    "session.started": _started,
    "session.paused": _paused,
    "session.resumed": _resumed,
    "session.completed": _ended(Status.COMPLETED),
    "session.failed": _ended(Status.FAILED),
    "session.cancelled": _ended(Status.CANCELLED),
    "session.abandoned": _ended(Status.ABANDONED),
    "session.sealed": _sealed,
    "progress.reported": _progress,
    "result.recorded": _result,
    "log.appended": _log,
    "resource.sampled": _resources,
    "history.lost": _lost,
    "timer.set": timers.on_set,
    "timer.cancelled": timers.on_cancelled,
    "timer.fired": timers.on_fired,
}
