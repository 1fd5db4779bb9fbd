"""The session's core, run by Hypothesis against a model that keeps a list of what took effect and looks everything up in it.

Timers have a machine of their own (`test_session_timers.py`)."""

from datetime import UTC, datetime, timedelta

import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
from sojourn.actors.session.commands import (
    AppendLog,
    Body,
    Cancel,
    Command,
    Complete,
    Create,
    Event,
    Fail,
    Pause,
    RecordResult,
    ReportProgress,
    Resume,
    SampleResources,
    Seal,
    Start,
)
from sojourn.actors.session.core import RESULT_BYTES, abandon, answer_seq, apply, decide, fold
from sojourn.actors.session.model import CaseOutcome, Limits, Outcome, SessionState

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LIMITS = Limits(
    dedup_commands_max=4,
    dedup_age_s=60.0,
    results_max=2,
    sources_max=2,
    state_bytes_max=3 * RESULT_BYTES + 10,
)
BODIES: dict[str, Body] = {
    "session.create": Create(plan="p", title="t"),
    "session.start": Start(),
    "session.pause": Pause(reason="lunch"),
    "session.resume": Resume(),
    "session.complete": Complete(outcome=Outcome.PASSED),
    "session.fail": Fail(),
    "session.cancel": Cancel(),
    "session.seal": Seal(),
    "progress.report": ReportProgress(done=1, total=2),
    "log.append": AppendLog(stream="stdout", text="grün"),
    "resource.sample": SampleResources(cpu_s=1.0, processes=1, read_bytes=1, rss_bytes=7, written_bytes=1),
}
LEADS_TO = {
    "session.create": "created",
    "session.start": "running",
    "session.pause": "paused",
    "session.resume": "running",
    "session.complete": "completed",
    "session.fail": "failed",
    "session.cancel": "cancelled",
    "session.abandon": "abandoned",
}
WORK = {"progress.report", "result.record", "log.append", "resource.sample"}
LEGAL = {
    None: {"session.create"},
    "created": {"session.start", "session.fail", "session.cancel", "log.append"},
    "running": {"session.pause", "session.complete", "session.fail", "session.cancel"} | WORK,
    "paused": {"session.resume", "session.complete", "session.fail", "session.cancel"} | WORK,
}
ENDS = ("session.cancel", "session.complete", "session.fail", "session.seal")
OVER = {"session.seal", "log.append", "resource.sample"}


@define
class Happened:
    """A command that took effect, and when by the session's clock."""

    command: Command
    at_s: int


