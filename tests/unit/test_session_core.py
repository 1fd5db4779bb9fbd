"""The session's pure core: the legality table, the fold, deduplication, order of sources, limits."""

from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from sojourn.actors.errors import (
    AlreadyExists,
    IdempotencyMismatch,
    IllegalInStatus,
    LimitReached,
    NoSuchSession,
    OutOfOrder,
    Rejected,
    SessionSealed,
)
from sojourn.actors.session import codec
from sojourn.actors.session.actor import copy_state
from sojourn.actors.session.commands import (
    ABANDONED,
    ENDING_EVENTS,
    KIND_BY_COMMAND,
    KIND_BY_EVENT,
    KINDS,
    AppendLog,
    Body,
    Cancel,
    CancelTimer,
    Command,
    Complete,
    Create,
    Event,
    Fail,
    Kind,
    Pause,
    RecordResult,
    ReportProgress,
    Resume,
    SampleResources,
    Seal,
    SetTimer,
    Start,
)
from sojourn.actors.session.core import abandon, answer_seq, apply, decide, fold
from sojourn.actors.session.model import CaseOutcome, Limits, Outcome, SessionState, Status, TimerClock

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
LIMITS = Limits()
SAMPLE: dict[str, Body] = {
    "session.create": Create(title="t", plan="p"),
    "session.start": Start(),
    "session.pause": Pause(reason="lunch"),
    "session.resume": Resume(),
    "session.complete": Complete(outcome=Outcome.PASSED, exit_code=0),
    "session.fail": Fail(exit_code=3),
    "session.cancel": Cancel(),
    "session.seal": Seal(),
    "progress.report": ReportProgress(done=1, total=2),
    "result.record": RecordResult(case_id="m::a", outcome=CaseOutcome.PASSED, duration_s=0.5),
    "log.append": AppendLog(stream="stdout", text="hello"),
    "resource.sample": SampleResources(cpu_s=1.0, processes=2, read_bytes=3, rss_bytes=4, written_bytes=5),
    "timer.set": SetTimer(key="k", after_s=40.0, clock=TimerClock.ACTIVE),
    "timer.cancel": CancelTimer(key="k"),
}
PATH_TO: dict[Status, tuple[str, ...]] = {
    Status.CREATED: ("session.create",),
    Status.RUNNING: ("session.create", "session.start"),
    Status.PAUSED: ("session.create", "session.start", "session.pause"),
    Status.COMPLETED: ("session.create", "session.start", "session.complete"),
    Status.FAILED: ("session.create", "session.fail"),
    Status.CANCELLED: ("session.create", "session.cancel"),
    Status.ABANDONED: ("session.create", ABANDONED.command),
}


def do(
    state: SessionState, command: Command, *, now: datetime = NOW, limits: Limits = LIMITS
) -> tuple[Event, ...]:
    events = decide(state, command, now=now, limits=limits)
    for event in events:
        apply(state, event, limits=limits)
    return events


def session(status: Status = Status.RUNNING) -> SessionState:
    state = SessionState(session_id="sess_1")
    for kind in PATH_TO[status]:
        if kind == ABANDONED.command:
            give_up(state)
        else:
            do(state, Command(kind, SAMPLE[kind]))
    return state


def give_up(state: SessionState, *, now: datetime = NOW) -> Event | None:
    event = abandon(state, state.seq, "silence", now, now)
    if event is not None:
        apply(state, event, limits=LIMITS)
    return event


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.command)
@pytest.mark.parametrize("status", PATH_TO, ids=lambda status: status.value)
def test_every_command_is_legal_exactly_where_the_table_says(kind: Kind, status: Status) -> None:
    state = session(status)
    if kind.command == "timer.cancel" and status in kind.legal:
        do(state, Command("timer.set", SAMPLE["timer.set"]))
    before = codec.encode_snapshot(state, 1)
    if status in kind.legal:
        (event,) = do(state, Command(kind.command, SAMPLE[kind.command]))
        assert event.type == kind.event
        assert event.data == SAMPLE[kind.command]
    else:
        with pytest.raises(Rejected) as refusal:
            do(state, Command(kind.command, SAMPLE[kind.command]))
        assert isinstance(refusal.value, IllegalInStatus | AlreadyExists)
        assert codec.encode_snapshot(state, 1) == before


@pytest.mark.parametrize("kind", sorted(SAMPLE))
@pytest.mark.parametrize(
    "status", [status for status in PATH_TO if status.ended], ids=lambda status: status.value
)
def test_nothing_is_legal_in_a_sealed_session(kind: str, status: Status) -> None:
    state = session(status)
    do(state, Command("session.seal", Seal()))
    before = codec.encode_snapshot(state, 1)
    with pytest.raises(SessionSealed, match=r"sealed since .*; record a new session") as refusal:
        do(state, Command(kind, SAMPLE[kind]))
    assert refusal.value.sealed_at == NOW
    assert codec.encode_snapshot(state, 1) == before


def test_the_seal_says_when_and_leaves_the_rest_of_the_header_alone() -> None:
    state = session(Status.FAILED)
    before = state.header
    assert before is not None
    (event,) = do(state, Command("session.seal", Seal()), now=NOW + timedelta(hours=1))
    assert state.header == evolve(before, sealed_at=event.at)


