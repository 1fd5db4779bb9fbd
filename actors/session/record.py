"""The public record of a session: one shape in every tier (docs/protocol.md). Pure; what a reader knows comes in."""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from .model import CaseOutcome, SessionState
from .timers import next_due_at

HEARTBEAT_S = 15.0
LOST_AFTER_S = 2 * HEARTBEAT_S


def public_record(state: SessionState, *, epoch: int, snapshot_path: str | None = None) -> dict[str, Any]:
    """What every reader sees of `state`, but for what depends on the moment of reading (`complete_record` adds that).

    Values are those JSON knows, times aside (aware UTC datetimes). Raises nothing for a created session's state.
    """
    header = state.header
    assert header is not None
    progress, resources, counters = state.progress, state.resources, state.counters
    return {
        "created_at": header.created_at,
        "ended_at": header.ended_at,
        "environment": header.environment,
        "epoch": epoch,
        "exit_code": header.exit_code,
        "logs": {"bytes": counters.get("logs.bytes", 0), "lines": counters.get("logs.lines", 0)},
        "losses": [
            {"accepted_at": loss.accepted_at, "first_seq": loss.first_seq, "last_seq": loss.last_seq}
            for loss in state.losses
        ],
        "metadata": {**header.metadata, "agent_count": 0, "test_plan": header.plan},
        "next_due_at": next_due_at(state),
        "outcome": header.outcome.value if header.outcome is not None else None,
        "plan": header.plan,
        "progress": progress
        and {
            "done": progress.done,
            "message": progress.message,
            "reported_at": progress.reported_at,
            "total": progress.total,
        },
        "reason": header.reason,
        "resources": resources
        and {
            "cpu_s": resources.cpu_s,
            "processes": resources.processes,
            "read_bytes": resources.read_bytes,
            "rss_bytes": resources.rss_bytes,
            "rss_peak_bytes": resources.rss_peak_bytes,
            "sampled_at": resources.sampled_at,
            "samples": resources.samples,
            "written_bytes": resources.written_bytes,
        },
        "results": {outcome.value: counters.get(f"results.{outcome.value}", 0) for outcome in CaseOutcome},
        "sealed_at": header.sealed_at,
        "seq": state.seq,
        "session_id": state.session_id,
        "started_at": header.started_at,
        "status": header.status.value,
        "storage": {"active": True, "archive_path": None, "snapshot_path": snapshot_path},
        "tags": [],
        "tier": "active",
        "title": header.title,
        "updated_at": state.updated_at,
        "user_id": header.user_id,
    }


def complete_record(
    record: dict[str, Any],
    *,
    now: datetime,
    last_sign_at: datetime | None,
    owner_alive: bool,
    missing: tuple[int, int] | None = None,
    quarantined: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`record` with what is computed at reading: `damaged`, `quarantined`, `lost`, `last_sign_at`, `duration_s`,
    `metadata.duration_minutes`.

    Args:
        last_sign_at: when the reporter was last heard of, or None where the reader cannot know: then a live owner
            counts as a sign.
        owner_alive: whether a process owns the data folder.
        missing: first and last seq of events that are lost, while nobody has accepted that.
        quarantined: why the session itself is set aside.
    """
    started_at, ended_at = record["started_at"], record["ended_at"]
    duration_s = ((ended_at or now) - started_at).total_seconds() if started_at is not None else None
    silent = last_sign_at is not None and now - last_sign_at > timedelta(seconds=LOST_AFTER_S)
    minutes = round(duration_s / 60, 2) if duration_s is not None else None
    return {
        **record,
        "damaged": {"first_seq": missing[0], "last_seq": missing[1]} if missing is not None else None,
        "duration_s": duration_s,
        "last_sign_at": last_sign_at,
        "lost": ended_at is None and (silent or not owner_alive),
        "metadata": {**record["metadata"], "duration_minutes": minutes},
        "quarantined": quarantined,
    }


_encode = msgspec.json.Encoder(order="deterministic").encode
_TIMES = ("created_at", "ended_at", "next_due_at", "sealed_at", "started_at", "updated_at")


def encode_record(record: dict[str, Any]) -> bytes:
    """Canonical JSON."""
    return _encode(record)


def decode_record(data: bytes) -> dict[str, Any]:
    """What `encode_record` wrote, with the session's own times as datetimes again."""
    record: dict[str, Any] = msgspec.json.decode(data)
    record.setdefault("next_due_at", None)  # written before there were timers
    record.setdefault("sealed_at", None)  # written before there were seals
    record.setdefault("tags", [])
    for name in _TIMES:
        if record[name] is not None:
            record[name] = datetime.fromisoformat(record[name])
    return record
