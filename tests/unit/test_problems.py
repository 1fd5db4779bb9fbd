"""Every error has its row, and answers as docs/protocol.md says."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Scope

from sojourn.actors import errors
from sojourn.actors.errors import FieldError, InvalidCommand, SojournError
from sojourn.http import problems
from sojourn.http.problems import PROBLEMS, line_error, problem_response, status_and_title

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
SCOPE: Scope = {"type": "http", "method": "GET", "path": "/api/v1/sessions/ä b"}

EXAMPLES: list[Exception] = [
    errors.AlreadyExists(),
    errors.Damaged(),
    errors.DeadlineExceeded(),
    errors.DurabilityUnavailable("mirrored", None),
    errors.FolderInUse("data", 7),
    errors.IdempotencyMismatch(),
    errors.IllegalInStatus("session.pause", "created", ("session.start",)),
    errors.IntensityExceeded(),
    errors.LimitReached("results_max", 7),
    errors.MailboxFull("the mailbox", 2.5),
    errors.NoSuchSession("x"),
    errors.NoSuchTimer("k"),
    errors.NotOpen(),
    errors.NotQuarantined("x", 1),
    errors.NotResendable(),
    errors.NotSealed("x", "running"),
    errors.OutOfOrder("s", 5, 3),
    errors.Quarantined(),
    errors.SessionQuarantined("x", 3, "RuntimeError: boom"),
    errors.SetAside("x", 3, 4),
    errors.SessionSealed("x", datetime(2026, 11, 22, tzinfo=UTC)),
    errors.StaleEpoch(),
    errors.Stopped(),
    errors.StorageFull(),
    errors.StoreUnavailable(),
    errors.TooLarge("a body", 10),
    errors.UnusableFolder(),
    InvalidCommand((FieldError(code="unknown_field", detail="d", pointer="/x"),)),
    problems.InvalidRequest("parameter", "limit", "d"),
    problems.MethodNotAllowed("PUT", "GET"),
    problems.NoSuchPath(),
    problems.SlowBody(),
    problems.Unauthorized(),
    problems.UnsupportedMediaType(),
    problems.WrongHost(),
]


def document(error: Exception) -> tuple[dict[str, Any], dict[str, str]]:
    response = problem_response(error, SCOPE, "req-1")
    body = json.loads(bytes(response.body))
    assert body["status"] == response.status_code
    return body, dict(response.headers)


def codes_of_the_protocol() -> dict[str, int]:
    """Code to status, as the table of docs/protocol.md has them."""
    rows = re.findall(r"^\| (`.*?`) \| (\d{3}) \|", PROTOCOL.read_text(), re.MULTILINE)
    return {code: int(status) for codes, status in rows for code in re.findall(r"`(\w+)`", codes)}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_answers_with_the_status_that_the_protocol_gives_its_code(error: Exception) -> None:
    problem, _ = document(error)
    expected = codes_of_the_protocol().get(problem["code"])
    assert expected in (None, problem["status"])


def test_every_code_of_the_protocol_is_answered_by_some_error() -> None:
    answered = {document(error)[0]["code"] for error in EXAMPLES}
    read_by_the_wire = {
        "invalid_json",
        "invalid_field",
        "unknown_field",
        "missing_field",
        "unknown_type",
        "invalid_utf8",
    }
    # `internal` is for what no table knows; its own test asks for it.
    assert set(codes_of_the_protocol()) <= answered | read_by_the_wire | {"internal"}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_a_problem_has_the_members_of_the_protocol(error: Exception) -> None:
    problem, headers = document(error)
    assert {"type", "title", "status", "detail", "instance", "code"} <= problem.keys()
    assert headers["content-type"] == "application/problem+json"
    assert problem["instance"] == "/api/v1/sessions/%C3%A4%20b"
    assert problem["type"] == f"urn:sojourn:problem:{problem['code']}"


def test_every_error_has_a_row_of_its_own_or_its_familys() -> None:
    def all_of(kind: type[SojournError]) -> list[type[SojournError]]:
        return [kind, *(deeper for inner in kind.__subclasses__() for deeper in all_of(inner))]

    ours = [kind for kind in all_of(SojournError) if kind.__module__.startswith("sojourn.actors")]
    families = {SojournError, errors.SupervisionError}
    without = [kind for kind in ours if not set(kind.__mro__) & set(PROBLEMS) and kind not in families]
    assert without == []


def test_a_full_mailbox_says_when_to_come_again_in_whole_seconds() -> None:
    assert document(errors.MailboxFull("it", 2.5))[1]["retry-after"] == "3"
    assert document(errors.MailboxFull("it", 0.01))[1]["retry-after"] == "1"
    assert document(errors.NotOpen())[1]["retry-after"] == "1"


def test_an_answer_before_the_end_of_a_body_closes_the_connection() -> None:
    assert document(errors.TooLarge("a body", 10))[1]["connection"] == "close"
    assert document(problems.SlowBody())[1]["connection"] == "close"
    assert "connection" not in document(errors.NoSuchSession("x"))[1]


def test_what_a_program_needs_stands_beside_the_code() -> None:
    assert document(errors.OutOfOrder("s", 5, 3))[0]["expected"] == 3
    assert document(errors.TooLarge("a body", 10))[0]["limit"] == 10
    assert document(errors.LimitReached("results_max", 7))[0]["limit"] == "results_max"
    done = errors.DurabilityUnavailable("mirrored", "durable", "it is away", session_id="s", seq=7)
    assert {name: document(done)[0][name] for name in ("reached", "session_id", "seq")} == {
        "reached": "durable",
        "session_id": "s",
        "seq": 7,
    }
    undone = document(errors.DurabilityUnavailable("mirrored", None))[0]
    assert undone["reached"] is undone["session_id"] is undone["seq"] is None


def test_every_wrong_field_is_listed() -> None:
    mistakes = tuple(FieldError(code="invalid_field", detail=f"d{n}", pointer=f"/{n}") for n in range(3))
    problem, _ = document(InvalidCommand(mistakes))
    assert problem["errors"] == [{"detail": f"d{n}", "pointer": f"/{n}"} for n in range(3)]


def test_an_unknown_error_says_nothing_of_the_inside() -> None:
    problem, _ = document(ZeroDivisionError("secret"))
    assert (problem["status"], problem["code"]) == (500, "internal")
    assert "secret" not in json.dumps(problem)
    assert "req-1" in problem["detail"]


def test_the_nearest_class_decides() -> None:
    class Newer(errors.StorageFull):
        pass

    assert status_and_title(Newer())[0] == 507


def test_a_line_carries_code_detail_and_pointer() -> None:
    assert line_error(errors.IdempotencyMismatch()) == {
        "code": "idempotency_mismatch",
        "detail": "This command id was used before with another body; a new command needs a new id.",
        "pointer": "/command_id",
    }
    assert line_error(errors.OutOfOrder("s", 5, 3))["expected"] == 3
    assert "pointer" not in line_error(errors.TooLarge("a line", 10))