def test_a_command_that_took_effect_is_answered_as_it_was_after_the_seal() -> None:
    state = session()
    line = SAMPLE["log.append"]
    known = [Command("log.append", line, "c1", "d"), Command("log.append", line, None, "", "rec", 1)]
    for command in known:
        do(state, command)
    do(state, Command("session.complete", SAMPLE["session.complete"]))
    seal = Command("session.seal", Seal(), None, "", "rec", 2)
    do(state, seal)
    for command in (*known, seal):
        assert do(state, command) == ()
    for command in (
        Command("log.append", line, "c1", "other"),
        Command("log.append", line, "c2", "d"),
        Command("log.append", line, None, "", "rec", 3),
        Command("log.append", line, None, "", "rec", 9),
        Command("log.append", line, None, "", "other", 1),
    ):
        with pytest.raises(SessionSealed):
            do(state, command)


@pytest.mark.parametrize("kind", [kind.command for kind in KINDS if kind.command != "session.create"])
def test_nothing_but_a_creation_is_legal_before_one(kind: str) -> None:
    with pytest.raises(NoSuchSession):
        do(SessionState(session_id="sess_1"), Command(kind, SAMPLE[kind]))


def test_there_is_a_path_into_every_status_here() -> None:
    assert set(PATH_TO) == set(Status)
    assert all(session(status).status is status for status in Status)


def test_every_end_has_its_event_and_no_other_event_is_one() -> None:
    ending = set()
    for status in (status for status in Status if status.ended):
        state = session(status)
        ending.add(next(kind.event for kind in KIND_BY_EVENT.values() if kind.command == PATH_TO[status][-1]))
        assert state.header is not None
        assert state.header.ended_at is not None
    assert ending == ENDING_EVENTS


@pytest.mark.parametrize("status", PATH_TO, ids=lambda status: status.value)
def test_a_session_is_abandoned_exactly_where_the_table_says(status: Status) -> None:
    state = session(status)
    before = codec.encode_snapshot(state, 1)
    event = give_up(state, now=NOW + timedelta(days=1))
    assert (event is not None) == (status in ABANDONED.legal) == (not status.ended)
    if event is None:
        assert codec.encode_snapshot(state, 1) == before
        return
    assert codec.decode_event(codec.encode_event(event)) == event
    header = state.header
    assert header is not None
    assert (header.status, header.outcome, header.exit_code) == (Status.ABANDONED, None, None)
    assert (header.reason, header.ended_at) == ("silence", NOW + timedelta(days=1))


def test_a_session_to_which_something_has_happened_since_is_not_abandoned() -> None:
    state = session()
    seq = state.seq
    do(state, Command("session.pause", Pause()))
    assert abandon(state, seq, "silence", NOW, NOW) is None
    assert abandon(SessionState(session_id="sess_1"), 0, "silence", NOW, NOW) is None


def test_a_session_whose_last_event_is_too_young_is_abandoned_only_where_a_timer_may_have_made_it() -> None:
    state = session()
    before = NOW - timedelta(seconds=1)
    assert abandon(state, state.seq, "silence", NOW, before) is None
    do(state, Command("timer.set", SAMPLE["timer.set"]))
    assert abandon(state, state.seq, "silence", NOW, before) is not None


def test_no_command_from_outside_abandons_a_session() -> None:
    assert ABANDONED.command not in KIND_BY_COMMAND
    state = session()
    with pytest.raises(IllegalInStatus) as refusal:
        do(state, Command(ABANDONED.command, Cancel()))
    assert "legal now: log.append" in str(refusal.value)
    assert str(refusal.value).count(ABANDONED.command) == 1


def test_seq_counts_from_one_without_a_gap() -> None:
    state = session(Status.COMPLETED)
    assert state.seq == 3


def test_an_events_time_never_falls() -> None:
    state = session()
    (event,) = do(state, Command("progress.report", SAMPLE["progress.report"]), now=NOW - timedelta(hours=1))
    assert event.at == NOW


def test_the_same_command_takes_effect_once() -> None:
    state = session()
    command = Command("log.append", SAMPLE["log.append"], "c1", "d")
    (event,) = do(state, command)
    do(state, Command("log.append", SAMPLE["log.append"]))
    assert do(state, command) == ()
    assert answer_seq(state, command) == event.seq
    assert state.counters["logs.lines"] == 2


def test_the_same_command_after_the_end_is_still_answered_as_it_was() -> None:
    state = session()
    command = Command("session.complete", SAMPLE["session.complete"], "c1", "d")
    do(state, command)
    assert do(state, command) == ()


def test_a_command_id_with_another_body_is_refused() -> None:
    state = session()
    do(state, Command("log.append", SAMPLE["log.append"], "c1", "d"))
    with pytest.raises(IdempotencyMismatch):
        do(state, Command("log.append", SAMPLE["log.append"], "c1", "other"))