class SessionAgainstAList(RuleBasedStateMachine):
    """The model is the list of commands that took effect; the nth is the event of seq n."""

    @initialize()
    def begin(self) -> None:
        self.state = SessionState(session_id="sess_1")
        self.events: list[Event] = []
        self.happened: list[Happened] = []
        self.wall_s = 0

    # -- what the model knows --

    def status(self) -> str | None:
        steps = [LEADS_TO[one.command.type] for one in self.happened if one.command.type in LEADS_TO]
        return steps[-1] if steps else None

    def is_sealed(self) -> bool:
        return any(one.command.type == "session.seal" for one in self.happened)

    def now_s(self) -> int:
        return max([self.wall_s, *(one.at_s for one in self.happened)])

    def seqs_of(self, source: str) -> list[int]:
        return [seq for seq, one in enumerate(self.happened, 1) if one.command.source == source]

    def results(self) -> dict[str, list[RecordResult]]:
        """Every case with all its results, in the order in which the cases came first."""
        found: dict[str, list[RecordResult]] = {}
        for one in self.happened:
            if isinstance(one.command.body, RecordResult):
                found.setdefault(one.command.body.case_id, []).append(one.command.body)
        return found

    def named(self) -> list[tuple[int, Happened]]:
        """(seq, command) of those with an id."""
        return [(seq, one) for seq, one in enumerate(self.happened, 1) if one.command.command_id is not None]

    def size_bytes(self) -> int:
        last = [bodies[-1] for bodies in self.results().values()]
        return sum(RESULT_BYTES + len(body.case_id) + len(body.message or "") for body in last)

    def old_names(self, at: datetime) -> list[str]:
        horizon = at - timedelta(seconds=LIMITS.dedup_age_s)
        return [name for name, entry in self.state.commands.items() if entry.at < horizon]

    def expected(self, command: Command) -> type[Rejected] | int | None:
        """Why it is refused, or the seq with which its repetition is answered; None: it takes effect."""
        repeated: int | None = None
        refused: type[Rejected] | None = None
        if command.source is not None:
            seqs = self.seqs_of(command.source)
            sources = {one.command.source for one in self.happened} - {None}
            if command.n <= len(seqs):
                repeated = seqs[-1]
            elif command.n > len(seqs) + 1:
                refused = OutOfOrder
            elif command.source not in sources and len(sources) >= LIMITS.sources_max:
                refused = LimitReached
        elif command.command_id is not None and command.command_id in self.state.commands:
            seq, first = [one for one in self.named() if one[1].command.command_id == command.command_id][-1]
            if first.command.digest == command.digest:
                repeated = seq
            else:
                refused = IdempotencyMismatch
        if repeated is not None:
            return repeated
        if self.is_sealed():
            return SessionSealed
        return refused or self.refused_in_its_status(command)

    def refused_in_its_status(self, command: Command) -> type[Rejected] | None:
        status = self.status()
        if command.type not in LEGAL.get(status, OVER):
            if status is None:
                return NoSuchSession
            return AlreadyExists if command.type == "session.create" else IllegalInStatus
        if isinstance(command.body, RecordResult):
            new = command.body.case_id not in self.results()
            more = RESULT_BYTES + len(command.body.case_id) + len(command.body.message or "")
            if new and len(self.results()) >= LIMITS.results_max:
                return LimitReached
            if self.size_bytes() + more > LIMITS.state_bytes_max:
                return LimitReached
        return None

    # -- what is done --

    def send(self, command: Command) -> None:
        before = codec.encode_snapshot(self.state, 1)
        now = NOON + timedelta(seconds=self.wall_s)
        expected = self.expected(command)
        if isinstance(expected, type):
            with pytest.raises(expected):
                decide(self.state, command, now, LIMITS)
        else:
            events = decide(self.state, command, now, LIMITS)
            assert codec.encode_snapshot(self.state, 1) == before  # it decides and changes nothing
            if expected is None:
                self.takes_effect(Happened(command, self.now_s()), *events)
            else:
                assert events == ()
                assert answer_seq(self.state, command) == expected
        if expected is not None:
            assert codec.encode_snapshot(self.state, 1) == before

    def takes_effect(self, happened: Happened, event: Event) -> None:
        assert event.seq == len(self.happened) + 1
        assert event.at == NOON + timedelta(seconds=happened.at_s)
        assert event.data is happened.command.body
        old, full = self.old_names(event.at), len(self.state.commands) == LIMITS.dedup_commands_max
        apply(self.state, event, LIMITS)
        if happened.command.command_id is not None:
            # Two go with each that comes, so that it costs the same always; and one for whose place it takes.
            assert self.old_names(event.at) == old[3 if full else 2 :]
        self.events.append(event)
        self.happened.append(happened)

    @rule(seconds=st.sampled_from([-90, -1, 1, 20, 60, 61]))
    def the_clock_goes_or_steps(self, seconds: int) -> None:
        self.wall_s = max(0, self.wall_s + seconds)

    @rule(kind=st.sampled_from(["session.create", "session.start", "log.append"]))
    def goes_on(self, kind: str) -> None:
        """So that most runs get somewhere."""
        self.send(Command(kind, BODIES[kind]))

    @rule(kind=st.sampled_from(sorted(BODIES.keys() - ENDS)))
    def command(self, kind: str) -> None:
        self.send(Command(kind, BODIES[kind]))

    @rule(kind=st.sampled_from(ENDS), sealed=st.booleans())
    def ends(self, kind: str, sealed: bool) -> None:
        """With a seal behind, so that there are sealed ones."""
        self.send(Command(kind, BODIES[kind]))
        if sealed:
            self.send(Command("session.seal", Seal()))

    @rule(
        kind=st.sampled_from([*sorted(BODIES.keys() - ENDS), *["log.append"] * 5]),
        command_id=st.sampled_from("abcdef"),
        digest=st.sampled_from(["d", "d", "d", "other"]),
    )
    def named_command(self, kind: str, command_id: str, digest: str) -> None:
        self.send(Command(kind, BODIES[kind], command_id, f"{kind} {digest}"))

    @rule(
        kind=st.sampled_from([*sorted(BODIES.keys() - ENDS), *["log.append"] * 5]),
        source=st.sampled_from(["s", "s", "t", "u"]),
        ahead=st.sampled_from([-2, -1, 0, 0, 0, 0, 1]),
    )
    def numbered_command(self, kind: str, source: str, ahead: int) -> None:
        n = max(1, len(self.seqs_of(source)) + 1 + ahead)
        self.send(Command(kind, BODIES[kind], source=source, n=n))

    @precondition(lambda self: self.happened)
    @rule(back=st.integers(0, 7))
    def is_sent_again(self, back: int) -> None:
        command = self.happened[-1 - back % len(self.happened)].command
        if command.type != "session.abandon":
            self.send(command)

    @rule(
        case_id=st.sampled_from("xyz"),
        outcome=st.sampled_from(CaseOutcome),
        message=st.sampled_from([None, "", "short", "more than there is room for"]),
        times=st.sampled_from([1, 1, 3]),
    )
    def result(self, case_id: str, outcome: CaseOutcome, message: str | None, times: int) -> None:
        for _ in range(times):
            body = RecordResult(case_id=case_id, duration_s=0.5, message=message, outcome=outcome)
            self.send(Command("result.record", body))

    @rule(behind=st.sampled_from([0, 0, 1]), too_young=st.booleans())
    def is_given_up(self, behind: int, too_young: bool) -> None:
        now = NOON + timedelta(seconds=self.wall_s)
        before = (self.state.updated_at or now) - timedelta(seconds=too_young)
        event = abandon(self.state, self.state.seq - behind, "silence", now, before)
        may_end = self.status() in ("created", "running", "paused") and not behind
        if may_end and (self.state.timers or not too_young):
            assert event is not None
            self.takes_effect(Happened(Command("session.abandon", event.data), self.now_s()), event)
        else:
            assert event is None

    @precondition(lambda self: self.events)
    @rule()
    def is_recovered(self) -> None:
        """I5. From its snapshot, or from all its events as they are stored: it goes on with either."""
        stored = codec.decode_events(codec.encode_events(self.events))
        folded = codec.encode_snapshot(fold("sess_1", list(stored), limits=LIMITS), 1)
        assert folded == codec.encode_snapshot(self.state, 1)
        self.state = codec.decode_snapshot(folded).state

    # -- what holds all the while --

    @invariant()
    def the_state_says_what_the_list_says(self) -> None:
        if not hasattr(self, "state"):
            return
        state = self.state
        assert state.seq == len(self.happened)
        assert (state.status.value if state.status is not None else None) == self.status()
        assert state.updated_at == (self.events[-1].at if self.events else None)
        if state.header is not None:
            assert (state.header.sealed_at is not None) == self.is_sealed()
        assert state.size_bytes == self.size_bytes()
        sources = {one.command.source for one in self.happened if one.command.source is not None}
        assert {name: (mark.n, mark.seq) for name, mark in state.sources.items()} == {
            name: (len(self.seqs_of(name)), self.seqs_of(name)[-1]) for name in sources
        }

    @invariant()
    def results_and_counts_are_those_of_the_last_runs(self) -> None:
        if not hasattr(self, "state"):
            return
        found = self.results()
        assert {case: (one.outcome, one.message, one.runs) for case, one in self.state.results.items()} == {
            case: (bodies[-1].outcome, bodies[-1].message, len(bodies)) for case, bodies in found.items()
        }
        counted = {name: count for name, count in self.state.counters.items() if count}
        outcomes = [bodies[-1].outcome for bodies in found.values()]
        lines = [one.command.body for one in self.happened if isinstance(one.command.body, AppendLog)]
        expected = {f"results.{outcome.value}": outcomes.count(outcome) for outcome in outcomes}
        if lines:
            expected |= {
                "logs.lines": len(lines),
                "logs.bytes": sum(len(line.text.encode()) for line in lines),
            }
        assert counted == expected

    @invariant()
    def the_dedup_window_holds_the_young_ones_up_to_its_size_and_no_others(self) -> None:
        """I17."""
        if not hasattr(self, "state"):
            return
        newest = [seq for seq, _ in self.named()][-LIMITS.dedup_commands_max :]
        newest_at_s = max([one.at_s for _, one in self.named()], default=0)
        young = [seq for seq in newest if self.happened[seq - 1].at_s >= newest_at_s - LIMITS.dedup_age_s]
        held = [entry.first_seq for entry in self.state.commands.values()]
        assert set(young) <= set(held) <= set(newest)
        assert held == sorted(held)


SessionAgainstAList.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSessionAgainstAList = SessionAgainstAList.TestCase
