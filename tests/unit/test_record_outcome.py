"""What came of a session, and with which exit code `record` ends."""

import signal

import pytest

from sojourn.record.outcome import Verdict, runs_pytest, verdict
from sojourn.record.process import Ended


def judge(
    *,
    exit_code: int | None = None,
    killed_by: int | None = None,
    interrupted_by: int | None = None,
    pytest: bool = False,
    failed_before: int | None = None,
) -> Verdict:
    return verdict(
        Ended(exit_code, killed_by, 0.0),
        interrupted_by=interrupted_by,
        runs_pytest=pytest,
        failed_before=failed_before,
    )


@pytest.mark.parametrize(
    ("exit_code", "is_pytest", "status", "outcome"),
    [
        (0, False, "completed", "passed"),
        (0, True, "completed", "passed"),
        (1, False, "completed", "failed"),
        (1, True, "completed", "failed"),
        (2, False, "completed", "failed"),
        (2, True, "failed", "error"),
        (3, True, "failed", "error"),
        (4, True, "failed", "error"),
        (5, True, "completed", "failed"),
        (77, False, "completed", "failed"),
    ],
)
def test_an_exit_code_decides_status_and_outcome_and_is_records_own(
    exit_code: int, is_pytest: bool, status: str, outcome: str
) -> None:
    judged = judge(exit_code=exit_code, pytest=is_pytest)
    assert (judged.status, judged.outcome) == (status, outcome)
    assert judged.recorder_exit_code == judged.exit_code == exit_code


def test_a_command_that_a_signal_ended_could_not_do_its_work() -> None:
    judged = judge(killed_by=signal.SIGKILL)
    assert (judged.status, judged.outcome, judged.reason) == ("failed", "error", "ended by SIGKILL")
    assert judged.recorder_exit_code == 137


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("exit_code", [0, 2])
def test_a_recording_that_its_user_stopped_is_cancelled_however_the_command_took_it(
    number: int, code: int, exit_code: int
) -> None:
    judged = judge(exit_code=exit_code, interrupted_by=number, pytest=True)
    assert (judged.status, judged.outcome, judged.recorder_exit_code) == ("cancelled", "cancelled", code)
    assert judged.command() == {
        "type": "session.cancel",
        "exit_code": exit_code,
        "reason": f"stopped by {signal.Signals(number).name}",
    }


def test_each_status_is_reached_by_its_command() -> None:
    assert judge(exit_code=0).command() == {"type": "session.complete", "outcome": "passed", "exit_code": 0}
    assert judge(exit_code=3, pytest=True).command()["type"] == "session.fail"


@pytest.mark.parametrize(
    ("command", "is_pytest"),
    [
        (("pytest", "tests"), True),
        (("/usr/bin/py.test",), True),
        (("python", "-m", "pytest"), True),
        (("uv", "run", "--isolated", "pytest"), True),
        (("make", "test"), False),
        (("python", "run_pytest.py"), False),
    ],
)
def test_only_a_command_that_is_pytest_itself_has_its_exit_codes(
    command: tuple[str, ...], is_pytest: bool
) -> None:
    assert runs_pytest(command) is is_pytest


@pytest.mark.parametrize(
    ("exit_code", "is_pytest", "failed_before", "outcome", "reason"),
    [
        (0, True, 0, "passed", None),
        (0, True, 2, "failed", "2 cases failed in an earlier attempt"),
        (1, True, 2, "failed", None),
        (5, True, 0, "passed", "every case had a result"),
        (5, True, 1, "failed", "1 cases failed in an earlier attempt"),
        (5, False, 0, "failed", None),
    ],
)
def test_a_resumed_session_is_judged_whole(
    exit_code: int, is_pytest: bool, failed_before: int, outcome: str, reason: str | None
) -> None:
    judged = judge(exit_code=exit_code, pytest=is_pytest, failed_before=failed_before)
    assert (judged.outcome, judged.reason, judged.recorder_exit_code) == (outcome, reason, exit_code)


@pytest.mark.parametrize(
    ("exit_code", "killed_by"), [(0, None), (None, signal.SIGTERM), (None, signal.SIGKILL)]
)
def test_a_command_over_its_time_limit_has_failed_however_it_took_its_end(
    exit_code: int | None, killed_by: int | None
) -> None:
    judged = verdict(
        Ended(exit_code, killed_by, 0.0), interrupted_by=None, runs_pytest=True, over_limit_s=5_400.0
    )
    assert (judged.status, judged.outcome) == ("failed", "error")
    assert judged.reason == "over its time limit of 1 h 30 min"
    assert judged.recorder_exit_code == 124
