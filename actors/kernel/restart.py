"""When a crashed child starts again, and when it is set aside instead: a pure rule.

The budget is counted per child. With one budget for all, as in OTP, a single crash-looping child takes down its siblings.
"""

import enum

from attrs import define, field, frozen


class Restart(enum.Enum):
    """Which ends of a child are followed by a new start."""

    PERMANENT = "permanent"  # every end: to return is a crash too
    TRANSIENT = "transient"  # a crash alone: to return is its end
    TEMPORARY = "temporary"  # none


@frozen(kw_only=True)
class Intensity:
    """How often a child may crash, and how long it waits before it starts again.

    Attributes:
        restarts_max: more crashes than this within `period_s` set the child aside.
        period_s: the window of that count, in seconds.
        backoff_s: the pause after the first crash of a window; it doubles with each further one.
        backoff_max_s: the longest pause.
        jitter: the pause is scaled by a factor within 1 +- jitter, so that children that fell together don't return together.
    """

    restarts_max: int = 5
    period_s: float = 60.0
    backoff_s: float = 0.05
    backoff_max_s: float = 10.0
    jitter: float = 0.2


@define
class CrashHistory:
    """The times of a child's recent crashes, at most `restarts_max` + 1 of them."""

    crashes: list[float] = field(factory=list)


def next_start(history: CrashHistory, intensity: Intensity, *, now: float, random: float) -> float | None:
    """Count a crash at `now` and say how many seconds to wait before the child starts again; None: set it aside.

    Args:
        now: on any clock that does not fall, in seconds.
        random: uniform in [0, 1).
    """
    recent = [at for at in history.crashes if now - at < intensity.period_s]
    recent.append(now)
    recent = history.crashes = recent[-intensity.restarts_max - 1 :]
    if len(recent) > intensity.restarts_max:
        return None
    pause = min(intensity.backoff_s * 2.0 ** (len(recent) - 1), intensity.backoff_max_s)
    return pause * (1 + intensity.jitter * (2 * random - 1))
