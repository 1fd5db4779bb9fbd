"""A recording's time limit. The recorder keeps it: it ends the command. In case that it is gone by then, it leaves a timer
with the session, which ends that a minute later as failed."""

import re
from typing import Any

from .tally import duration_text

# GNU timeout(1) ends with it, too.
EXIT_OVER_LIMIT = 124
LIMIT_S_MAX = 366 * 86_400.0
# From SIGTERM to SIGKILL; and for the end of the command and its delivery, until the session's own timer is due.
KILL_AFTER_S = 10.0
GRACE_S = 60.0
KEY = "record.time-limit"

_UNITS_S = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


def read_limit(text: str) -> float:
    """Seconds of `8h`, `1h30m`, `90s`, `2d` or `90` (seconds). Raises ValueError, which says what it may be."""
    given = text.strip().lower()
    if re.fullmatch(r"\d+(?:\.\d+)?", given):
        given += "s"
    seconds = (
        sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(given))
        if _WHOLE.fullmatch(given)
        else 0
    )
    if not 0 < seconds <= LIMIT_S_MAX:
        raise ValueError(f"{text!r} is no time limit; write it like 8h, 1h30m or 90s, up to 366d")
    return seconds


def reason(limit_s: float) -> str:
    """Why a session was ended by it."""
    return f"over its time limit of {duration_text(limit_s)}"


def timer_commands(limit_s: float | None, *, has_timer: bool) -> list[dict[str, Any]]:
    """What leaves the limit with the session.

    Args:
        limit_s: in seconds; None: there is no limit, and one that an earlier attempt left is taken away.
        has_timer: whether an earlier attempt left one.
    """
    if limit_s is None:
        return [{"type": "timer.cancel", "key": KEY}] if has_timer else []
    told = f"{reason(limit_s)}, and its recorder was gone"
    return [
        {
            "type": "timer.set",
            "key": KEY,
            "after_s": limit_s + GRACE_S,
            "clock": "active",
            "action": "fail",
            "reason": told,
        }
    ]
