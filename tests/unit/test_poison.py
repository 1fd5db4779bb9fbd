"""What is set aside, as it is kept: identities, documents, bounds."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from sojourn.actors.errors import Damaged, InvalidCommand
from sojourn.actors.ports import Identity, InFlight, Record, RecordKind
from sojourn.actors.session import poison
from sojourn.actors.session.codec import command_digest
from sojourn.actors.session.commands import KINDS, AppendLog, Command
from sojourn.actors.session.poison import (
    Attempt,
    Hold,
    Ledger,
    Poison,
    command_document,
    command_of,
    encode_mark,
    identity_document,
    identity_in_flight,
    identity_of,
    poison_of,
    with_command,
)
from sojourn.actors.session.wire import read_command, read_create

AT = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
FIELDS: dict[str, dict[str, Any]] = {
    "session.pause": {"reason": "r"},
    "session.complete": {"outcome": "failed", "exit_code": -9, "reason": "r"},
    "session.fail": {"exit_code": 1},
    "session.cancel": {"reason": "r"},
    "progress.report": {"done": 1, "total": 2, "message": "m"},
    "result.record": {
        "case_id": "c",
        "outcome": "xfailed",
        "duration_s": 0.25,
        "started_at": "2026-11-22T10:15:30.123456Z",
        "details": "ä\n",
    },
    "log.append": {"stream": "stdout", "text": "\u2028 x", "level": "info", "invalid_utf8": True},
    "timer.set": {"key": "k", "after_s": 1.5, "every_s": 60.0},
    "timer.cancel": {"key": "k"},
    "resource.sample": {"cpu_s": 1.5, "processes": 1, "read_bytes": 2, "rss_bytes": 3, "written_bytes": 4},
}


def line(text: str = "x", **identity: Any) -> Command:
    return read_command({"type": "log.append", "stream": "stdout", "text": text, **identity})


def entry(**changes: Any) -> Poison:
    return evolve(poison_of(line(command_id="c1"), RuntimeError("boom"), at=AT, attempts=2), **changes)


def mark(
    value: Poison | Hold | Attempt,
    number: int = 1,
    kind: RecordKind = RecordKind.QUARANTINE,
    session_id: str = "s",
) -> Record:
    return Record(session_id, number, 0, 1, encode_mark(value), kind)


@pytest.mark.parametrize("kind", [kind.command for kind in KINDS])
@pytest.mark.parametrize("identity", [{}, {"command_id": "c1"}, {"source": "rep", "n": 3}])
def test_every_command_is_read_from_its_document_as_it_was(kind: str, identity: dict[str, Any]) -> None:
    if kind == "session.create":
        given = {"title": "t", "metadata": {"a": 1, "b": None}, "environment": {"python": "3.11"}}
        command = read_create(given | ({"command_id": "c1"} if "command_id" in identity else {}))
    else:
        command = read_command({"type": kind, **FIELDS.get(kind, {}), **identity})
    assert command_of(command_document(command)) == command


def test_a_document_is_read_as_strictly_as_a_command_from_outside() -> None:
    with pytest.raises(InvalidCommand):
        command_of({"type": "log.append", "stream": "stdout", "text": "x", "colour": "red"})


def test_an_edited_command_is_known_by_the_digest_of_what_its_sender_sent() -> None:
    sent, edited = line("x", command_id="c1"), command_document(line("y", command_id="c1"))
    assert command_of(edited, sent.digest).digest == sent.digest
    assert command_of(command_document(line("y", source="rep", n=1)), "d").digest == ""


@pytest.mark.parametrize(
    ("command", "in_flight", "shown"),
    [
        (line(command_id="c 1"), (Identity.COMMAND_ID, 0, "c 1"), {"command_id": "c 1"}),
        (line(source="a b", n=7), (Identity.SOURCE, 7, "a b"), {"n": 7, "source": "a b"}),
        (line(), (Identity.DIGEST, 0, command_digest(line())), {}),
    ],
)
def test_a_command_is_told_by_the_same_identity_wherever_it_is_found(
    command: Command, in_flight: tuple[Identity, int, str], shown: dict[str, Any]
) -> None:
    kind, n, name = in_flight
    identity = identity_of(command)
    assert identity_in_flight(InFlight(session_id="s", kind=kind, n=n, name=name)) == identity
    assert identity_document(identity) == shown


def test_what_cannot_be_written_is_kept_as_the_start_of_its_text() -> None:
    unwritable: Any = object()
    command = Command("log.append", AppendLog(stream="stdout", text=unwritable))
    found = poison_of(command, RuntimeError("two\nlines"), at=AT, attempts=2)
    assert (found.command, found.digest, found.crash) == (None, None, "RuntimeError: two lines")
    assert found.text is not None
    assert "log.append" in found.text


def test_a_traceback_is_kept_by_its_end() -> None:
    found = poison_of(line(), RuntimeError("x" * 100_000 + "the end"), at=AT, attempts=2)
    assert found.traceback is not None
    assert len(found.traceback) == poison.TRACEBACK_CHARACTERS_MAX
    assert found.traceback.endswith("the end\n")
    assert len(found.crash) == poison.TEXT_CHARACTERS_MAX


def test_the_ledger_says_what_the_marks_say() -> None:
    ledger = Ledger()
    first, attempt = entry(), Attempt(at=AT, identity="command_id 0 c2")
    hold = Hold(at=AT, crash="c", traceback="t")
    for one in (mark(first), mark(attempt, 2, RecordKind.ATTEMPT), mark(hold, 0)):
        ledger.put(one)
    account = ledger.accounts["s"]
    assert (account.poison, account.attempts, account.hold) == ({1: first}, {2: attempt}, hold)
    assert (account.numbered(first.identity), account.attempted(attempt.identity)) == (1, 2)
    assert (ledger.count, ledger.held(), ledger.hold("s")) == (1, ["s"], hold)
    ledger.put(mark(entry(identity=attempt.identity), 2))  # it has killed twice
    assert (account.attempts, account.numbered(attempt.identity), ledger.count) == ({}, 2, 2)
    for number in (0, 1, 2):
        ledger.put(Record("s", number, 0, 1, b"", RecordKind.RELEASE))
    assert (ledger.accounts, ledger.count, ledger.held(), ledger.hold("s")) == ({}, 0, [], None)
    assert ledger.next_number() == 3


def test_a_message_is_found_by_the_id_it_was_sent_again_under() -> None:
    ledger = Ledger()
    ledger.put(mark(entry(identity="source 1 rep", sent_as="quarantined 1 rep")))
    account = ledger.accounts["s"]
    assert account.numbered("source 1 rep") == account.numbered("command_id 0 quarantined 1 rep") == 1
    assert account.numbered("command_id 0 other") is None


@pytest.mark.parametrize("kind", [RecordKind.QUARANTINE, RecordKind.ATTEMPT])
@pytest.mark.parametrize("number", [0, 1])
def test_a_mark_that_this_version_cannot_read_is_damaged_and_changes_nothing(
    kind: RecordKind, number: int
) -> None:
    ledger = Ledger()
    for payload in (b"", b"{}", b"[]", b"\xff"):
        with pytest.raises(Damaged):
            ledger.put(Record("s", number, 0, 1, payload, kind))
    assert ledger.accounts == {}


def test_a_session_is_bounded_in_messages_and_bytes() -> None:
    ledger = Ledger()
    for number in range(1, poison.ENTRIES_A_SESSION_MAX + 1):
        assert ledger.has_room("s", number, 1)
        ledger.put(mark(entry(), number))
    assert not ledger.has_room("s", 1_000, 1)
    assert ledger.has_room("s", 7, 1)  # in place of what stands there
    assert ledger.has_room("t", 1_000, poison.BYTES_A_SESSION_MAX)
    assert not ledger.has_room("t", 1_000, poison.BYTES_A_SESSION_MAX + 1)
    held = ledger.accounts["s"].sizes
    assert ledger.has_room("s", 7, poison.BYTES_A_SESSION_MAX - sum(held.values()) + held[7])
    assert not ledger.has_room("s", 7, poison.BYTES_A_SESSION_MAX - sum(held.values()) + held[7] + 1)


def test_all_sessions_together_are_bounded_in_bytes() -> None:
    ledger = Ledger()
    large = mark(entry(traceback="x" * (poison.BYTES_A_SESSION_MAX - 10_000)))
    for n in range(1, 1 + poison.BYTES_MAX // len(large.payload)):
        assert ledger.has_room(f"s{n}", n, len(large.payload))
        ledger.put(evolve(large, session_id=f"s{n}", first_seq=n))
    assert not ledger.has_room("another", 1_000, len(large.payload))


def test_all_sessions_together_are_bounded_in_messages() -> None:
    ledger = Ledger()
    one = mark(entry())
    for n in range(1, poison.ENTRIES_MAX + 1):
        ledger.put(evolve(one, session_id=f"s{n}", first_seq=n))
    assert not ledger.has_room("another", 100_000, 1)


def test_the_newest_attempts_are_kept() -> None:
    ledger = Ledger()
    for n in range(5):
        attempt = Attempt(at=AT + timedelta(seconds=n), identity=f"command_id 0 c{n}")
        ledger.put(mark(attempt, n + 1, RecordKind.ATTEMPT, f"s{n % 2}"))
    assert ledger.older_attempts(3) == [("s1", 2), ("s0", 1)]
    assert ledger.older_attempts(5) == []


def test_an_attempt_that_is_forgiven_counts_no_more_and_waits_to_be_taken_back() -> None:
    ledger = Ledger()
    ledger.put(mark(Attempt(at=AT, identity="command_id 0 c1"), 1, RecordKind.ATTEMPT))
    ledger.put(mark(Attempt(at=AT, identity="command_id 0 c2"), 2, RecordKind.ATTEMPT))
    ledger.forgive("s", 1)
    assert ledger.accounts["s"].attempted("command_id 0 c1") is None
    ledger.forgive("s", 2)
    assert (ledger.accounts, ledger.forgiven) == ({}, [("s", 1), ("s", 2)])


def test_a_command_that_killed_its_process_is_kept_whole_once_it_is_known() -> None:
    killed = entry(command=None, digest=None, killed=True, identity="command_id 0 c1")
    known = with_command(killed, line("y", command_id="c1"))
    assert known.command == command_document(line("y", command_id="c1"))
    assert known.digest == line("y", command_id="c1").digest
    assert known.killed
