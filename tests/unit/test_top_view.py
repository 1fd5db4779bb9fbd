"""What `top` shows, from what a server says."""

import copy
from typing import Any

from rich.text import Text

from sojourn.cli.top_view import Block, Lines, Table, view

KERNEL = {"starting": 1, "start_queue": 2, "actors_quarantined": 1, "queued": 5, "refused": 6, "crashes": 7,
          "dead_lettered": 8, "replied": 1_000}  # fmt: skip


def look(**change: Any) -> dict[str, Any]:
    return {
        "at": "2026-11-22T10:00:00Z",
        "sessions_total": 12,
        "sessions": [session()],
        "dead_letters": {},
        "statistics": {
            "epoch": 3,
            "children": [part("commit"), part("x", state="backoff", children=[part("y", restarts=2)])],
            "kernel": KERNEL,
            "commit": {"commits": 100, "events": 2_000, "refusing": None},
            "journal": {"size_bytes": 2048, "events": 20, "sessions": 3},
            "memory": {"sessions": 12, "sessions_max": 100, "states_bytes": 1024, "states_bytes_max": 2048},
            "mirror": None,
            "stalls": {"total": 0, "longest_s": 0.0, "recent": []},
            "catalog_behind": 0,
            "snapshots_written": 4,
            "tiering": {"running": 0, "waiting": 1},
        },
    } | change


def part(child_id: str, **change: Any) -> dict[str, Any]:
    return {
        "child_id": child_id,
        "state": "running",
        "restarts": 0,
        "last_error": None,
        "children": [],
    } | change


def session(**change: Any) -> dict[str, Any]:
    return {"session_id": "sess_0123456789abcdef0123456789abcdef", "state": "idle", "seq": 50, "mirrored_seq": 40,
            "mailbox": 3, "mailbox_bytes": 100, "restarts": 1, "idle_s": 2.0} | change  # fmt: skip


def shown(now: dict[str, Any], before: dict[str, Any] | None = None, *, short: bool = False) -> list[Block]:
    return list(view("here", now, before, short=short))


def texts(block: Block) -> list[str]:
    assert isinstance(block, Lines)
    return [str(line) for line in block.lines]


def rows(block: Block) -> list[list[str]]:
    assert isinstance(block, Table)
    return [[str(cell) for cell in row] for row in block.rows]


def test_a_first_look_has_counts_and_no_rates() -> None:
    head, parts, sessions, rest = shown(look())
    assert "turns: 1,000, commits 100, events 2,000" in texts(head)[2]
    assert rows(parts) == [
        ["commit", "running", "0", "-"],
        ["x", "backoff", "0", "-"],
        ["  y", "running", "2", "-"],
    ]
    assert rows(sessions) == [
        ["sess_0123456789abcdef0123456789abcdef", "idle", "3", "-", "1", "10", "2.0 s", "50"]
    ]
    assert texts(rest) == ["... and 11 more in memory (--limit N)"]


def test_a_second_look_has_rates() -> None:
    now = look(at="2026-11-22T10:00:02Z", sessions=[session(seq=57)])
    now["statistics"] = copy.deepcopy(now["statistics"])
    now["statistics"]["kernel"]["replied"] = 3_000
    head, _, sessions, *_ = shown(now, look(), short=True)
    assert "turns: 1,000.0/s, commits 0.0/s" in texts(head)[2]
    assert rows(sessions)[0][:4] == ["89abcdef", "idle", "3", "3.5"]


def test_another_process_that_answers_begins_anew() -> None:
    now = look(at="2026-11-22T10:00:02Z")
    now["statistics"] = now["statistics"] | {"epoch": 4}
    head, _, sessions, *_ = shown(now, look())
    assert "turns: 1,000," in texts(head)[2]
    assert rows(sessions)[0][3] == "-"


def test_trouble_is_said_and_coloured() -> None:
    now = look(sessions=[session(state="quarantined", mirrored_seq=None)], sessions_total=1)
    now["statistics"]["commit"] = now["statistics"]["commit"] | {"refusing": "no room"}
    now["statistics"]["mirror"] = {
        "server": "Valkey 9.1 at unix:///x", "state": "away", "events_behind": 7, "sessions_behind": 2, "behind_s": 3.0,
    }  # fmt: skip
    head, _, sessions = shown(now)
    assert texts(head)[4:] == [
        "changes are refused: no room",
        "mirror: Valkey 9.1 at unix:///x, away, 7 events of 2 sessions behind by 3.0 s",
    ]
    assert isinstance(sessions, Table)
    state = sessions.rows[0][1]
    assert isinstance(state, Text)
    assert state.style == "red"
    assert str(sessions.rows[0][5]) == "-"


def test_the_last_stalls_are_shown_newest_first_with_where_they_were() -> None:
    now = look(sessions=[], sessions_total=0)
    now["statistics"]["stalls"] = {
        "total": 9, "longest_s": 1.0,
        "recent": [
            {"actor_id": f"sess_{n}", "message": "log.append", "duration_s": 0.1, "noticed_at": "2026-11-22T10:00:00Z",
             "stack": ["/x/actors/session/actor.py:7 receive", f"/x/actors/session/core.py:{n} apply"]}
            for n in range(9)
        ],
    }  # fmt: skip
    *_, stalls = shown(now)
    assert [row[1:] for row in rows(stalls)][:2] == [
        ["sess_8", "log.append", "100 ms", "core.py:8 apply"],
        ["sess_7", "log.append", "100 ms", "core.py:7 apply"],
    ]
    assert len(rows(stalls)) == 5


def test_what_a_part_says_of_its_error_does_nothing_to_the_terminal() -> None:
    now = look(sessions=[], sessions_total=0)
    now["statistics"]["children"] = [part("commit", last_error="\x1b]0;title\x07boom\nagain")]
    _, parts = shown(now)
    assert rows(parts)[0][3] == "boom again"
