"""What a kernel says of itself: frozen values, for facade, bench and tests."""

from attrs import frozen


@frozen(kw_only=True)
class KernelStatistics:
    """Counts since the start, and what is where now. Conservation, between any two steps:
    accepted = replied + rejected + expired + dead_lettered + quarantined + queued + awaiting_commit.

    `replied` counts turns that ran to their end (asks and tells alike, errors of the caller among them); `rejected` asks
    whose commit was refused or whose actor could not start, and what was promised to an actor (the end of a job, a Down),
    which is then handed over again; `expired` asks dropped unhandled after their deadline."""

    accepted: int
    replied: int
    rejected: int
    expired: int
    dead_lettered: int
    quarantined: int
    queued: int
    awaiting_commit: int
    refused: int  # never accepted: a full mailbox, a quarantined actor
    inbound_bytes: int
    actors: int
    actors_quarantined: int
    slots: int
    crashes: int
    starting: int
    start_queue: int  # those that wait for a place to start
    jobs: int  # under way
    monitors: int
    deadlines: int
