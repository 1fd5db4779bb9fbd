"""The counts behind the progress line and the summary."""

from typing import Any

import pytest

from sojourn.record.progress import Plain, progress_text
from sojourn.record.tally import FAILED_CASES_SHOWN, Tally, duration_text


def result(case_id: str, outcome: str, **fields: Any) -> dict[str, Any]:
    return {"type": "result.record", "source": "pytest-1", "case_id": case_id, "outcome": outcome, **fields}


def progress(done: int, total: int, source: str = "pytest-1") -> dict[str, Any]:
    return {"type": "progress.report", "source": source, "done": done, "total": total}


def tally(*commands: dict[str, Any]) -> Tally:
    made = Tally()
    for command in commands:
        made.observe(command)
    return made


def test_a_case_that_is_recorded_again_counts_with_its_last_outcome() -> None:
    counted = tally(result("m::a", "failed"), result("m::b", "passed"), result("m::a", "passed"))
    assert counted.counts_text() == "2 passed"
    assert counted.failed_cases == {}


def test_the_first_failed_cases_are_kept_with_what_they_said() -> None:
    counted = tally(*(result(f"m::{i}", "error", message=f"no {i}") for i in range(30)))
    assert counted.failures == 30
    assert list(counted.failed_cases.items())[:2] == [("m::0", "no 0"), ("m::1", "no 1")]
    assert len(counted.failed_cases) == FAILED_CASES_SHOWN


def test_several_pytest_processes_add_up() -> None:
    counted = tally(progress(10, 20), progress(1, 5, "pytest-2"), progress(12, 20))
    assert (counted.done, counted.total) == (13, 25)


def test_results_count_before_the_next_progress_report() -> None:
    assert tally(progress(0, 2), result("m::a", "passed")).done == 1


def test_nothing_is_said_of_the_time_that_is_left_before_a_test_has_ended() -> None:
    assert tally(progress(0, 20)).left_s is None


def test_the_time_that_is_left_follows_the_pace_so_far() -> None:
    counted = tally(progress(10, 30))
    counted.started -= 100
    assert counted.left_s == pytest.approx(200, rel=0.01)


def test_a_malformed_command_is_left_to_the_server() -> None:
    assert tally({}, {"type": "result.record"}, {"type": "progress.report", "source": "x"}).cases == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (185, "3 min 05 s"), (7_620, "2 h 07 min")]
)
def test_a_duration_reads_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_progress_line_tells_counts_share_and_time() -> None:
    counted = tally(
        progress(0, 8), *(result(f"m::{i}", "passed") for i in range(3)), result("m::x", "failed")
    )
    counted.started -= 10
    assert progress_text(counted) == "4/8 (50 %): 3 passed, 1 failed; 10.0 s, about 10.0 s left"


def test_a_command_without_tests_shows_its_lines() -> None:
    counted = tally()
    counted.log_lines = 1_234
    assert progress_text(counted).startswith("1,234 lines; ")


def test_in_a_pipe_a_line_comes_now_and_then_and_only_if_something_happened(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen, counted = Plain(), tally(progress(0, 8), result("m::a", "passed"))
    screen.show(counted)  # too early
    counted.started -= 6
    screen.show(counted)
    screen.show(counted)  # too early again
    counted.started -= 20
    screen.show(counted)  # nothing new
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("sojourn: 1/8 (12 %): 1 passed")
    assert said.err.isprintable() or "\x1b" not in said.err
