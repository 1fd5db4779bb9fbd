"""What has been recorded so far, for the progress line and the summary."""

import contextlib
import time
from collections import Counter
from typing import Any

from attrs import define, field

FAILED_CASES_SHOWN = 10
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


@define
class Tally:
    """Counts of one recording. A case that is recorded again counts once, as on the server.

    `lost` is by type of command: what found no room to wait for its delivery.
    """

    started: float = field(factory=time.monotonic)
    log_lines: int = 0
    lost: Counter[str] = field(factory=Counter)
    failed_cases: dict[str, str] = field(factory=dict)
    _outcomes: dict[str, str] = field(factory=dict)
    _counts: Counter[str] = field(factory=Counter)
    _progress: dict[str, tuple[int, int]] = field(factory=dict)

    def observe(self, command: dict[str, Any]) -> None:
        """Take one of a reporter's commands into account."""
        # One that is malformed is for the server to judge.
        with contextlib.suppress(KeyError, TypeError):
            match command["type"]:
                case "result.record":
                    self._result(command)
                case "progress.report":
                    self._progress[command["source"]] = (int(command["done"]), int(command["total"]))

    def _result(self, command: dict[str, Any]) -> None:
        case_id, outcome = command["case_id"], command["outcome"]
        before = self._outcomes.get(case_id)
        if before is not None:
            self._counts[before] -= 1
        self._outcomes[case_id] = outcome
        self._counts[outcome] += 1
        if outcome in ("failed", "error"):
            if len(self.failed_cases) < FAILED_CASES_SHOWN:
                self.failed_cases[case_id] = command.get("message") or outcome
        elif before in ("failed", "error"):
            self.failed_cases.pop(case_id, None)

    @property
    def counts(self) -> dict[str, int]:
        """Cases by outcome, all six."""
        return {outcome: self._counts[outcome] for outcome in OUTCOMES}

    @property
    def cases(self) -> int:
        """How many cases have a result."""
        return len(self._outcomes)

    @property
    def failures(self) -> int:
        """How many of them failed or could not run."""
        return self._counts["failed"] + self._counts["error"]

    @property
    def done(self) -> int:
        """How many tests have ended: results are counted at once, the reporters' own counts come now and then."""
        return max(self.cases, sum(done for done, _ in self._progress.values()))

    @property
    def total(self) -> int:
        """How many tests were collected, by all pytest processes together; 0 while that is unknown."""
        return sum(total for _, total in self._progress.values())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the recording began."""
        return time.monotonic() - self.started

    @property
    def left_s(self) -> float | None:
        """About how long the rest takes, at the pace so far; None while nothing can be said."""
        if not self.total or not self.done:
            return None
        return self.elapsed_s * max(0, self.total - self.done) / self.done

    def lost_text(self) -> str:
        """`12,345 lines of output, 2 results`; empty where nothing was lost."""
        names = {"log.append": "lines of output", "result.record": "results", "resource.sample": "samples"}
        counts: Counter[str] = Counter()
        for kind, number in self.lost.items():
            counts[names.get(kind, "other reports")] += number
        return ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)

    def counts_text(self) -> str:
        """`418 passed, 2 failed`."""
        return (
            ", ".join(f"{count:,} {outcome}" for outcome, count in self.counts.items() if count) or "no tests"
        )


def duration_text(seconds: float) -> str:
    """`14.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
