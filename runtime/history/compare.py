"""What changed from one session to another: the baseline and the candidate. Pure and deterministic.

Both have one result a case (the last one, where a case ran more than once), so this compares single samples: no
median, no p-value. What became of a case is its class, total over what it was (down) and what it is (across):

| was \\ is         | passed, xfailed, xpassed | skipped | failed    | error          | absent  |
|------------------|--------------------------|---------|-----------|----------------|---------|
| passed, x...     | same-pass                | not-run | regressed | malfunctioned  | removed |
| skipped          | not-run                  | not-run | regressed | malfunctioned  | removed |
| failed, error    | fixed                    | not-run | same-fail | same-fail      | removed |
| absent           | new                      | new     | new       | new            |         |

So a case regressed or malfunctioned if it did not fail before and does now, and `not-run` lacks a verdict on one side
or on both. An unexpected pass is a pass, as it is for pytest's exit code: a strict one is recorded as failed.

`pace` is `slower` or `faster` for a case that is ok in both and whose duration changed by more than 50 ms and by more
than 10 % of the shorter of the two: symmetric, so that swapping the sessions swaps the words. One sample a case: it points
at where to look, and proves nothing. `rerun` is true for a case that a session recorded more than once.

The verdict is `worse` if a case regressed or malfunctioned or the session's outcome got worse (passed, failed, then
error or cancelled); else `better` if a case is fixed or the outcome got better; else `same`. Each of two sessions may be worse than the other.

The document, in JSON:

    {"baseline": SIDE, "candidate": SIDE,
     "verdict": "worse", "reasons": ["84 cases regressed"], "caveats": ["..."],
     "counts": {CLASS: n, ... every class},  "pace": {"slower": n, "faster": n},  "reruns": n,
     "cases": [{"case_id", "class", "before", "after", "before_s", "after_s", "pace", "rerun", "message"}, ...],
     "environment": [{"name", "before", "after"}, ...],  "metadata": [the same]}

    SIDE is {"session_id", "title", "plan", "status", "outcome", "exit_code", "started_at", "duration_s", "cases_s",
             "results", "resources"}

`cases` holds every case of either session, by class in the order above, then by id; `before` and `after` are outcomes, null where
absent; `message` is `{"before", "after"}`. `environment` and `metadata` name differences only: a side that has
no such key has no `before` or `after`.
"""

import math
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ...actors.errors import CallerError

CLASSES = (
    "regressed",
    "malfunctioned",
    "fixed",
    "same-fail",
    "new",
    "removed",
    "not-run",
    "same-pass",
)
PACE_CHANGE_S_MIN = 0.05
PACE_CHANGE_RATIO_MIN = 0.1

_OK = frozenset({"passed", "xfailed", "xpassed"})
_BAD = frozenset({"failed", "error"})
_SEVERITY = {"passed": 0, "failed": 1, "error": 2, "cancelled": 2}
# These are told in the sides' own fields, or differ always.
_DERIVED_METADATA = frozenset({"agent_count", "duration_minutes", "test_plan"})


class NotComparable(CallerError):
    """Only sessions that have ended can be compared."""

    code = "not_comparable"


@frozen(kw_only=True)
class Side:
    """One of the two: its public record and the `results` of its state (docs/protocol.md), both as JSON knows them."""

    record: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]


def classify(before: str | None, after: str | None) -> str:
    """The class of a case by its outcomes, None where absent (the table above).

    Raises:
        ValueError: it is in neither session, and so no case.
    """
    if before is None:
        if after is None:
            raise ValueError("a case that is in neither session has no class")
        return "new"
    if after is None:
        return "removed"
    if after in _BAD:
        if before in _BAD:
            return "same-fail"
        return "regressed" if after == "failed" else "malfunctioned"
    if after not in _OK or (before not in _OK and before not in _BAD):
        return "not-run"
    return "fixed" if before in _BAD else "same-pass"


def pace(before_s: float, after_s: float) -> str | None:
    """`slower`, `faster`, or None where the change is too small to say."""
    shorter, longer = sorted((before_s, after_s))
    if longer - shorter <= max(PACE_CHANGE_S_MIN, PACE_CHANGE_RATIO_MIN * shorter):
        return None
    return "slower" if after_s > before_s else "faster"


