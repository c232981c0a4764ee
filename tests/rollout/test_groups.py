"""Where a verifier judges a task's episodes together, the driver holds them until all are there."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from palestra.envs import ToolEnv
from palestra.rollout import (
    EpisodeGroup,
    Recorder,
    ScriptedPolicy,
    read_episodes,
    rollout,
    rollout_groups,
)
from palestra.types import Episode, Failure, Message, Outcome, Sampling, Task, ToolSchema, Turn
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


# --- whole groups, as they end


class Paced:
    """Answers when it is told to, and notes what was cancelled."""

    def __init__(self, seconds: Callable[[Task, int], float]) -> None:
        self._seconds = seconds
        self._seen: dict[str, int] = {}
        self.cancelled: list[str] = []

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        nth = self._seen[task.id] = self._seen.get(task.id, -1) + 1
        seconds = self._seconds(task, nth)
        if seconds < 0:
            raise Failure("engine", "it died")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(task.id)
            raise
        return Turn(message={"role": "assistant", "content": "1"}, sampling=sampling)


def play_groups(
    policy: Paced, verifier: Any = number, tasks: Any = None, **options: Any
) -> list[EpisodeGroup]:
    async def main() -> list[EpisodeGroup]:
        chosen = list(make_env().tasks) if tasks is None else tasks
        groups = rollout_groups(lambda: make_env(verifier), chosen, policy, **options)
        async with asyncio.timeout(30), aclosing(groups):
            found = [group async for group in groups]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found

    return asyncio.run(main())


def test_groups_come_whole_and_as_soon_as_they_are_complete() -> None:
    tasks = list(make_env().tasks)
    slow = tasks[0].id
    policy = Paced(lambda task, nth: 0.3 if task.id == slow and nth == 2 else 0.001)
    groups = play_groups(policy, n_per_task=3)
    assert [group.episodes[0].task.id for group in groups][-1] == slow
    assert len(groups) == 4
    for group in groups:
        assert len({e.task.id for e in group.episodes}) == 1
        assert [e.sample for e in group.episodes] == [0, 1, 2]
        assert not group.surplus


def test_a_group_holds_the_attempts_that_failed() -> None:
    policy = Paced(lambda task, nth: -1.0 if nth == 1 else 0.001)
    for group in play_groups(policy, n_per_task=2):
        attempts = [(e.sample, e.attempt, str(e.outcome)) for e in group.episodes]
        assert attempts == [(0, 0, "scored"), (1, 0, "failed"), (1, 1, "scored")]


@pytest.mark.parametrize("judge", [number, RUBRIC])
def test_of_more_groups_than_wanted_the_slowest_are_cancelled_and_counted(
    judge: Any, tmp_path: Path
) -> None:
    tasks = list(make_env().tasks)
    slow = {tasks[1].id, tasks[2].id}
    policy = Paced(lambda task, nth: (0.001 if nth == 0 else 60.0) if task.id in slow else 0.3)
    with Recorder(tmp_path / "e.jsonl") as recorder:
        groups = play_groups(policy, judge, n_per_task=2, n_groups=2, recorder=recorder)
    wanted = [group for group in groups if not group.surplus]
    surplus = [group for group in groups if group.surplus]
    assert {group.episodes[0].task.id for group in wanted} == {tasks[0].id, tasks[3].id}
    assert {group.episodes[0].task.id for group in surplus} == slow
    assert sorted(policy.cancelled) == sorted(slow)  # the engine was told
    for group in surplus:
        finished, cancelled = group.episodes
        assert (cancelled.outcome, cancelled.cause) == (Outcome.FAILED, "cancelled")
        assert not cancelled.rewards
        assert finished.outcome is Outcome.SCORED
    recorded = read_episodes(tmp_path / "e.jsonl")
    assert sorted(e.id for e in recorded) == sorted(e.id for g in groups for e in g.episodes)


def test_what_has_not_begun_when_enough_are_complete_never_begins() -> None:
    def endless() -> Any:
        for n in itertools.count():
            yield Task(id=f"{n}", messages=({"role": "user", "content": "?"},), answer="1")

    policy = Paced(lambda task, nth: 0.001)
    groups = play_groups(policy, tasks=endless(), n_per_task=2, n_groups=5, max_concurrent=4)
    assert len([group for group in groups if not group.surplus]) == 5
    assert len(groups) <= 5 + 2


def test_a_rollout_of_which_enough_was_seen_resumes_as_it_ended() -> None:
    tasks = list(make_env().tasks)
    policy = Paced(lambda task, nth: 60.0 if task.id == tasks[1].id else 0.001)
    groups = play_groups(policy, n_per_task=2, n_groups=3)
    idle = Paced(lambda task, nth: 60.0)
    episodes = [episode for group in groups for episode in group.episodes]
    again = play_groups(idle, n_per_task=2, n_groups=3, resume=episodes)
    assert [group for group in again if not group.surplus] == sorted(
        (group for group in groups if not group.surplus), key=lambda g: g.episodes[0].task.id
    )
    assert not idle.cancelled


def test_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="n_groups must be at least 1, got 0"):
        play_groups(Paced(lambda task, nth: 0.0), n_per_task=2, n_groups=0)
