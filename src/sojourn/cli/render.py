"""Records, events and comparisons as text for people. Nothing recorded reaches a terminal but through `text.py`."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from rich.text import Text

from ..actors.session.model import CaseOutcome
from ..runtime.history.compare import CLASSES
from .screen import Screen
from .text import duration, local_time, one_line, size, terminal_safe

_STYLES = {
    "passed": "green", "better": "green", "fixed": "green", "faster": "green", "completed": "green", "xfailed": "green",
    "failed": "red", "error": "red", "worse": "red", "regressed": "red", "malfunctioned": "red", "lost": "red",
    "same-fail": "red", "slower": "yellow", "cancelled": "yellow", "abandoned": "yellow", "paused": "yellow",
    "xpassed": "yellow", "running": "cyan", "skipped": "dim", "not-run": "dim", "same-pass": "dim",
}  # fmt: skip
OUTCOMES = tuple(outcome.value for outcome in CaseOutcome)
_FAILING = frozenset({"regressed", "malfunctioned", "same-fail"})
# Short enough for a table of 80 columns; the end of an id is its random part, and is accepted as an id.
SHORT_ID = 8
TIMERS_SHOWN = 5


def styled(word: str, shown: str | None = None) -> Text:
    """`word` in its colour, or `shown` in the colour of `word`."""
    return Text(shown if shown is not None else word, style=_STYLES.get(word, ""))


def shown_status(record: Mapping[str, Any]) -> str:
    """`lost` where it is, else the status."""
    return "lost" if record["lost"] else str(record["status"])


def case_counts(results: Mapping[str, int]) -> str:
    """`1,586 passed, 2 failed`; what is 0 is left out."""
    return ", ".join(f"{results[name]:,} {name}" for name in OUTCOMES if results[name]) or "no cases"


def print_sessions(screen: Screen, records: Sequence[Mapping[str, Any]]) -> None:
    """A line a session. In a pipe with full ids, RFC 3339 times, and the outcome beside the status."""
    if screen.is_terminal:
        heads = ["ID", "STATUS", "CASES", "FAILED", "STARTED", "DURATION", "PLAN", "TITLE"]
        screen.table(
            heads,
            [_terminal_row(record) for record in records],
            right=frozenset({2, 3, 5}),
            cut=frozenset({6, 7}),
        )
        return
    heads = ["ID", "STATUS", "OUTCOME", "CASES", "FAILED", "STARTED", "DURATION_S", "PLAN", "TITLE"]
    screen.table(heads, [_pipe_row(record) for record in records], right=frozenset({3, 4, 6}))


def _terminal_row(record: Mapping[str, Any]) -> list[str | Text]:
    status, results = shown_status(record), record["results"]
    failed = results["failed"] + results["error"]
    return [
        record["session_id"][-SHORT_ID:],
        # Of one that ran to its end, the outcome says more.
        styled(record["outcome"] if status == "completed" else status),
        f"{sum(results.values()):,}",
        styled("failed" if failed else "-", f"{failed:,}"),
        local_time(record["started_at"] or record["created_at"])[5:16],
        duration(record["duration_s"]),
        one_line(record["plan"]),
        one_line(record["title"]),
    ]


def _pipe_row(record: Mapping[str, Any]) -> list[str | Text]:
    results, seconds = record["results"], record["duration_s"]
    return [
        record["session_id"],
        shown_status(record),
        record["outcome"] or "-",
        str(sum(results.values())),
        str(results["failed"] + results["error"]),
        record["started_at"] or record["created_at"],
        f"{seconds:.3f}" if seconds is not None else "-",
        one_line(record["plan"]) or "-",
        one_line(record["title"]) or "-",
    ]


def print_session(
    screen: Screen, record: Mapping[str, Any], state: Mapping[str, Any], place: str, limit: int
) -> None:
    """A session for a reader: what and how it is, its failed cases, its resources, where it lies."""
    outcome = f": {record['outcome']}" if record["outcome"] else ""
    exit_code = f" (exit code {record['exit_code']})" if record["exit_code"] is not None else ""
    status = shown_status(record)
    title = one_line(record["title"]) or one_line(record["plan"])
    screen.line(Text(title, style="bold"))
    screen.line(styled(record["outcome"] or status, f"{status}{outcome}{exit_code}"))
    if record["lost"]:
        screen.line(f"  no sign of life, and no end was recorded; it was {record['status']}")
    if (quarantined := record.get("quarantined")) is not None:
        screen.line(f"  set aside, see `sojourn doctor`: {one_line(quarantined['crash'], 1000)}")
    if record["reason"]:
        screen.line(f"  {one_line(record['reason'], 1000)}")
    facts = [
        ("session", record["session_id"]),
        ("plan", one_line(record["plan"])),
        ("user", one_line(record["user_id"])),
        ("created", local_time(record["created_at"])),
        ("started", local_time(record["started_at"])),
        ("ended", local_time(record["ended_at"])),
        ("duration", duration(record["duration_s"])),
        ("progress", _progress(record["progress"])),
        ("timers", shown_timers(state)),
        ("cases", case_counts(record["results"])),
        ("log", f"{_counted(record['logs']['lines'], 'line')}, {size(record['logs']['bytes'])}"),
        ("resources", _resources(record["resources"])),
        ("environment", _pairs(record["environment"])),
        ("metadata", _pairs(record["metadata"])),
        ("lies in", one_line(place, 1000)),
        ("snapshot", record["storage"]["snapshot_path"] or ""),
        ("seq", f"{record['seq']:,} (epoch {record['epoch']}, tier {record['tier']})"),
    ]
    screen.line()
    for name, value in facts:
        if value and value != "-":
            screen.line(f"{name:<12} {value}")
    _print_cases(screen, state["results"], limit)


def _print_cases(screen: Screen, results: Mapping[str, Mapping[str, Any]], limit: int) -> None:
    bad = [
        (case_id, result) for case_id, result in results.items() if result["outcome"] in ("failed", "error")
    ]
    if bad:
        screen.line()
        screen.line(Text(f"failed cases ({len(bad):,})", style="bold"))
        for case_id, result in sorted(bad)[:limit]:
            screen.line(
                _case_line(result["outcome"], case_id, duration(result["duration_s"]), result["message"])
            )
        _print_rest(screen, len(bad), limit)
    slowest = sorted(results.items(), key=lambda item: (-item[1]["duration_s"], item[0]))[:5]
    if slowest and slowest[0][1]["duration_s"] > 0:
        screen.line()
        screen.line(Text("slowest cases", style="bold"))
        for case_id, result in slowest:
            screen.line(_case_line(result["outcome"], case_id, duration(result["duration_s"]), None))


def _case_line(outcome: str, case_id: str, note: str, message: str | None) -> Text:
    text = (
        Text("  ").append_text(styled(outcome, f"{outcome:<8}")).append(f" {one_line(case_id, 300)}  {note}")
    )
    return text.append(f"\n           {one_line(message)}", style="dim") if message else text


def _print_rest(screen: Screen, count: int, limit: int) -> None:
    if count > limit:
        screen.line(Text(f"  ... and {count - limit:,} more (--limit N, or --json for all)", style="dim"))


def _progress(progress: Mapping[str, Any] | None) -> str:
    if progress is None:
        return ""
    total = f" of {progress['total']:,}" if progress["total"] is not None else ""
    message = f", {one_line(progress['message'])}" if progress["message"] else ""
    return f"{progress['done']:,}{total}{message}"


def _resources(resources: Mapping[str, Any] | None) -> str:
    if resources is None:
        return ""
    # The last sample of a tree of processes that has ended holds none of them, and no memory.
    now = f"{size(resources['rss_bytes'])} in {_counted(resources['processes'], 'process', 'es')}, "
    return (
        f"CPU {duration(resources['cpu_s'])}, memory {now if resources['processes'] else ''}"
        f"{size(resources['rss_peak_bytes'])} at most, read {size(resources['read_bytes'])}, "
        f"written {size(resources['written_bytes'])}"
    )


def shown_timers(state: Mapping[str, Any]) -> str:
    """`limit at 2026-11-23 06:00:00, ends the session`, the first due first, and last those whose clock stands still. Nothing
    for a session from before there were timers."""
    clock = state.get("active_clock") or {"paused_us": 0, "stopped_at": None}
    timers = []
    for key, timer in (state.get("timers") or {}).items():
        due_at, stopped_at = datetime.fromisoformat(timer["due_at"]), None
        if timer["clock"] == "active":
            due_at += timedelta(microseconds=clock["paused_us"])
            stopped_at = clock["stopped_at"]
        moment = f"at {local_time(due_at.isoformat())}"
        if stopped_at is not None:
            left_s = (due_at - datetime.fromisoformat(stopped_at)).total_seconds()
            moment = f"after {duration(max(0.0, left_s))} more of running"
        every = f", every {duration(timer['every_s'])}" if timer["every_s"] is not None else ""
        ends = ", ends the session" if timer["action"] == "fail" else ""
        timers.append((stopped_at is not None, due_at, f"{one_line(key)} {moment}{every}{ends}"))
    shown = [text for _, _, text in sorted(timers)]
    if len(shown) > TIMERS_SHOWN:
        shown[TIMERS_SHOWN:] = [f"and {len(shown) - TIMERS_SHOWN:,} more"]
    return "; ".join(shown)


def _counted(count: int, what: str, plural: str = "s") -> str:
    return f"{count:,} {what}{'' if count == 1 else plural}"


def _pairs(values: Mapping[str, Any]) -> str:
    derived = ("agent_count", "duration_minutes", "test_plan")
    return ", ".join(
        f"{one_line(name)}={_value(value)}" for name, value in values.items() if name not in derived
    )


def _value(value: Any) -> str:
    return one_line(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def event_lines(screen: Screen, event_type: str, line: bytes, json: bool) -> list[str]:
    """What `tail` writes of an event: the line as it is stored, or what it shows."""
    return [line.decode()] if json else list(event_text(event_type, line, colours=screen.is_terminal))


def event_text(event_type: str, line: bytes, *, colours: bool) -> Iterator[str]:
    """The lines that `tail` shows of an event: log text, results, turns of the session's life; none for the others.

    Args:
        colours: whether a terminal shows them: then they are made safe for it, and ours are coloured. Else log text is
            given as it was recorded.
    """
    data = msgspec.json.decode(line)["data"]
    if event_type == "log.appended":
        yield terminal_safe(data["text"]) if colours else data["text"]
    elif event_type == "result.recorded":
        message = f": {one_line(data['message'])}" if data["message"] and data["outcome"] != "passed" else ""
        yield f"-- {data['outcome']} {one_line(data['case_id'], 300)} ({duration(data['duration_s'])}){message}"
    elif event_type == "timer.fired":
        missed = f", {data['missed']:,} before it were missed" if data["missed"] else ""
        yield f"-- timer {one_line(data['key'])} was due at {local_time(data['due_at'])}{missed}"
    elif event_type.startswith("session."):
        told = [
            f"{name.replace('_', ' ')} {data[name]}"
            for name in ("outcome", "exit_code")
            if data.get(name) is not None
        ]
        reason = [one_line(data["reason"])] if data.get("reason") else []
        said = f": {', '.join(told + reason)}" if told or reason else ""
        yield f"-- {event_type.replace('.', ' ')}{said}"


def print_comparison(screen: Screen, document: Mapping[str, Any], limit: int) -> None:
    """Header, differences, counts, cases by class, verdict last."""
    for name in ("baseline", "candidate"):
        side = document[name]
        screen.line(
            f"{name:<11} {side['session_id']}  {one_line(side['title']) or one_line(side['plan'])}: "
            f"{side['outcome'] or side['status']}, {duration(side['duration_s'])}, {case_counts(side['results'])}"
        )
    for name in ("environment", "metadata"):
        for entry in document[name]:
            before, after = (
                _value(entry[key]) if key in entry else "(absent)" for key in ("before", "after")
            )
            screen.line(f"{name:<11} {one_line(entry['name'])}: {before} -> {after}")
    screen.line()
    counts: list[list[str | Text]] = [[styled(name), f"{document['counts'][name]:,}"] for name in CLASSES]
    counts += [[styled(name), f"{document['pace'][name]:,}"] for name in ("slower", "faster")]
    screen.table(["CASES", "COUNT"], counts, right=frozenset({1}))
    cases = document["cases"]
    for name in CLASSES:
        # What passes in both, or is skipped in both, is counted above and tells nothing more here.
        told = [
            case
            for case in cases
            if case["class"] == name and (name in _FAILING or case["before"] != case["after"])
        ]
        told.sort(key=lambda case: case["after"] not in ("failed", "error"))
        _print_class(screen, name, told, limit)
    for name in ("slower", "faster"):
        moved = [case for case in cases if case["pace"] == name]
        moved.sort(key=lambda case: (-abs(case["after_s"] - case["before_s"]), case["case_id"]))
        _print_class(screen, name, moved, limit)
    screen.line()
    for caveat in document["caveats"]:
        screen.line(f"note: {one_line(caveat, 1000)}")
    verdict = Text("verdict: ").append_text(styled(document["verdict"]))
    screen.line(verdict.append(f": {'; '.join(document['reasons'])}"))


def _print_class(screen: Screen, name: str, cases: Sequence[Mapping[str, Any]], limit: int) -> None:
    if not cases:
        return
    screen.line()
    one_sample = ", one sample a case" if name in ("slower", "faster") else ""
    screen.line(Text(f"{name} ({len(cases):,}{one_sample})", style="bold"))
    for case in cases[:limit]:
        if case["pace"] == name:
            note = f"{duration(case['before_s'])} -> {duration(case['after_s'])}"
        else:
            note = f"{case['before'] or 'absent'} -> {case['after'] or 'absent'}"
        if case["rerun"]:
            note += ", rerun"
        screen.line(Text("  ").append(one_line(case["case_id"], 300)).append(f"  {note}", style="dim"))
        message = case["message"]["after"] if case["after"] in ("failed", "error") else None
        if message:
            screen.line(Text(f"      {one_line(message)}", style="dim"))
    _print_rest(screen, len(cases), limit)
