"""What a host may set, with the default, unit and reason of each."""

from pathlib import Path

from attrs import field, frozen

from ..actors.session.model import Limits
from .paths import default_data_dir


@frozen(kw_only=True)
class Settings:
    """Settings of one runtime. Times are in seconds, sizes in bytes.

    Attributes:
        data_dir: the data folder; made when it is not there. One owner at a time.
        passivate_after_s: a session without a message for so long leaves memory and comes back with the next one.
        snapshot_interval_s: how often sessions are looked at for a snapshot.
        snapshot_journal_bytes_min: a session is snapshotted once the journal holds so much of it since the last one (or a
            quarter of its state, whichever is more): a smaller tail is replayed faster than a file is opened.
        ask_deadline_s: an ask without an answer for so long ends with DeadlineExceeded.
        mailbox_messages_max, mailbox_bytes_max: what one session may have queued.
        inbound_bytes_max: what all sessions together may have queued.
        recoveries_max: how many sessions are read from disk at once.
    """

    data_dir: Path = field(factory=default_data_dir, converter=Path)
    passivate_after_s: float = 300.0
    snapshot_interval_s: float = 30.0
    snapshot_journal_bytes_min: int = 64 * 1024
    ask_deadline_s: float = 30.0
    mailbox_messages_max: int = 1_000
    mailbox_bytes_max: int = 1024 * 1024
    inbound_bytes_max: int = 256 * 1024 * 1024
    recoveries_max: int = 50
    limits: Limits = field(factory=Limits)
