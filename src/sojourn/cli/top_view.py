"""What `sojourn top` shows of a look at a runtime, and of the one before it: pure."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import frozen
from rich.text import Text

from .render import SHORT_ID
from .text import duration, local_time, one_line, size

STALLS_SHOWN = 5
_STYLES = {
    "running": "green", "level": "green", "quarantined": "red", "crashed": "red", "stuck": "red", "backoff": "yellow",
    "away": "red", "full": "red", "unusable": "red", "behind": "yellow", "starting": "yellow", "committing": "cyan",
    "queued": "cyan", "idle": "dim", "absent": "dim", "stopped": "yellow", "ended": "dim",
}  # fmt: skip


@frozen
class Lines:
    """Lines of text."""

    lines: Sequence[Text]


@frozen
class Table:
    """Columns; `right` are aligned to the right, `cut` give way where there is no room."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    right: frozenset[int] = frozenset()
    cut: frozenset[int] = frozenset()


Block = Lines | Table


def view(
    place: str, now: Mapping[str, Any], before: Mapping[str, Any] | None, *, short: bool
) -> Iterator[Block]:
    """Blocks from top to bottom.

    Args:
        now, before: answers of `GET /statistics`; without the one before there are no rates.
        short: ids are cut to their last characters.
    """
    statistics = now["statistics"]
    yield Lines(list(_head(place, now, before)))
    yield Table(
        ["PART", "STATE", "RESTARTS", "LAST ERROR"],
        list(_parts(statistics["children"], "")),
        frozenset({2}),
        frozenset({3}),
    )
    if now["sessions"]:
        yield Table(
            ["SESSION", "STATE", "WAITING", "EVENTS/S", "RESTARTS", "LAG", "IDLE", "SEQ"],
            [_session(session, now, before, short) for session in now["sessions"]],
            frozenset({2, 3, 4, 5, 6, 7}),
        )
        left = now["sessions_total"] - len(now["sessions"])
        if left > 0:
            yield Lines([Text(f"... and {left:,} more in memory (--limit N)", style="dim")])
    if statistics["stalls"]["recent"]:
        yield Table(
            ["STALLED AT", "SESSION", "MESSAGE", "TOOK", "WHERE"],
            [_stall(stall, short) for stall in reversed(statistics["stalls"]["recent"][-STALLS_SHOWN:])],
            frozenset({3}),
            frozenset({4}),
        )


def _head(place: str, now: Mapping[str, Any], before: Mapping[str, Any] | None) -> Iterator[Text]:
    statistics = now["statistics"]
    kernel, memory, journal = statistics["kernel"], statistics["memory"], statistics["journal"]
    yield Text(f"{one_line(place)}  epoch {statistics['epoch']}  {local_time(now['at'])}", style="bold")
    yield Text(
        f"sessions: {memory['sessions']:,} in memory (at most {memory['sessions_max']:,}, their states "
        f"{size(memory['states_bytes'])} of {size(memory['states_bytes_max'])}), {kernel['starting']:,} starting, "
        f"{kernel['start_queue']:,} waiting to start"
    ).append(
        f", {kernel['actors_quarantined']:,} quarantined",
        style="red" if kernel["actors_quarantined"] else "",
    )
    yield Text(
        f"turns: {_rate(now, before, 'kernel', 'replied')}, commits {_rate(now, before, 'commit', 'commits')}, "
        f"events {_rate(now, before, 'commit', 'events')}; waiting {kernel['queued']:,}, refused {kernel['refused']:,}, "
        f"crashes {kernel['crashes']:,}, dead letters {kernel['dead_lettered']:,}, "
        f"stalls {statistics['stalls']['total']:,}"
    )
    yield Text(
        f"journal: {size(journal['size_bytes'])}, {journal['events']:,} events of {journal['sessions']:,} sessions; "
        f"catalog {statistics['catalog_behind']:,} behind; {statistics['snapshots_written']:,} snapshots; "
        f"tiering {statistics['tiering']['running']:,} moves, {statistics['tiering']['waiting']:,} waiting"
    )
    if statistics["commit"]["refusing"] is not None:
        yield Text(f"changes are refused: {one_line(statistics['commit']['refusing'])}", style="red")
    mirror = statistics["mirror"]
    if mirror is not None:
        told = Text(f"mirror: {one_line(mirror['server'])}, ").append_text(_styled(mirror["state"]))
        yield told.append(
            f", {mirror['events_behind']:,} events of {mirror['sessions_behind']:,} sessions behind by "
            f"{duration(mirror['behind_s'])}"
        )


def _parts(children: Sequence[Mapping[str, Any]], indent: str) -> Iterator[Sequence[str | Text]]:
    for child in children:
        yield [
            indent + one_line(child["child_id"]),
            _styled(child["state"]),
            f"{child['restarts']:,}",
            one_line(child["last_error"] or "-"),
        ]
        yield from _parts(child["children"], indent + "  ")


def _session(
    session: Mapping[str, Any], now: Mapping[str, Any], before: Mapping[str, Any] | None, short: bool
) -> Sequence[str | Text]:
    seqs = {one["session_id"]: one["seq"] for one in before["sessions"]} if before is not None else {}
    earlier = seqs.get(session["session_id"])
    rate = _a_second(session["seq"] - earlier, now, before) if earlier is not None else None
    mirrored = session["mirrored_seq"]
    return [
        _id(session["session_id"], short),
        _styled(session["state"]),
        f"{session['mailbox']:,}",
        f"{rate:,.1f}" if rate is not None else "-",
        f"{session['restarts']:,}",
        f"{max(0, session['seq'] - mirrored):,}" if mirrored is not None else "-",
        duration(session["idle_s"]),
        f"{session['seq']:,}",
    ]


def _stall(stall: Mapping[str, Any], short: bool) -> Sequence[str | Text]:
    return [
        local_time(stall["noticed_at"]),
        _id(stall["actor_id"], short),
        one_line(stall["message"]),
        duration(stall["duration_s"]),
        one_line(stall["stack"][-1].rpartition("/")[2] if stall["stack"] else "-"),
    ]


def _id(actor_id: str, short: bool) -> str:
    return actor_id[-SHORT_ID:] if short and actor_id.startswith("sess_") else one_line(actor_id)


def _styled(state: str) -> Text:
    return Text(one_line(state), style=_STYLES.get(state, ""))


def _rate(now: Mapping[str, Any], before: Mapping[str, Any] | None, part: str, count: str) -> str:
    total = now["statistics"][part][count]
    if before is None:
        return f"{total:,}"
    rate = _a_second(total - before["statistics"][part][count], now, before)
    return f"{rate:,.1f}/s" if rate is not None else f"{total:,}"


def _a_second(count: int, now: Mapping[str, Any], before: Mapping[str, Any] | None) -> float | None:
    """None where no time has passed, or another process answers than before."""
    if before is None or now["statistics"]["epoch"] != before["statistics"]["epoch"]:
        return None
    passed_s = (datetime.fromisoformat(now["at"]) - datetime.fromisoformat(before["at"])).total_seconds()
    return count / passed_s if passed_s > 0 else None
