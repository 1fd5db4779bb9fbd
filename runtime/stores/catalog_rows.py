"""A row of the catalog as SQLite holds it: moments in microseconds, and a checksum over all of it."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

from ...actors.ports import CatalogRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_sql(row: CatalogRow) -> tuple[Any, ...]:
    values = (
        row.session_id,
        row.seq,
        row.epoch,
        row.tier,
        row.status,
        row.outcome,
        row.plan,
        row.title,
        row.user_id,
        microseconds(row.created_at),
        microseconds(row.updated_at),
        microseconds(row.next_due_at) if row.next_due_at is not None else None,
        row.record,
    )
    return (*values, checksum(values))


# `json.dumps` with a default makes an encoder a call: two thirds of its time, and every row is checked at a start.
_encode = json.JSONEncoder(default=repr).encode


def checksum(values: Sequence[Any]) -> int | None:
    """Of all columns but the checksum itself, with their types; None where the record is no blob. A row without a timer has
    the checksum that it had before there were timers."""
    *columns, next_due_at, record = values
    if next_due_at is not None:
        columns.append(next_due_at)
    if not isinstance(record, bytes):
        return None
    return crc32(record, crc32(_encode(columns).encode()))


def holds(values: Sequence[Any]) -> bool:
    """Whether a row carries its checksum."""
    return values[-1] is not None and values[-1] == checksum(values[:-1])


def head_values(commits: int, synced: int) -> tuple[int, int, int]:
    """The line that counts the commits, and those of them that were synced, with its checksum."""
    return commits, synced, crc32(f"{commits} {synced}".encode())


def from_sql(values: Sequence[Any]) -> CatalogRow:
    session_id, seq, epoch, tier, status, outcome, plan, title, user_id, *others = values
    created_at, updated_at, next_due_at, record, _ = others
    return CatalogRow(
        session_id=session_id,
        seq=seq,
        epoch=epoch,
        tier=tier,
        status=status,
        outcome=outcome,
        plan=plan,
        title=title,
        user_id=user_id,
        created_at=moment(created_at),
        updated_at=moment(updated_at),
        record=record,
        next_due_at=moment(next_due_at) if next_due_at is not None else None,
    )


def microseconds(moment: datetime) -> int:
    """Since 1970, UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """The other way round."""
    return _EPOCH + microseconds * _MICROSECOND
