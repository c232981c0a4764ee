"""By how much one policy is better than another on the same tasks, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

from palestra.types import Episode


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Mean score after minus before; `low` and `high` bound its 95% confidence interval."""

    mean: float
    low: float
    high: float
    n_tasks: int


def paired_difference(before: Iterable[Episode], after: Iterable[Episode]) -> Difference:
    """The mean over tasks of the differences of their mean scores, and its normal interval.

    Tasks that were scored only before or only after take no part: most of the spread between tasks
    cancels out in a pair, and would not for them.

    Raises:
        ValueError: fewer than two tasks were scored both times.
    """
    scores_before, scores_after = _scores(before), _scores(after)
    both = sorted(scores_before.keys() & scores_after.keys())
    if len(both) < 2:
        raise ValueError(f"a paired difference needs at least 2 tasks, got {len(both)}")
    differences = [fmean(scores_after[task]) - fmean(scores_before[task]) for task in both]
    mean = fmean(differences)
    margin = 1.959964 * stdev(differences) / math.sqrt(len(both))
    return Difference(mean=mean, low=mean - margin, high=mean + margin, n_tasks=len(both))


def _scores(episodes: Iterable[Episode]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {}
    for episode in episodes:
        if episode.score is not None:
            scores.setdefault(episode.task.id, []).append(episode.score.value)
    return scores
