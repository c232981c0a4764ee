"""How two raters agree: accuracy, Cohen's kappa with its interval, consistency, correlation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How two raters agree on the same things.

    `accuracy` is the share on which they say the same. `kappa` is Cohen's: 0 is what chance gives,
    1 is always; `kappa_low` and `kappa_high` are its 95% interval by the large-sample variance of
    Fleiss, Cohen and Everitt (1969), too narrow below about 50 things. Where both always say the
    same one thing kappa does not exist, and is NaN.
    """

    count: int
    accuracy: float
    kappa: float
    kappa_low: float
    kappa_high: float


def agreement(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> Agreement:
    """How two raters agree, category by category, on the same things in the same order.

    Raises:
        ValueError: not equally many ratings.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"two raters of the same things: got {len(ours)} and {len(theirs)}")
    count = len(ours)
    if count == 0:
        return Agreement(
            count=0, accuracy=math.nan, kappa=math.nan, kappa_low=math.nan, kappa_high=math.nan
        )
    cells = {pair: n / count for pair, n in Counter(zip(ours, theirs, strict=True)).items()}
    rows = {name: n / count for name, n in Counter(ours).items()}
    columns = {name: n / count for name, n in Counter(theirs).items()}
    observed = math.fsum(share for (a, b), share in cells.items() if a == b)
    expected = math.fsum(share * columns.get(name, 0.0) for name, share in rows.items())
    if expected >= 1:
        return Agreement(
            count=count, accuracy=1.0, kappa=math.nan, kappa_low=math.nan, kappa_high=math.nan
        )
    kappa = (observed - expected) / (1 - expected)
    # Fleiss, Cohen and Everitt (1969), Psychological Bulletin 72, equation 13.
    terms = [
        share * (1 - (rows[a] + columns[b]) * (1 - kappa)) ** 2
        if a == b
        else share * ((1 - kappa) * (columns.get(a, 0.0) + rows.get(b, 0.0))) ** 2
        for (a, b), share in cells.items()
    ]
    variance = math.fsum(terms) - (kappa - expected * (1 - kappa)) ** 2
    half_width = _Z_95 * math.sqrt(max(0.0, variance) / count) / (1 - expected)
    return Agreement(
        count=count,
        accuracy=observed,
        kappa=kappa,
        kappa_low=max(-1.0, kappa - half_width),
        kappa_high=min(1.0, kappa + half_width),
    )


def self_consistency(verdicts: Sequence[Sequence[Hashable | None]]) -> float:
    """The share of equal pairs among all pairs of verdicts on the same thing; None is no verdict.

    NaN without a pair.
    """
    equal = pairs = 0
    for repeated in verdicts:
        given = Counter(verdict for verdict in repeated if verdict is not None)
        total = sum(given.values())
        pairs += total * (total - 1) // 2
        equal += sum(n * (n - 1) // 2 for n in given.values())
    return share(equal, pairs)


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's, of equally many numbers; NaN where one of them does not vary."""
    if not xs:
        return math.nan
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    covariance = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    spread_x = math.fsum((x - mean_x) ** 2 for x in xs)
    spread_y = math.fsum((y - mean_y) ** 2 for y in ys)
    if spread_x == 0 or spread_y == 0:
        return math.nan
    return covariance / math.sqrt(spread_x * spread_y)


def share(part: int, whole: int) -> float:
    """A part of a whole; NaN of nothing."""
    return part / whole if whole else math.nan
