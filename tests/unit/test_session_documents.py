"""A state as named documents: what an event touches is all that changes, and the documents are the whole state."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.actors.errors import CallerError, Damaged
from sojourn.actors.session import codec
from sojourn.actors.session.actor import AcceptLoss, Batch, GiveUp, SessionActor, Surroundings, Tick
from sojourn.actors.session.commands import TIMER_FIRED, Command, SetTimer
from sojourn.actors.session.documents import all_documents, state_of
from sojourn.actors.session.model import Limits, SessionState, TimerClock
from tests.unit.test_session_core import SAMPLE, session

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
LIMITS = Limits(dedup_commands_max=3, dedup_age_s=50)

sent = st.lists(
    st.tuples(
        st.sampled_from([*sorted(SAMPLE), TIMER_FIRED.command]),
        st.one_of(st.none(), st.integers(0, 9), st.sampled_from(["gw0", "gw1"])),
        st.integers(0, 30),  # seconds since the one before
        st.booleans(),  # the slot ends here
    ),
    max_size=40,
)


@given(sent)
def test_the_documents_of_each_record_keep_a_mirror_equal_to_the_state(
    commands: list[tuple[str, int | str | None, int, bool]],
) -> None:
    around = Surroundings(epoch=1, limits=LIMITS, now=NOW, mirrored=True)
    actor = SessionActor(SessionState(session_id="sess_1"), around)
    mirror: dict[str, bytes] = {}
    numbers = {"gw0": 0, "gw1": 0}
    for kind, key, pause_s, ends in commands:
        around.now += timedelta(seconds=pause_s)
        if kind == TIMER_FIRED.command:
            actor.receive(Tick())
            continue
        if isinstance(key, str):
            command = Command(kind, SAMPLE[kind], source=key, n=numbers[key] + 1)
        else:
            command = Command(kind, SAMPLE[kind], *((f"c{key}", "d") if key is not None else (None, "")))
        (answer,) = actor.receive(Batch([command]))
        if isinstance(key, str) and not isinstance(answer, CallerError):
            numbers[key] += 1
        if not ends:
            continue
        record = actor.close_slot()
        if record is not None:
            assert record.documents is not None
            fold_into(mirror, record.documents)
            assert mirror == dict(all_documents(actor.state))
    if (record := actor.close_slot()) is not None:
        fold_into(mirror, record.documents or {})
    if actor.state.header is not None:
        recovered = state_of("sess_1", actor.state.seq, mirror)
        assert codec.encode_snapshot(recovered, 1) == codec.encode_snapshot(actor.state, 1)
        assert list(recovered.commands) == list(actor.state.commands)


def fold_into(mirror: dict[str, bytes], documents: "dict[str, bytes | None] | object") -> None:
    assert isinstance(documents, dict)
    for name, document in documents.items():
        if document is None:
            mirror.pop(name, None)
        else:
            mirror[name] = document


def test_the_end_of_a_session_takes_its_timers_from_the_mirror() -> None:
    around = Surroundings(epoch=1, limits=Limits(), now=NOW, mirrored=True)
    actor = SessionActor(session(), around)
    mirror = dict(all_documents(actor.state))
    for key, clock in (("a", TimerClock.ACTIVE), ("b", TimerClock.WALL)):
        actor.receive(Command("timer.set", SetTimer(key=key, after_s=5.0, clock=clock)))
    record = actor.close_slot()
    assert record is not None
    assert set(record.documents or {}) == {"active_clock", "meta", "timers/a", "timers/b"}
    fold_into(mirror, record.documents)
    assert codec.encode_snapshot(state_of("sess_1", actor.state.seq, mirror), 1) == codec.encode_snapshot(
        actor.state, 1
    )
    actor.receive(Command("session.complete", SAMPLE["session.complete"]))
    record = actor.close_slot()
    assert record is not None
    fold_into(mirror, record.documents)
    assert mirror.keys() == {"header", "meta"}


def test_a_loss_that_is_accepted_stands_among_the_documents() -> None:
    actor = SessionActor(session(), Surroundings(epoch=1, limits=Limits(), now=NOW, mirrored=True))
    actor.receive(AcceptLoss(1, 1))
    record = actor.close_slot()
    assert record is not None
    assert set(record.documents or {}) == {"losses", "meta"}


def test_a_session_that_is_abandoned_has_another_header() -> None:
    actor = SessionActor(session(), Surroundings(epoch=1, limits=Limits(), now=NOW, mirrored=True))
    before = dict(all_documents(actor.state))
    actor.receive(GiveUp(actor.state.seq, "silence", NOW))
    record = actor.close_slot()
    assert record is not None
    fold_into(before, record.documents)
    assert before == dict(all_documents(actor.state))


def test_without_a_mirror_no_documents_are_made() -> None:
    actor = SessionActor(session(), Surroundings(epoch=1, limits=Limits(), now=NOW))
    actor.receive(Command("progress.report", SAMPLE["progress.report"]))
    record = actor.close_slot()
    assert record is not None
    assert record.documents is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"meta": None}, "lacks its documents"),
        ({"header": None}, "lacks its documents"),
        ({"header": b"{"}, "cannot be read"),
        ({"results/m::a": b"\xff"}, "cannot be read"),
        ({"plans/x": b"{}"}, "does not know"),
        ({"results": b"{}"}, "does not know"),
    ],
)
def test_documents_that_make_no_state_are_damage(change: dict[str, bytes | None], says: str) -> None:
    documents = dict(all_documents(session()))
    fold_into(documents, change)
    with pytest.raises(Damaged, match=says):
        state_of("sess_1", 1, documents)
