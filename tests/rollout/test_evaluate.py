"""Evaluation: means with intervals, and what has no score is counted, never averaged."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from palestra.envs import ToolEnv
from palestra.rollout import ScriptedPolicy, tool_call
from palestra.rollout.evaluate import Evaluation, evaluate, mean_interval, summarize
from palestra.tools import tool
from palestra.types import Episode, Failure, Message, Outcome, Sampling, Score, Task, Turn
from palestra.verifiers import exact


@tool
async def flip(a: int) -> int:
    """Negate."""
    return -a


TASKS = [
    Task(
        id=f"{index:02d}", messages=({"role": "user", "content": "?"},), answer=str(index % 4 != 0)
    )
    for index in range(20)
]


def make_env() -> ToolEnv:
    return ToolEnv(tasks=TASKS, tools=[flip], verifier=exact)


def episode_of(task: str, score: float | None, *, sample: int = 0, attempt: int = 0) -> Episode:
    return Episode(
        id=f"{task}/{sample}.{attempt}",
        env_id="Test",
        task=Task(id=task, messages=()),
        sample=sample,
        attempt=attempt,
        prompt=(),
        turns=(),
        outcome=Outcome.FAILED if score is None else Outcome.SCORED,
        stop_reason="failed" if score is None else "answer",
        cause="engine" if score is None else None,
        scores={} if score is None else {"agent": Score(value=score)},
        rewards={} if score is None else {"agent": score},
    )


def test_a_policy_is_scored_over_all_tasks_with_its_errors_counted() -> None:
    policy = ScriptedPolicy([tool_call("flip", a="x"), "True"])
    seen: list[Episode] = []
    result = asyncio.run(evaluate(make_env, TASKS, policy, on_episode=seen.append))
    assert (result.mean, result.n, result.n_tasks) == (0.75, 20, 20)
    assert result.mean_reward == 0.75
    assert (result.mean_turns, result.mean_tokens) == (2.0, 0.0)
    assert result.tool_errors == {"bad_arguments": 20}
    assert result.stop_reasons == {"answer": 20}
    assert (result.masked, result.retried) == ({}, {})
    assert len(seen) == 20


def test_masked_samples_are_in_no_mean_but_the_one_that_says_so() -> None:
    class Breaks(ScriptedPolicy):
        async def respond(
            self,
            messages: Sequence[Message],
            tools: Sequence[Any],
            *,
            history: Sequence[Turn] = (),
            task: Task,
            sampling: Sampling,
        ) -> Turn:
            if int(task.id) < 5:
                raise Failure("engine", "out of memory")
            return await super().respond(
                messages, tools, history=history, task=task, sampling=sampling
            )

    result = asyncio.run(evaluate(make_env, TASKS, Breaks(["True"])))
    assert result.masked == {"engine": 5}
    assert result.retried == {"engine": 5}
    assert result.n == 15
    assert result.mean == pytest.approx(12 / 15)
    assert result.mean_with_masked_as_zero == pytest.approx(12 / 20)


def test_a_sample_that_got_its_score_at_the_second_attempt_is_not_masked() -> None:
    result = summarize([episode_of("a", 1.0, attempt=1), episode_of("a", None)])
    assert (result.mean, result.n, result.masked) == (1.0, 1, {})
    assert result.retried == {"engine": 1}
    assert result.mean_with_masked_as_zero == 1.0


def test_without_any_score_the_mean_is_unknown_and_the_interval_everything() -> None:
    result = summarize([episode_of("a", None)])
    assert math.isnan(result.mean)
    assert (result.low, result.high, result.n) == (0.0, 1.0, 0)
    assert result.mean_with_masked_as_zero == 0.0
    with pytest.raises(ValueError, match="there are no episodes"):
        summarize([])


def test_the_order_in_which_episodes_end_changes_no_figure() -> None:
    draw = random.Random(0)
    episodes = [
        episode_of(f"{t}", draw.random(), sample=sample) for t in range(30) for sample in range(3)
    ]

    def shuffled() -> Evaluation:
        return summarize(draw.sample(episodes, len(episodes)))

    assert shuffled() == shuffled()


def test_one_sample_of_zero_or_one_per_task_gives_wilsons_interval() -> None:
    # Hand-computed from Wilson's formula for 8 of 10 and published tables for 0 of 10.
    mean, low, high = mean_interval([[1.0]] * 8 + [[0.0]] * 2)
    assert (mean, low, high) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)
    mean, low, high = mean_interval([[0.0]] * 10)
    assert (mean, low, high) == pytest.approx((0.0, 0.0, 0.27754), abs=1e-5)
    mean, low, high = mean_interval([[1.0]] * 500)
    assert (mean, low, high) == pytest.approx((1.0, 0.99237, 1.0), abs=1e-5)


def test_samples_that_repeat_each_other_narrow_nothing() -> None:
    once = mean_interval([[1.0]] * 15 + [[0.0]] * 5)
    assert mean_interval([[1.0] * 8] * 15 + [[0.0] * 8] * 5) == pytest.approx(once)


def test_samples_that_differ_within_a_task_narrow_the_interval() -> None:
    _, low, high = mean_interval([[1.0, 0.0, 1.0, 1.0]] * 10 + [[1.0, 1.0, 1.0, 0.0]] * 9 + [[0.0]])
    _, once_low, once_high = mean_interval([[1.0]] * 15 + [[0.0]] * 5)
    assert high - low < once_high - once_low


def test_the_interval_of_graded_scores_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(1)
    covered = 0
    for _ in range(2_000):
        by_task = []
        for _ in range(40):
            difficulty = draw.betavariate(2, 1)  # mean 2/3
            by_task.append([draw.betavariate(4 * difficulty, 4 * (1 - difficulty) + 1e-9)] * 1)
        _, low, high = mean_interval(by_task)
        covered += low <= 2 / 3 <= high
    assert 0.92 <= covered / 2_000 <= 0.98


def test_the_interval_of_clustered_successes_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(2)
    covered = 0
    for _ in range(2_000):
        by_task = []
        for _ in range(40):
            success = draw.betavariate(2, 1)
            by_task.append([float(draw.random() < success) for _ in range(4)])
        _, low, high = mean_interval(by_task)
        covered += low <= 2 / 3 <= high
    assert 0.92 <= covered / 2_000 <= 0.98


def test_graded_scores_that_are_all_equal_still_have_an_interval() -> None:
    mean, low, high = mean_interval([[0.5]] * 4)
    assert mean == 0.5
    assert low < 0.5 < high


def test_rewards_are_averaged_apart_from_scores() -> None:
    episodes = [replace(episode_of("a", 1.0), rewards={"agent": -1.0})]
    assert (summarize(episodes).mean, summarize(episodes).mean_reward) == (1.0, -1.0)
