"""Whole test runs among 1,000 live sessions at a fixed rate (--rate, 500 events a second) for an hour (--duration): fails where
memory, descriptors or the event loop's lag grow. Needs --soak. The ceiling is the same in the first minute or tenth."""

from typing import Any

from attrs import evolve, frozen

from ..bare_redis import NAMESPACE, server
from ..figures import percentile
from ..harness import Measured, Options, Stopwatch
from ..live import new_sessions, open_runtime
from ..memory import descriptors, resident_bytes
from ..pace import LagMeter, offer
from .mixed import Hands, hot
from .mixed_short import EVENTS

UNIT = "events"
COMPARED = "p99_us"
WARM_UP = False
NEEDS = "soak"
ROUNDS = 1
SESSIONS = 1_000
RATE_PER_S = 500.0
DURATION_S = 3_600.0
STRETCHES = 30
# Beyond both the share and the amount, something grows. The amounts are what one busy moment may cost.
GROWN_SHARE = 1.25
GROWN_BYTES = 32 * 1024 * 1024
GROWN_DESCRIPTORS = 16
GROWN_LAG_US = 10_000.0
LOOKS_MIN = 100


@frozen(kw_only=True)
class Look:
    """What one stretch of the soak left behind."""

    resident_bytes: int
    descriptors: int
    lag_p99_us: float
    p99_us: float
    answered: int


def growing(looks: list[Look]) -> list[str]:
    """What grows, in words: the last quarter of the stretches against the second, by their medians. The first quarter is
    left out: caches and pools fill then. Fewer than eight stretches say nothing."""
    if len(looks) < 8:
        return []
    quarter = len(looks) // 4
    early, late = looks[quarter : 2 * quarter], looks[-quarter:]

    def medians(name: str) -> tuple[float, float]:
        found = [percentile(sorted(getattr(look, name) for look in some), 0.5) for some in (early, late)]
        return found[0], found[1]

    said = []
    for name, amount, what in (
        ("resident_bytes", GROWN_BYTES, "resident memory"),
        ("descriptors", GROWN_DESCRIPTORS, "open descriptors"),
        ("lag_p99_us", GROWN_LAG_US, "the event loop's lag (us, p99)"),
    ):
        before, after = medians(name)
        if after > before + amount and after > before * GROWN_SHARE:
            said.append(f"{what} grew from {before:,.0f} to {after:,.0f}")
    return said


async def both(options: Options) -> tuple[Measured, Measured]:
    stretch_s = (options.duration_s or DURATION_S) / STRETCHES
    rate_per_s = options.rate_per_s or RATE_PER_S
    looks: list[Look] = []
    # Sessions that ended are handed over and leave memory as in any server; what is to be seen is what stays.
    quickly = {"passivate_after_s": max(0.5, stretch_s / 4), "seal_after_s": 1.0}
    async with (
        server(options) as url,
        open_runtime(mirror=url, mirror_namespace=NAMESPACE, **quickly) as runtime,
    ):
        await new_sessions(runtime, options.sessions or SESSIONS)
        hands = Hands(runtime, options.ack, await new_sessions(runtime, hot(options)), EVENTS)
        with Stopwatch() as watch:
            for number in range(STRETCHES):
                async with LagMeter() as lag:
                    offered = await offer(hands.act, rate_per_s=rate_per_s, duration_s=stretch_s, seed=number)
                looks.append(
                    Look(
                        resident_bytes=resident_bytes(),
                        descriptors=descriptors(),
                        lag_p99_us=_lag_p99_us(lag.lag_us),
                        p99_us=percentile(sorted(offered.latencies_us), 0.99),
                        answered=offered.answered,
                    )
                )
    whole, beginning = _measured(looks, watch), _measured(looks[: max(1, STRETCHES // 10)], watch)
    return evolve(whole, failed="; ".join(growing(looks)) or None), beginning


def _lag_p99_us(lag_us: list[float]) -> float:
    """0 of too few looks: their p99 would be the one worst moment, and rise and fall by chance."""
    return percentile(sorted(lag_us), 0.99) if len(lag_us) >= LOOKS_MIN else 0.0


def _measured(looks: list[Look], watch: Stopwatch) -> Measured:
    more: dict[str, Any] = {
        "resident_bytes": [look.resident_bytes for look in looks],
        "descriptors": [look.descriptors for look in looks],
        "lag_p99_us": [round(look.lag_p99_us) for look in looks],
    }
    return Measured(
        operations=sum(look.answered for look in looks),
        elapsed_s=watch.elapsed_s * len(looks) / STRETCHES,
        cpu_s=watch.cpu_s * len(looks) / STRETCHES,
        latencies_us=[look.p99_us for look in looks],
        more=more,
    )
