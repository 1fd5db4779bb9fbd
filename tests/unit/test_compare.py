"""The comparison of two sessions: its table, its verdict, and that it is the inverse of itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.runtime.history.compare import CLASSES, NotComparable, Side, classify, compare, pace

OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")

# Down: before; across: after, in the order of OUTCOMES and then absent. Written out by hand from the docstring's table.
P, F, M, N, X = "same-pass", "regressed", "malfunctioned", "not-run", "removed"
TABLE = {
    "passed": (P, F, M, N, P, P, X),
    "failed": ("fixed", "same-fail", "same-fail", N, "fixed", "fixed", X),
    "error": ("fixed", "same-fail", "same-fail", N, "fixed", "fixed", X),
    "skipped": (N, F, M, N, N, N, X),
    "xfailed": (P, F, M, N, P, P, X),
    "xpassed": (P, F, M, N, P, P, X),
    None: ("new",) * 6,
}


def side(
    results: dict[str, Any] | None = None,
    *,
    outcome: str | None = "passed",
    status: str = "completed",
    **fields: Any,
) -> Side:
    record: dict[str, Any] = {
        "session_id": "sess_" + "0" * 32,
        "title": "",
        "plan": "nightly",
        "status": status,
        "outcome": outcome,
        "exit_code": 0,
        "started_at": "2026-11-22T10:00:00Z",
        "ended_at": "2026-11-22T10:01:00Z",
        "duration_s": 60.0,
        "results": {},
        "resources": None,
        "environment": {},
        "metadata": {},
        "lost": False,
    }
    return Side(record={**record, **fields}, results=results or {})


def result(
    outcome: str, duration_s: float = 0.0, *, runs: int = 1, message: str | None = None
) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "duration_s": duration_s,
        "runs": runs,
        "message": message,
        "seq": 1,
        "started_at": None,
    }


def classes(document: dict[str, Any]) -> dict[str, str]:
    return {case["case_id"]: case["class"] for case in document["cases"]}


def test_every_pair_of_outcomes_has_the_class_of_the_table() -> None:
    for before, row in TABLE.items():
        for after, expected in zip((*OUTCOMES, None), row, strict=False):
            assert classify(before, after) == expected, (before, after)


def test_the_classes_of_the_table_are_all_the_classes() -> None:
    assert {name for row in TABLE.values() for name in row} == set(CLASSES)


def test_a_case_of_neither_session_has_no_class() -> None:
    with pytest.raises(ValueError, match="neither"):
        classify(None, None)


@pytest.mark.parametrize(
    ("before_s", "after_s", "expected"),
    [
        (0.0, 0.05, None),  # at the floor of 50 ms
        (0.0, 0.051, "slower"),
        (10.0, 11.0, None),  # at 10 %
        (10.0, 11.5, "slower"),
        (11.5, 10.0, "faster"),
        (0.010, 0.040, None),  # four times as long, and still too little to tell from noise
    ],
)
def test_a_duration_is_flagged_only_beyond_ten_percent_and_fifty_milliseconds(
    before_s: float, after_s: float, expected: str | None
) -> None:
    assert pace(before_s, after_s) == expected


def test_a_case_that_fails_quickly_is_not_called_faster() -> None:
    document = compare(side({"a": result("passed", 9.0)}), side({"a": result("failed", 0.1)}))
    assert document["pace"] == {"slower": 0, "faster": 0}
    assert document["cases"][0]["pace"] is None


def test_a_regression_makes_the_verdict_worse_and_says_so() -> None:
    document = compare(
        side({"a": result("passed"), "b": result("failed")}),
        side({"a": result("failed"), "b": result("passed")}),
    )
    assert document["verdict"] == "worse"
    assert document["reasons"] == ["1 case regressed"]
    assert document["counts"]["fixed"] == 1


def test_an_outcome_that_got_worse_makes_the_verdict_worse_without_any_case() -> None:
    document = compare(side(outcome="failed"), side(outcome="error"))
    assert (document["verdict"], document["reasons"]) == (
        "worse",
        ["the session's outcome went from failed to error"],
    )


def test_an_end_without_an_outcome_counts_like_an_error() -> None:
    assert compare(side(), side(outcome=None, status="abandoned"))["verdict"] == "worse"
    assert compare(side(outcome="error"), side(outcome=None, status="abandoned"))["verdict"] == "same"


def test_a_fixed_case_and_nothing_worse_is_better() -> None:
    document = compare(side({"a": result("error")}, outcome="failed"), side({"a": result("passed")}))
    assert document["verdict"] == "better"
    assert document["reasons"] == ["1 case fixed", "the session's outcome went from failed to passed"]


def test_a_session_compared_with_itself_is_the_same() -> None:
    one = side({"a": result("passed"), "b": result("failed"), "c": result("skipped")}, outcome="failed")
    document = compare(one, one)
    assert document["verdict"] == "same"
    assert classes(document) == {"a": "same-pass", "b": "same-fail", "c": "not-run"}


def test_a_new_failing_case_is_told_although_nothing_stands_to_compare_it_with() -> None:
    document = compare(side(outcome="failed"), side({"a": result("failed")}, outcome="failed"))
    assert document["verdict"] == "same"
    assert document["caveats"] == ["1 case new and failing: no baseline to judge by"]


def test_a_candidate_that_was_cancelled_is_told_as_a_caveat() -> None:
    document = compare(side({"a": result("passed")}), side(outcome="cancelled", status="cancelled"))
    assert document["caveats"] == [
        "the candidate did not run to its end (cancelled): cases it lacks may only not have run"
    ]


def test_a_case_recorded_twice_is_flagged_as_rerun() -> None:
    document = compare(side({"a": result("passed", runs=2)}), side({"a": result("passed")}))
    assert document["reruns"] == 1
    assert document["cases"][0]["rerun"] is True


def test_environment_and_metadata_show_differences_only_and_not_what_is_derived() -> None:
    document = compare(
        side(
            environment={"python": "3.11", "os": "Linux", "gone": 1},
            metadata={"flag": True, "duration_minutes": 1.0, "agent_count": 0, "test_plan": "nightly"},
        ),
        side(
            environment={"python": "3.13", "os": "Linux"},
            metadata={
                "flag": 1,
                "duration_minutes": 2.0,
                "agent_count": 0,
                "test_plan": "nightly",
                "new": None,
            },
        ),
    )
    assert document["environment"] == [
        {"name": "gone", "before": 1},
        {"name": "python", "before": "3.11", "after": "3.13"},
    ]
    assert document["metadata"] == [
        {"name": "flag", "before": True, "after": 1},
        {"name": "new", "after": None},
    ]


@pytest.mark.parametrize(("lost", "word"), [(False, "running"), (True, "lost")])
def test_a_session_that_has_not_ended_is_refused_with_the_reason(lost: bool, word: str) -> None:
    with pytest.raises(NotComparable, match=f"is {word}, and only sessions that have ended"):
        compare(side(), side(status="running", outcome=None, ended_at=None, lost=lost))


def test_different_plans_are_told_as_a_caveat() -> None:
    assert compare(side(), side(plan="smoke"))["caveats"] == ["the plans differ: nightly and smoke"]


results = st.dictionaries(
    st.sampled_from([f"case-{number}" for number in range(12)]),
    st.builds(
        result,
        st.sampled_from(OUTCOMES),
        st.floats(0, 1e6),
        runs=st.integers(1, 3),
        message=st.sampled_from([None, "x", "y"]),
    ),
)
scalars = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0]) | st.sampled_from("xy")
maps = st.dictionaries(st.sampled_from("abcd"), scalars)
sides = st.builds(
    side,
    results,
    outcome=st.sampled_from(["passed", "failed", "error", "cancelled", None]),
    status=st.sampled_from(["completed", "failed", "cancelled", "abandoned"]),
    plan=st.sampled_from(["nightly", "smoke"]),
    environment=maps,
    metadata=maps,
)


def inverse(document: dict[str, Any]) -> dict[str, Any]:
    """What the comparison the other way round must say, from the document alone (but for words in sentences)."""
    swap = {"slower": "faster", "faster": "slower", None: None}
    cases = [
        case
        | {
            "class": classify(case["after"], case["before"]),
            "before": case["after"],
            "after": case["before"],
            "before_s": case["after_s"],
            "after_s": case["before_s"],
            "pace": swap[case["pace"]],
            "message": {"before": case["message"]["after"], "after": case["message"]["before"]},
        }
        for case in document["cases"]
    ]
    cases.sort(key=lambda case: (CLASSES.index(case["class"]), case["case_id"]))
    names = [case["class"] for case in cases]

    def turned(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
        words = {"before": "after", "after": "before", "name": "name"}
        return [{words[key]: value for key, value in entry.items()} for entry in differences]

    return {
        "baseline": document["candidate"],
        "candidate": document["baseline"],
        "counts": {name: names.count(name) for name in CLASSES},
        "pace": {"slower": document["pace"]["faster"], "faster": document["pace"]["slower"]},
        "reruns": document["reruns"],
        "cases": cases,
        "environment": turned(document["environment"]),
        "metadata": turned(document["metadata"]),
    }


@given(sides, sides)
def test_comparing_the_other_way_round_gives_the_inverse(a: Side, b: Side) -> None:
    forth, back = compare(a, b), compare(b, a)
    assert {name: back[name] for name in inverse(forth)} == inverse(forth)
    assert inverse({**forth, **inverse(forth)}) == {name: forth[name] for name in inverse(forth)}
    assert (forth["verdict"], back["verdict"]) not in {
        ("better", "better"),
        ("same", "better"),
        ("better", "same"),
    }


@given(sides, sides)
def test_counts_cover_every_case_of_either_session_once(a: Side, b: Side) -> None:
    document = compare(a, b)
    assert (
        sum(document["counts"].values()) == len(a.results.keys() | b.results.keys()) == len(document["cases"])
    )
    assert (document["verdict"] == "worse") >= bool(document["counts"]["regressed"])


@given(results)
def test_the_order_of_results_makes_no_difference(cases: dict[str, Any]) -> None:
    turned = dict(reversed(cases.items()))
    assert compare(side(cases), side(turned)) == compare(side(turned), side(cases))
