"""How good a policy is: the mean score on a set of tasks, with its uncertainty."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import gymnasium

from palestra.rollout.driver import rollout
from palestra.rollout.episode import DEFAULT_LIMITS, DEFAULT_SAMPLING, Limits
from palestra.rollout.policy import Policy
from palestra.rollout.recorder import Recorder
from palestra.types import Episode, Outcome, Sampling, Task, Turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a policy scored; `low` and `high` bound the mean's 95% confidence interval.

    `n` counts scored samples. `masked` counts, by cause, the samples that never got a score: they
    are in no mean but `mean_with_masked_as_zero`. `retried` counts the attempts that did not and
    were made again. `usage` sums up what an endpoint charged for the turns of all attempts.
    """

    mean: float
    low: float
    high: float
    n: int
    n_tasks: int
    masked: Mapping[str, int]
    retried: Mapping[str, int]
    mean_with_masked_as_zero: float
    stop_reasons: Mapping[str, int]
    tool_errors: Mapping[str, int]
    mean_reward: float
    mean_turns: float
    mean_tokens: float  # sampled per episode
    usage: Mapping[str, float] = field(default_factory=dict)


async def evaluate(
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    tasks: Iterable[Task],
    policy: Policy,
    *,
    n_per_task: int = 1,
    max_concurrent: int = 256,
    limits: Limits = DEFAULT_LIMITS,
    sampling: Sampling = DEFAULT_SAMPLING,
    seed: int = 0,
    max_attempts: int = 2,
    recorder: Recorder | None = None,
    on_episode: Callable[[Episode], None] = lambda episode: None,
) -> Evaluation:
    """Play every task `n_per_task` times and sum up; `on_episode` sees each attempt as it ends."""
    episodes = []
    async for episode in rollout(
        make_env,
        tasks,
        policy,
        n_per_task=n_per_task,
        max_concurrent=max_concurrent,
        limits=limits,
        sampling=sampling,
        seed=seed,
        max_attempts=max_attempts,
        recorder=recorder,
    ):
        on_episode(episode)
        episodes.append(episode)
    return summarize(episodes)


def summarize(episodes: Iterable[Episode]) -> Evaluation:
    """The evaluation that these episodes, all attempts included, amount to.

    Raises:
        ValueError: no episodes.
    """
    attempts = list(episodes)
    if not attempts:
        raise ValueError("there are no episodes to sum up")
    last: dict[tuple[str, int], Episode] = {}
    for episode in attempts:
        key = (episode.task.id, episode.sample)
        if key not in last or episode.attempt > last[key].attempt:
            last[key] = episode
    # In one order whichever ended first: the same episodes give the same figures to the last bit.
    finals = [last[key] for key in sorted(last)]
    scored = [episode for episode in finals if episode.outcome is Outcome.SCORED]
    masked = Counter(_cause(e) for e in finals if e.outcome is not Outcome.SCORED)
    unscored = Counter(_cause(e) for e in attempts if e.outcome is not Outcome.SCORED)
    by_task: dict[str, list[float]] = {}
    for episode in scored:
        assert episode.score is not None
        by_task.setdefault(episode.task.id, []).append(episode.score.value)
    mean, low, high = mean_interval(list(by_task.values()))
    tool_errors: Counter[str] = Counter()
    for episode in scored:
        tool_errors.update(episode.tool_errors())
    return Evaluation(
        mean=mean,
        low=low,
        high=high,
        n=len(scored),
        n_tasks=len(by_task),
        masked=dict(masked),
        retried=dict(unscored - masked),
        mean_with_masked_as_zero=mean * len(scored) / len(finals) if scored else 0.0,
        stop_reasons=dict(Counter(episode.stop_reason for episode in scored)),
        tool_errors=dict(tool_errors),
        mean_reward=_mean(episode.reward for episode in scored),
        mean_turns=_mean(len(episode.turns) for episode in scored),
        mean_tokens=_mean(sum(map(_sampled, e.turns)) for e in scored),
        usage=_usage(attempts),
    )


def mean_interval(scores_by_task: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean of scores in [0, 1] and its 95% interval, aware that samples of a task are alike.

    Wilson's interval at the effective sample size p (1 - p) / variance of the mean, the variance
    taken over tasks (Dean and Pagano, J. Survey Statistics and Methodology 3(4), 2015). With one
    sample of 0 or 1 per task it is Wilson's interval exactly; more samples of the same tasks
    narrow it only as far as they differ, and graded scores as far as they spread less.

    Returns (nan, 0, 1) if there are no scores.
    """
    scores = [score for of_task in scores_by_task for score in of_task]
    if not scores:
        return math.nan, 0.0, 1.0
    mean = fmean(scores)
    # The mean is a ratio of two sums over tasks, hence deviations of sums, not of means.
    deviations = [math.fsum(of_task) - mean * len(of_task) for of_task in scores_by_task]
    variance = math.fsum(d * d for d in deviations) / len(scores) ** 2
    spread = mean * (1.0 - mean)
    # Scores that are all 0 or all 1 show no variance: then each task counts once.
    effective_n = spread / variance if spread > 0 and variance > 0 else len(scores_by_task)
    z = 1.959964  # the normal distribution's 97.5% quantile
    shrink = 1.0 + z * z / effective_n
    center = (mean + z * z / (2 * effective_n)) / shrink
    margin = z * math.sqrt(spread / effective_n + (z / (2 * effective_n)) ** 2) / shrink
    return mean, max(0.0, center - margin), min(1.0, center + margin)


def _sampled(turn: Turn) -> float:
    """How many tokens; of an endpoint's turn what it counted."""
    return len(turn.completion_ids) or turn.usage.get("completion_tokens", 0)


def _usage(episodes: Sequence[Episode]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for episode in episodes:
        for turn in episode.turns:
            for name, amount in turn.usage.items():
                totals[name] = totals.get(name, 0.0) + amount
    return totals


def _cause(episode: Episode) -> str:
    return episode.cause or str(episode.outcome)


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return fmean(values) if values else math.nan