def compare(baseline: Side, candidate: Side) -> dict[str, Any]:
    """The document described above.

    `compare(b, a)` is the inverse of `compare(a, b)`: the same cases with before and after swapped, classed anew by
    the table.

    Raises:
        NotComparable: a session has not ended.
    """
    for side in (baseline, candidate):
        if side.record["ended_at"] is None:
            raise NotComparable(_not_ended(side.record))
    cases = [
        _case(case_id, baseline.results.get(case_id), candidate.results.get(case_id))
        for case_id in baseline.results.keys() | candidate.results.keys()
    ]
    order = {name: position for position, name in enumerate(CLASSES)}
    cases.sort(key=lambda case: (order[case["class"]], case["case_id"]))
    counts = dict.fromkeys(CLASSES, 0)
    paces = {"slower": 0, "faster": 0}
    for case in cases:
        counts[case["class"]] += 1
        if case["pace"] is not None:
            paces[case["pace"]] += 1
    verdict, reasons = _judge(counts, baseline.record["outcome"], candidate.record["outcome"])
    return {
        "baseline": _side(baseline),
        "candidate": _side(candidate),
        "verdict": verdict,
        "reasons": reasons,
        "caveats": _caveats(baseline.record, candidate.record, cases),
        "counts": counts,
        "pace": paces,
        "reruns": sum(case["rerun"] for case in cases),
        "cases": cases,
        "environment": _differences(baseline.record["environment"], candidate.record["environment"]),
        "metadata": _differences(
            _given_metadata(baseline.record["metadata"]), _given_metadata(candidate.record["metadata"])
        ),
    }


def _case(case_id: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, Any]:
    was = before["outcome"] if before is not None else None
    is_now = after["outcome"] if after is not None else None
    timed = was in _OK and is_now in _OK
    return {
        "case_id": case_id,
        "class": classify(was, is_now),
        "before": was,
        "after": is_now,
        "before_s": before["duration_s"] if before is not None else None,
        "after_s": after["duration_s"] if after is not None else None,
        "pace": pace(before["duration_s"], after["duration_s"]) if timed and before and after else None,
        "rerun": any(side is not None and side["runs"] > 1 for side in (before, after)),
        "message": {
            "before": before["message"] if before is not None else None,
            "after": after["message"] if after is not None else None,
        },
    }


def _side(side: Side) -> dict[str, Any]:
    kept = (
        "session_id", "title", "plan", "status", "outcome", "exit_code", "started_at", "duration_s", "results", "resources",
    )  # fmt: skip
    # fsum: the same sum in whichever order the results come.
    cases_s = math.fsum(result["duration_s"] for result in side.results.values())
    return {name: side.record[name] for name in kept} | {"cases_s": cases_s}


def _judge(counts: Mapping[str, int], before: str | None, after: str | None) -> tuple[str, list[str]]:
    # An end without an outcome (abandoned) is as bad as an error.
    worse_by = _SEVERITY.get(after or "", 2) - _SEVERITY.get(before or "", 2)
    moved = f"the session's outcome went from {before or 'none'} to {after or 'none'}"
    worse = [_said(counts[name], name) for name in ("regressed", "malfunctioned") if counts[name]]
    if worse_by > 0:
        worse.append(moved)
    if worse:
        return "worse", worse
    better = [_said(counts["fixed"], "fixed")] if counts["fixed"] else []
    if worse_by < 0:
        better.append(moved)
    return ("better", better) if better else ("same", ["no case regressed, malfunctioned or is fixed"])


def _said(count: int, what: str) -> str:
    return f"{count:,} case{'' if count == 1 else 's'} {what}"


def _caveats(
    baseline: Mapping[str, Any], candidate: Mapping[str, Any], cases: list[dict[str, Any]]
) -> list[str]:
    """What a reader should know before trusting the counts and the verdict."""
    found = []
    for name, record in (("baseline", baseline), ("candidate", candidate)):
        if record["status"] != "completed":
            found.append(
                f"the {name} did not run to its end ({record['status']}): cases it lacks may only not have run"
            )
    if baseline["plan"] != candidate["plan"]:
        found.append(f"the plans differ: {baseline['plan']} and {candidate['plan']}")
    if new_failures := sum(case["class"] == "new" and case["after"] in _BAD for case in cases):
        found.append(f"{_said(new_failures, 'new')} and failing: no baseline to judge by")
    return found


def _not_ended(record: Mapping[str, Any]) -> str:
    status = "lost" if record["lost"] else record["status"]
    follow = f"sojourn tail {record['session_id']} --follow"
    remedy = "choose another that has ended" if record["lost"] else f"wait for its end (`{follow}`)"
    return f"session {record['session_id']} is {status}, and only sessions that have ended can be compared; {remedy}"


def _given_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name not in _DERIVED_METADATA}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    differences = []
    for name in sorted(before.keys() | after.keys()):
        entry = {"name": name}
        if name in before:
            entry["before"] = before[name]
        if name in after:
            entry["after"] = after[name]
        # 1, 1.0 and true are equal in Python and different in JSON.
        if len(entry) < 3 or not _same(entry["before"], entry["after"]):
            differences.append(entry)
    return differences


def _same(before: Any, after: Any) -> bool:
    return type(before) is type(after) and bool(before == after)
