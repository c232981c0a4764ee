"""Where a verifier judges a task's episodes together, the driver holds them until all are there."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from palestra.envs import ToolEnv
from palestra.rollout import Recorder, ScriptedPolicy, read_episodes, rollout
from palestra.types import Episode, Outcome
from palestra.verifiers import Part, Rubric, number, verifier

TASKS = [{"prompt": f"{i}?", "answer": "1"} for i in range(4)]


@verifier(range=(0, 1), shaping=True)
def share_right(episodes: Sequence[Episode]) -> list[float]:
    """How many of the group were right, for each of it."""
    right = sum(e.score is not None and e.score.value == 1.0 for e in episodes)
    return [right / len(episodes)] * len(episodes)


RUBRIC = Rubric(Part(number), Part(share_right, 10))


def make_env(verifier: Any = RUBRIC) -> ToolEnv:
    return ToolEnv(tasks=TASKS, verifier=verifier)


def play(verifier: Any = RUBRIC, repeat: int = 1, **options: Any) -> list[Episode]:
    tasks = list(make_env().tasks) * repeat
    answers = itertools.cycle("11211122")
    policy = ScriptedPolicy([lambda messages: next(answers)])

    async def main() -> list[Episode]:
        episodes = rollout(lambda: make_env(verifier), tasks, policy, **options)
        async with aclosing(episodes):
            return [episode async for episode in episodes]

    return asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("max_concurrent", [4, 5, 256])
def test_each_episode_gets_what_its_group_deserves(max_concurrent: int) -> None:
    episodes = play(n_per_task=4, max_concurrent=max_concurrent)
    assert len(episodes) == 16
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.task.id, []).append(episode)
    for group in groups.values():
        values = [e.score.value for e in group if e.score is not None]
        expected = [value + 10 * sum(values) / 4 for value in values]
        assert [e.reward for e in group] == pytest.approx(expected)
        assert [e.sample for e in group] == [0, 1, 2, 3]


def test_the_recorder_gets_the_rewards_that_are_yielded(tmp_path: Path) -> None:
    with Recorder(tmp_path / "e.jsonl") as recorder:
        episodes = play(n_per_task=2, recorder=recorder)
    assert list(read_episodes(tmp_path / "e.jsonl")) == episodes
    lines = (tmp_path / "e.jsonl").read_text().splitlines()
    assert all("share_right" in json.loads(line)["scores"]["agent"]["parts"] for line in lines)


def test_a_task_that_comes_again_makes_another_group() -> None:
    episodes = play(n_per_task=2, repeat=2)
    assert len(episodes) == 16
    assert sorted({e.sample for e in episodes}) == [0, 1, 2, 3]


def test_failed_attempts_are_yielded_and_only_the_last_waits_for_the_group() -> None:
    def fragile(reply: str, answer: str) -> float:
        raise KeyError("always")

    episodes = play(Rubric(Part(fragile), Part(share_right)), n_per_task=2, max_attempts=2)
    assert len(episodes) == 16
    assert {e.outcome for e in episodes} == {Outcome.FAILED}
    assert {e.cause for e in episodes} == {"verifier:fragile"}


def test_a_group_that_has_no_room_is_refused_rather_than_waited_for() -> None:
    with pytest.raises(ValueError, match=r"judges 4 episodes of a task together: max_concurrent"):
        play(n_per_task=4, max_concurrent=3)


def test_without_a_group_verifier_episodes_come_as_they_end() -> None:
    episodes = play(number, n_per_task=4, max_concurrent=2)
    assert len(episodes) == 16
    assert {e.reward for e in episodes} <= {0.0, 1.0}
