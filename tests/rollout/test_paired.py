"""Paired differences, against numbers by hand."""

import math

import pytest

from palestra.rollout.paired import paired_difference
from palestra.types import AGENT, Episode, Outcome, Score, Task


def scored(task: str, value: float | None, sample: int = 0) -> Episode:
    return Episode(
        id=f"{task}/{sample}",
        env_id="test",
        task=Task(id=task, messages=()),
        prompt=(),
        turns=(),
        outcome=Outcome.FAILED if value is None else Outcome.SCORED,
        stop_reason="answer",
        sample=sample,
        scores={} if value is None else {AGENT: Score(value=value)},
    )


def test_the_mean_of_the_differences_and_its_interval() -> None:
    before = [scored(task, value) for task, value in zip("abcd", (0, 0, 1, 1), strict=True)]
    after = [scored(task, value) for task, value in zip("dcba", (1, 1, 1, 0), strict=True)]
    found = paired_difference(before, after)
    # Differences 0, 1, 0, 0: mean 1/4, variance 1/4.
    assert (found.mean, found.n_tasks) == (0.25, 4)
    assert found.high - found.mean == pytest.approx(1.959964 * math.sqrt(0.25 / 4))
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_samples_of_a_task_are_one_pair() -> None:
    before = [scored("a", 0.0), scored("a", 1.0, 1), scored("b", 0.0)]
    after = [scored("a", 1.0), scored("b", 0.5)]
    found = paired_difference(before, after)
    assert (found.mean, found.low, found.high, found.n_tasks) == (0.5, 0.5, 0.5, 2)


def test_tasks_without_a_pair_take_no_part() -> None:
    before = [scored("a", 0.0), scored("b", 0.0), scored("c", None)]
    after = [scored("a", 1.0), scored("b", 1.0), scored("c", 1.0), scored("d", 0.0)]
    assert paired_difference(before, after).n_tasks == 2
    with pytest.raises(ValueError, match="at least 2 tasks, got 1"):
        paired_difference(before[:1], after)
