"""What a host may set, with the default, unit and reason of each."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import Attribute, field, frozen

from ..actors.errors import InvalidSettings
from ..actors.session.model import Limits
from .paths import default_data_dir

MIB = 1024 * 1024
NO_MIRROR = "none"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Check = Callable[[Any, "Attribute[Any]", Any], None]


def at_least(low: float, high: float = math.inf) -> Check:
    """A validator: a number from `low` to `high`, a whole one where the field says `int`. Raises InvalidSettings."""

    def check(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
        kinds = (int,) if attribute.type is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise invalid(attribute.name, value, "a whole number" if attribute.type is int else "a number")
        if not low <= value <= high:  # NaN too
            wanted = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
            raise invalid(attribute.name, value, f"a number {wanted}")

    return check


def _archive_place(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value:
        raise invalid(attribute.name, value, "a folder, or s3://BUCKET/PREFIX")
    scheme = _SCHEME.match(value)
    if scheme is not None and not re.match(r"s3://[^/]", value):
        raise invalid(attribute.name, value, "a folder, or s3://BUCKET/PREFIX")


def _mirror_place(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value is None or value == NO_MIRROR:
        return
    if not isinstance(value, str) or not re.match(r"(rediss?://[^/]|unix://([^/]*@)?/.)", value):
        shown = re.sub(r"//[^@/]*@", "//***@", value) if isinstance(value, str) else value
        raise invalid(
            attribute.name, shown, "none, redis://HOST:6379/0, rediss://USER:PASSWORD@HOST, or unix:///SOCKET"
        )


def _namespace(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise invalid(attribute.name, value, "1 to 64 of letters, digits, _ . -")


def invalid(name: str, value: Any, expected: str) -> InvalidSettings:
    """The error for a value of one setting."""
    return InvalidSettings([f"{name} is {value!r:.200}; give {expected}"])


@frozen(kw_only=True)
class Settings:
    """Settings of one runtime. Times are in seconds unless their name says otherwise, sizes in bytes.

    A value of another type or outside its range raises InvalidSettings, which names it.

    Attributes:
        data_dir: the data folder; made when it is not there. One owner at a time.
        archive: where archived sessions go: a folder, or `s3://bucket/prefix`; None is `archive/` in the data folder.
        mirror: the Redis that shows live sessions to other processes: `redis://`, `rediss://` or `unix://` (docs/redis.md);
            `none`: there is none. None: a private Valkey where its wheel is installed, else none.
        mirror_namespace: the first part of every key there. It belongs to one data folder at a time.
        recent_days: a session that was handed over stays among the recent ones for so many days, then it is archived.
        seal_after_s: an ended session is sealed so long after its end, unless its reporter does: late log lines come
            until then.
        abandon_after_s: a session that has not ended and shows no sign of life for so long is ended as abandoned.
        journal_bytes_max: what the journal may hold before its oldest events are moved into segments.
        moves_at_once_max: how many sessions are handed over or archived at once.
        passivate_after_s: a session without a message for so long leaves memory and comes back with the next one.
        sessions_in_memory_max, states_in_memory_bytes_max: beyond so many sessions in memory, or so much that their states
            take, idle ones leave it at once, the one that is idle longest first.
        stall_s: a turn that takes so long is kept in the statistics with its stack, and logged; 0: none is watched.
        snapshot_interval_s: how often sessions are looked at for a snapshot.
        snapshot_journal_bytes_min: a session is snapshotted once the journal holds so much of it since the last one (or a
            quarter of its state, whichever is more): a smaller tail is replayed faster than a file is opened.
        ask_deadline_s: an ask without an answer for so long ends with DeadlineExceeded.
        mailbox_messages_max, mailbox_bytes_max: what one session may have queued.
        inbound_bytes_max: what all sessions together may have queued.
        recoveries_max: how many sessions are read from disk at once.
        limits: what one session may hold.
    """

    data_dir: Path = field(factory=default_data_dir, converter=Path)
    archive: str | None = field(default=None, validator=_archive_place)
    mirror: str | None = field(default=None, validator=_mirror_place)
    mirror_namespace: str = field(default="sojourn", validator=_namespace)
    recent_days: float = field(default=30.0, validator=at_least(0))
    seal_after_s: float = field(default=30.0, validator=at_least(0))
    abandon_after_s: float = field(default=86_400.0, validator=at_least(0))
    journal_bytes_max: int = field(default=128 * MIB, validator=at_least(1))
    moves_at_once_max: int = field(default=4, validator=at_least(1))
    # Both are periods too: with 0 their tasks would spin.
    passivate_after_s: float = field(default=300.0, validator=at_least(0.01))
    sessions_in_memory_max: int = field(default=100_000, validator=at_least(1))
    states_in_memory_bytes_max: int = field(default=1024 * MIB, validator=at_least(1))
    # Shorter than what a person notices, and longer than any turn within the limits needs.
    stall_s: float = field(default=0.05, validator=at_least(0))
    snapshot_interval_s: float = field(default=30.0, validator=at_least(0.01))
    snapshot_journal_bytes_min: int = field(default=64 * 1024, validator=at_least(0))
    ask_deadline_s: float = field(default=30.0, validator=at_least(0))
    mailbox_messages_max: int = field(default=1_000, validator=at_least(1))
    mailbox_bytes_max: int = field(default=MIB, validator=at_least(1))
    inbound_bytes_max: int = field(default=256 * MIB, validator=at_least(1))
    recoveries_max: int = field(default=50, validator=at_least(1))
    limits: Limits = field(factory=Limits)
