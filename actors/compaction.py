"""What may leave the journal, and when: the pure rules of compaction.

The journal is bounded. Compaction begins when it holds two fifths of what it may and ends at one fifth, so that a restart
has little to read; from there to the bound is what the fleet can write while compaction is at work. Shortly before the bound
commits are slowed, or they would have to wait at it until much is free.
"""

from attrs import frozen

BEGIN_SHARE = 0.4
END_SHARE = 0.2
SPARE_SHARE = (
    0.2  # rows that stay while that spares most of the sessions: no more than stays at the end anyway
)
SLOW_SHARE = 0.85
SLOW_S_MAX = 0.025  # at the bound


def bytes_to_free(size_bytes: int, bytes_max: int) -> int:
    """How much should leave a journal that holds `size_bytes`; 0 while compaction need not begin."""
    if size_bytes <= bytes_max * BEGIN_SHARE:
        return 0
    return int(size_bytes - bytes_max * END_SHARE)


def slowed_s(size_bytes: int, bytes_max: int) -> float:
    """How long a commit waits, before it, where the journal holds `size_bytes`: some ms, the longer the fuller it is."""
    return SLOW_S_MAX * min(1.0, max(0.0, (size_bytes / bytes_max - SLOW_SHARE) / (1 - SLOW_SHARE)))


@frozen(kw_only=True)
class Kept:
    """How far a session is kept outside the journal: its verified segments reach from 1 to `segments_seq`, its two kept
    snapshots stand at `newest_seq` and `older_seq` (0: there is none), its last event is `head_seq`."""

    segments_seq: int
    newest_seq: int
    older_seq: int
    head_seq: int


def releasable_seq(kept: Kept) -> int:
    """The seq up to which the journal need not keep a session's events.

    They stand in a verified segment, and above the older snapshot they stay in the journal as well: a newest snapshot
    that turns out damaged then costs nothing. A session that has been idle since its newest snapshot is released up to
    that: its segments are the second copy of its state, and it would pin its rows for ever otherwise.
    """
    floor_seq = kept.newest_seq if kept.newest_seq == kept.head_seq else kept.older_seq
    return min(kept.segments_seq, floor_seq)