def test_the_dedup_window_is_bounded_in_number_and_age() -> None:
    limits = evolve(LIMITS, dedup_commands_max=3)
    state = session()
    for n in range(5):
        do(state, Command("log.append", SAMPLE["log.append"], f"c{n}", "d"), limits=limits)
    assert list(state.commands) == ["c2", "c3", "c4"]
    for n in range(5, 7):
        do(state, Command("log.append", SAMPLE["log.append"], f"c{n}", "d"), now=NOW + timedelta(hours=25))
    assert list(state.commands) == ["c5", "c6"]


def test_a_source_is_taken_strictly_in_order() -> None:
    state = session()

    def send(n: int) -> tuple[Event, ...]:
        return do(state, Command("log.append", SAMPLE["log.append"], None, "", "rec", n))

    with pytest.raises(OutOfOrder) as gap:
        send(2)
    assert gap.value.expected == 1
    send(1)
    send(2)
    assert send(1) == ()
    assert send(2) == ()
    with pytest.raises(OutOfOrder):
        send(4)
    assert state.sources["rec"].n == 2


def test_a_refused_command_of_a_source_does_not_use_up_its_number() -> None:
    state = session(Status.CREATED)
    with pytest.raises(IllegalInStatus):
        do(state, Command("progress.report", SAMPLE["progress.report"], None, "", "rec", 1))
    assert do(state, Command("session.start", Start(), None, "", "rec", 1))


def test_sources_are_bounded() -> None:
    limits = evolve(LIMITS, sources_max=1)
    state = session()
    do(state, Command("log.append", SAMPLE["log.append"], None, "", "one", 1), limits=limits)
    with pytest.raises(LimitReached, match="sources_max"):
        do(state, Command("log.append", SAMPLE["log.append"], None, "", "two", 1), limits=limits)


def result(case: str, outcome: CaseOutcome = CaseOutcome.PASSED, message: str | None = None) -> Command:
    return Command(
        "result.record", RecordResult(case_id=case, outcome=outcome, duration_s=0.1, message=message)
    )


def test_a_case_recorded_again_replaces_its_result_and_the_counts_follow() -> None:
    state = session()
    do(state, result("a", CaseOutcome.FAILED, "why"))
    before = state.size_bytes
    do(state, result("a", CaseOutcome.PASSED))
    assert state.results["a"].outcome is CaseOutcome.PASSED
    assert state.results["a"].runs == 2
    assert (state.counters["results.failed"], state.counters["results.passed"]) == (0, 1)
    assert state.size_bytes == before - len("why")


def test_results_are_bounded_in_number_and_bytes_and_a_known_case_goes_on() -> None:
    state = session()
    limits = evolve(LIMITS, results_max=1)
    do(state, result("a"), limits=limits)
    with pytest.raises(LimitReached, match="results_max"):
        do(state, result("b"), limits=limits)
    do(state, result("a"), limits=limits)
    with pytest.raises(LimitReached, match="state_bytes_max"):
        do(state, result("c"), limits=evolve(LIMITS, state_bytes_max=state.size_bytes + 10))


def test_the_peak_of_memory_is_kept() -> None:
    state = session()
    for rss in (10, 30, 20):
        body = SampleResources(cpu_s=1, processes=1, read_bytes=0, rss_bytes=rss, written_bytes=0)
        do(state, Command("resource.sample", body))
    assert state.resources is not None
    assert (state.resources.rss_bytes, state.resources.rss_peak_bytes, state.resources.samples) == (20, 30, 3)


def test_an_event_that_does_not_follow_is_refused_loudly() -> None:
    state = session()
    with pytest.raises(AssertionError, match="does not follow"):
        apply(state, Event(NOW, None, Start(), 9, "session.started"), limits=LIMITS)


commands = st.lists(
    st.builds(
        lambda kind, key, n: Command(kind, SAMPLE[kind], *((f"c{n}", "d") if key else (None, ""))),
        st.sampled_from(sorted(SAMPLE)),
        st.booleans(),
        st.integers(0, 5),
    ),
    max_size=40,
)


@given(commands, st.integers(0, 40))
def test_recovered_state_is_the_fold_of_the_events_from_any_snapshot(given_: list[Command], cut: int) -> None:
    """I5. A snapshot at any seq and the events above it give the same state as all events; a copy stays as it is."""
    state = SessionState(session_id="sess_1")
    events: list[Event] = []
    snapshot, copy = codec.encode_snapshot(state, 1), copy_state(state)
    for command in given_:
        try:
            events += do(state, command)
        except Rejected:
            continue
        if state.seq <= cut:
            snapshot, copy = codec.encode_snapshot(state, 1), copy_state(state)
    assert codec.encode_snapshot(copy, 1) == snapshot
    lines = codec.encode_events(events)
    assert list(codec.decode_events(lines)) == events
    expected = codec.encode_snapshot(state, 1)
    assert codec.encode_snapshot(fold("sess_1", events, limits=LIMITS), 1) == expected
    recovered = codec.decode_snapshot(snapshot).state
    for event in codec.decode_events(lines, recovered.seq):
        apply(recovered, event, limits=LIMITS)
    assert codec.encode_snapshot(recovered, 1) == expected
    assert list(recovered.commands) == list(state.commands)
