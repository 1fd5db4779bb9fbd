"""Numbers out of measurements: percentiles, medians with their spread, and how far two sets of rounds lie apart.

Percentiles are exact: the latencies are kept and sorted. At 8 bytes each, the million of a long run is little.
"""

import itertools
import math
import random
import statistics
from collections.abc import Sequence

from attrs import frozen

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
RESAMPLES = 4_000
CONFIDENCE = 0.95
# So many ways to deal the rounds out are gone through one by one; beyond, the normal distribution is near enough.
DEALS_MAX = 20_000


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` (0 to 1) of the sorted values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Those of PERCENTILES, to a tenth; None where there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    return {name: round(percentile(ordered, share), 1) for name, share in PERCENTILES.items()}


def summary(values: Sequence[float]) -> dict[str, float]:
    """The median of the rounds, and how far they lie apart."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }


def over_rounds(rounds: Sequence[dict[str, float] | None]) -> dict[str, float] | None:
    """Each percentile's median over the rounds, and the greatest maximum; None where no round has any."""
    found = [one for one in rounds if one]
    if not found:
        return None
    medians = {name: statistics.median(one[name] for one in found) for name in PERCENTILES}
    return medians | {"max": max(one["max"] for one in found)}


@frozen(kw_only=True)
class Difference:
    """New over old: the ratio of their medians, with a bootstrap interval, and how likely rounds that do not differ lie
    so far apart (Mann and Whitney 1947, two-sided)."""

    ratio: float
    low: float
    high: float
    chance: float

    @property
    def is_shown(self) -> bool:
        """Both agree. The bootstrap alone sees differences among five rounds where there are none."""
        return self.chance < 1 - CONFIDENCE and not self.low <= 1 <= self.high


def difference(old: Sequence[float], new: Sequence[float], seed: int = 1) -> Difference:
    """Args: the figures of the rounds, above zero, at least one each."""
    chance_of = random.Random(seed)
    ratios = sorted(
        statistics.median(chance_of.choices(new, k=len(new)))
        / statistics.median(chance_of.choices(old, k=len(old)))
        for _ in range(RESAMPLES)
    )
    tail = (1 - CONFIDENCE) / 2
    return Difference(
        ratio=statistics.median(new) / statistics.median(old),
        low=percentile(ratios, tail),
        high=percentile(ratios, 1 - tail),
        chance=_chance(old, new),
    )


def _chance(old: Sequence[float], new: Sequence[float]) -> float:
    both = [*old, *new]
    ranks = _ranks(both)
    middle = len(new) * (len(both) + 1) / 2
    apart = abs(sum(ranks[len(old) :]) - middle)
    if math.comb(len(both), len(new)) <= DEALS_MAX:
        deals = [abs(sum(deal) - middle) for deal in itertools.combinations(ranks, len(new))]
        return sum(one >= apart - 1e-9 for one in deals) / len(deals)
    # Ties are left in the variance: rounds that are equal to the last digit are rare, and it errs to the safe side.
    deviation = math.sqrt(len(old) * len(new) * (len(both) + 1) / 12)
    return math.erfc(max(0.0, apart - 0.5) / deviation / math.sqrt(2))


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of their ranks."""
    ordered = sorted(values)
    return [(ordered.index(value) + 1 + len(ordered) - ordered[::-1].index(value)) / 2 for value in values]
