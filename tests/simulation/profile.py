"""What one seed makes of the world: which faults there are and how often, how the runtime is set, how much is asked."""

import math
import random
from pathlib import Path

from attrs import frozen

from sojourn.actors.session.model import Limits
from sojourn.runtime.settings import Settings

# Each with the range its rate is drawn from, log-uniform: of store calls, or of client actions for the last two.
FAULTS = {
    "error": (1e-3, 1e-1),  # a call fails, and nothing was done
    "unknown": (1e-3, 1e-1),  # a write fails, and was done, or a part of it
    "full": (5e-4, 2e-2),  # no room for a while
    "silence": (5e-4, 1e-2),  # a store does not answer for a while
    "stall": (1e-3, 3e-2),  # a call takes very long
    "outlasted": (1e-1, 1.0),  # a read of what is recent takes as long as its archiving
    "garbled": (1e-2, 3e-1),  # an object does not read back as it was written
    "rot": (2e-3, 5e-2),  # a byte of an object turns over, at rest
    "stale": (3e-1, 1.0),  # what a dead process was writing reaches its store once another owns the folder
    "lost": (1e-3, 5e-2),  # the mirror has lost a session, or all of them
    "older": (1e-3, 5e-2),  # a session stands in the mirror as it was some time ago
    "kill": (5e-4, 2e-2),  # the process is gone; what was written, synced or not, stays
    "power": (5e-4, 2e-2),  # the machine is gone; what was not synced may be lost
    "stop": (5e-4, 2e-2),  # the process is told to end, and does
    "pause": (1e-3, 3e-2),  # the process does not run for a while
    "clock": (1e-3, 3e-2),  # the wall clock is set
    "slow": (1e-5, 1e-3),  # seconds that each reading of the clock takes: a busy machine
    "crash": (5e-3, 1e-1),  # a command on which the actor's code fails
    "cancel": (5e-3, 2e-1),  # a caller leaves before it is answered
}
# In a world without the folder's lock alone: the process rests, another one takes the folder over, and then this one goes on.
TAKEN = (5e-4, 1e-2)
# What the seeds of CI must have met: every fault that strikes at a moment or at a call, in every phase that has calls for it.
READING = ("look", "recovery", "stream")
WRITING = ("archive", "catalog", "commit", "compaction", "hand-off", "mirror", "seal", "snapshot", "start")
DIRECTED = tuple(
    (fault, phase)
    for fault in ("error", "silence", "stall", "kill", "power", "stop", "pause", "clock")
    for phase in (*READING, *WRITING)
) + tuple(
    (fault, phase)
    for fault, phases in {
        "unknown": WRITING,
        "full": ("catalog", "commit", "compaction", "hand-off", "seal", "snapshot", "start"),
        "garbled": ("archive", "compaction", "hand-off", "snapshot"),
        "outlasted": ("ask", "recovery"),
        "rot": ("archived", "declared", "manifest", "recovery", "segment", "snapshot"),
        "stale": ("catalog", "commit", "mirror"),
        "lost": ("mirror",),
        "older": ("mirror",),
        "crash": ("commit",),
        "cancel": ("commit", "facts"),
        # What persons do about what is set aside takes effect.
        "edit": ("person",),
        "release": ("person",),
        "retry": ("person",),
        "skip": ("person",),
    }.items()
    for phase in phases
)
DEATHS_MAX = 5  # of a process, in one seed: a start costs more than a command


@frozen(kw_only=True)
class Profile:
    """`rates` holds the faults that are on. Times in seconds."""

    seed: int
    rates: dict[str, float]
    delay_s: float
    think_s: float
    commands: int
    clients: int
    sessions: int
    mirror: bool
    settings: Settings

    def rate(self, fault: str) -> float:
        """0 for one that is off."""
        return self.rates.get(fault, 0.0)


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """As likely from 1 to 10 as from 10 to 100."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def rng_of(seed: int, part: str) -> random.Random:
    """A stream of its own for each part of a seed, so that one more draw here moves nothing there."""
    return random.Random(f"{seed}/{part}")


def draw(seed: int, *, without_lock: bool = False) -> Profile:
    """One seed in ten has no fault at all: what must hold then is more."""
    rng = rng_of(seed, "profile")
    share = rng.choice([0.0, 0.15, 0.3, 0.3, 0.5, 0.5, 0.5, 0.7, 0.9, 0.3])
    rates = {name: log_uniform(rng, *bounds) for name, bounds in FAULTS.items() if rng.random() < share}
    if without_lock:
        rates["taken"] = log_uniform(rng_of(seed, "taken"), *TAKEN)
    sessions = rng.choice([1, 1, 2, 3, 4, 6])
    return Profile(
        seed=seed,
        rates=rates,
        delay_s=rng.choice([0.0, 0.0005, 0.003, 0.02]),
        think_s=rng.choice([0.0, 0.01, 0.1, 0.5]),
        commands=int(log_uniform(rng, 120, 1_000)),
        clients=rng.choice([1, 2, 4, 6]),
        sessions=sessions,
        mirror=rng.random() < 0.5,
        settings=_settings(rng),
    )


def _settings(rng: random.Random) -> Settings:
    """Small bounds, so that a short life meets them all."""
    return Settings(
        data_dir=Path("/nowhere"),  # the stores are given, and nothing else looks at it
        abandon_after_s=rng.choice([86_400.0, 86_400.0, 15.0, 60.0]),
        recent_days=rng.choice([0.0, 5 / 86_400, 60 / 86_400]),
        seal_after_s=rng.choice([0.0, 0.5, 5.0]),
        journal_bytes_max=rng.choice([6_000, 20_000, 60_000, 1 << 20]),
        moves_at_once_max=rng.choice([1, 2, 4]),
        passivate_after_s=rng.choice([1.0, 5.0, 60.0]),
        snapshot_interval_s=rng.choice([0.2, 1.0, 5.0]),
        snapshot_journal_bytes_min=rng.choice([0, 1_000, 10_000]),
        ask_deadline_s=rng.choice([2.0, 10.0, 30.0]),
        mailbox_messages_max=rng.choice([2, 8, 1_000]),
        mailbox_bytes_max=rng.choice([600, 4_000, 1 << 20]),
        recoveries_max=rng.choice([1, 2, 50]),
        limits=Limits(
            dedup_commands_max=rng.choice([200, 1_024]), results_max=rng.choice([5, 100_000]), sources_max=64
        ),
    )
