"""The supervision tree: which long-running parts a runtime has, in the order in which they stand on each other.

    runtime (rest_for_one)
      commit       the group-commit writer: what the kernel hands over becomes durable
      kernel       drives the session actors, which are virtual: messages bring them back, restarts are counted for each
      catalog      the projection that lists are read from
      snapshots    the timer
      compaction   events leave the bounded journal for segments
      passivation  idle sessions leave memory
      abandoning   sessions that nobody was heard of for too long are ended
      timers       sessions whose timers are due are woken
      quarantine   marks that count no more are taken back
      mirror       where there is one: keeps it level, and the private server running
      live         sends what happens to the streams that are level

A child that fails takes those below it along, since they stand on it; sessions and their mailboxes belong to the kernel's
registry and outlive all of them. A stale epoch is fatal: another process owns the folder. Without commit or
kernel nothing can be done, so where one of them keeps crashing the runtime stops with its error.
"""

from ..actors.errors import OwnershipLost
from ..actors.kernel.supervisor import ChildSpec, Run, Strategy, Supervisor


def runtime_tree(
    *,
    commit: Run,
    kernel: Run,
    catalog: Run,
    snapshots: Run,
    compaction: Run,
    passivation: Run,
    abandoning: Run,
    timers: Run,
    quarantine: Run,
    live: Run,
    mirror: Run | None = None,
    mirror_server: Run | None = None,
) -> Supervisor:
    """The tree over these parts."""
    mirrors = [
        ChildSpec(child_id="mirror_server", run=mirror_server) if mirror_server is not None else None,
        ChildSpec(child_id="mirror", run=mirror, fatal=(OwnershipLost,)) if mirror is not None else None,
    ]
    return Supervisor(
        Strategy.REST_FOR_ONE,
        [
            ChildSpec(child_id="commit", run=commit, fatal=(OwnershipLost,), essential=True),
            ChildSpec(child_id="kernel", run=kernel, essential=True),
            ChildSpec(child_id="catalog", run=catalog),
            ChildSpec(child_id="snapshots", run=snapshots),
            ChildSpec(child_id="compaction", run=compaction, fatal=(OwnershipLost,)),
            ChildSpec(child_id="passivation", run=passivation),
            ChildSpec(child_id="abandoning", run=abandoning),
            ChildSpec(child_id="timers", run=timers),
            ChildSpec(child_id="quarantine", run=quarantine, fatal=(OwnershipLost,)),
            # Last: nothing stands on them.
            *[child for child in mirrors if child is not None],
            ChildSpec(child_id="live", run=live),
        ],
    )
