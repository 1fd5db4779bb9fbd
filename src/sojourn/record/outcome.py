"""What came of a session, from how its command ended (pure)."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from attrs import frozen

from .limit import EXIT_OVER_LIMIT, reason
from .process import Ended, exit_code_of, signal_name

# pytest: interrupted, internal error, usage error. 1 is failed tests, 5 that none were collected.
PYTEST_ERROR_CODES = frozenset({2, 3, 4})
PYTEST_NOTHING_COLLECTED = 5
PYTEST_NAMES = frozenset({"pytest", "py.test"})


@frozen(kw_only=True)
class Verdict:
    """How a session ends: its status and outcome, and with which exit code `record` does."""

    status: str
    outcome: str
    reason: str | None
    exit_code: int
    recorder_exit_code: int

    def command(self) -> dict[str, Any]:
        """The command that ends the session."""
        command: dict[str, Any] = {"exit_code": self.exit_code}
        if self.reason is not None:
            command["reason"] = self.reason
        match self.status:
            case "completed":
                return {"type": "session.complete", "outcome": self.outcome, **command}
            case "failed":
                return {"type": "session.fail", **command}
            case _:
                return {"type": "session.cancel", **command}


def verdict(
    ended: Ended,
    *,
    interrupted_by: int | None,
    runs_pytest: bool,
    failed_before: int | None = None,
    over_limit_s: float | None = None,
) -> Verdict:
    """The verdict on a command.

    A resumed session is judged whole: it has not passed while a case of an earlier attempt stands as failed, and a pytest
    that had nothing left to run has not failed. The exit code stays the command's.

    Args:
        interrupted_by: the signal with which the user stopped the recording, or None.
        runs_pytest: whether the command is pytest itself, whose exit codes 2 to 4 say that it could not do its work.
        over_limit_s: the time limit for which the recorder ended it, or None.
        failed_before: in a resumed session, how many of its cases stand as failed now; otherwise None.
    """
    code = exit_code_of(ended)
    if interrupted_by is not None:
        return Verdict(
            status="cancelled",
            outcome="cancelled",
            reason=f"stopped by {signal_name(interrupted_by)}",
            exit_code=code,
            recorder_exit_code=128 + interrupted_by,
        )
    if over_limit_s is not None:
        return Verdict(
            status="failed",
            outcome="error",
            reason=reason(over_limit_s),
            exit_code=code,
            recorder_exit_code=EXIT_OVER_LIMIT,
        )
    if ended.signal is not None:
        why = f"ended by {signal_name(ended.signal)}"
        return Verdict(status="failed", outcome="error", reason=why, exit_code=code, recorder_exit_code=code)
    if runs_pytest and code in PYTEST_ERROR_CODES:
        why = f"pytest ended with exit code {code}"
        return Verdict(status="failed", outcome="error", reason=why, exit_code=code, recorder_exit_code=code)
    outcome = "passed" if code == 0 else "failed"
    said: str | None = None
    if failed_before is not None:
        if runs_pytest and code == PYTEST_NOTHING_COLLECTED:
            outcome, said = "passed", "every case had a result"
        if outcome == "passed" and failed_before:
            outcome, said = "failed", f"{failed_before:,} cases failed in an earlier attempt"
    return Verdict(status="completed", outcome=outcome, reason=said, exit_code=code, recorder_exit_code=code)


def runs_pytest(command: Sequence[str]) -> bool:
    """Whether the exit code of this command line is pytest's own: `pytest`, `python -m pytest`, `uv run pytest` ..."""
    return any(PurePath(word).name in PYTEST_NAMES for word in command)
