"""Resuming: an interrupted rollout plays only what is missing and ends as if uninterrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palestra.envs import ToolEnv
from palestra.rollout import RandomPolicy, Recorder, read_episodes, rollout
from palestra.tools import tool
from palestra.types import Episode, Failure, Message, Outcome, Sampling, Task, ToolSchema, Turn
from palestra.verifiers import Part, Rubric, number, verifier


@tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


TASKS = [
    Task(id=f"sum-{n}", messages=({"role": "user", "content": f"{n} + 25?"},), answer="42")
    for n in range(8)
]


class Counting(RandomPolicy):
    """Chance, which the seed decides; counts first turns and fails where it is told to."""

    def __init__(self, fails: Sequence[str] = ()) -> None:
        super().__init__()
        self.begun: list[str] = []
        self.fails = list(fails)

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        if not history:
            self.begun.append(task.id)
        await asyncio.sleep(0)
        if task.id in self.fails:
            self.fails.remove(task.id)
            raise Failure("engine", "it died")
        return await super().respond(messages, tools, history=history, task=task, sampling=sampling)


def make_env(verifier: Any = number) -> ToolEnv:
    return ToolEnv(tasks=TASKS, tools=[add], verifier=verifier)


async def collect(episodes: AsyncIterator[Episode]) -> list[Episode]:
    return [episode async for episode in episodes]


def play(policy: Counting, verifier: Any = number, **options: Any) -> list[Episode]:
    options = {"n_per_task": 2, "seed": 5, "max_concurrent": 4, **options}
    return asyncio.run(collect(rollout(lambda: make_env(verifier), TASKS, policy, **options)))


def interrupt(policy: Counting, path: Path, after: int) -> None:
    """Play with a recorder, leave after so many episodes, and tear the last line."""

    async def main() -> None:
        with Recorder(path) as recorder:
            episodes = rollout(
                make_env, TASKS, policy, n_per_task=2, seed=5, max_concurrent=4, recorder=recorder
            )
            async with aclosing(episodes):
                for _ in range(after):
                    await anext(episodes)

    asyncio.run(main())
    with open(path, "ab") as file:
        file.write(b'{"id":"sum-7/1","env_id":"Too')


def plain(episodes: Sequence[Episode]) -> list[Episode]:
    return [
        replace(e, timings={}, turns=tuple(replace(turn, timings={}) for turn in e.turns))
        for e in sorted(episodes, key=lambda e: e.id)
    ]


def test_only_what_is_missing_is_played_and_all_is_as_if_uninterrupted(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    interrupt(Counting(fails=["sum-1"]), path, after=7)
    known = read_episodes(path)
    assert known.torn == 1
    assert Outcome.FAILED in {episode.outcome for episode in known}
    policy = Counting()
    with Recorder(path) as recorder:
        episodes = play(policy, recorder=recorder, resume=known)
    final = [episode for episode in known if episode.outcome is Outcome.SCORED]
    assert len(policy.begun) == 16 - len(final)
    assert plain(read_episodes(path)) == plain(episodes)  # nothing twice, nothing lost
    assert plain(episodes) == plain(play(Counting(fails=["sum-1"])))


def test_what_is_complete_is_not_played_at_all(tmp_path: Path) -> None:
    episodes = play(Counting(), max_attempts=1)
    policy = Counting()
    assert play(policy, max_attempts=1, resume=episodes) == sorted(
        episodes, key=lambda e: (e.task.id, e.sample)
    )
    assert policy.begun == []


def test_a_failed_attempt_is_not_repeated_but_followed_by_the_next() -> None:
    [first] = [e for e in play(Counting(fails=["sum-3"]), n_per_task=1) if e.cause == "engine"]
    episodes = play(Counting(), n_per_task=1, resume=[first])
    assert [(e.attempt, str(e.outcome)) for e in episodes if e.task.id == "sum-3"] == [
        (0, "failed"),
        (1, "scored"),
    ]


def test_episodes_of_another_seed_or_task_are_refused() -> None:
    episodes = play(Counting())
    with pytest.raises(ValueError, match="sampled with another seed than 6"):
        play(Counting(), seed=6, resume=episodes)
    other = replace(TASKS[0], messages=({"role": "user", "content": "What else?"},))
    strange = replace(next(e for e in episodes if e.task.id == "sum-0"), task=other)
    with pytest.raises(ValueError, match="of task 'sum-0' has other messages"):
        play(Counting(), resume=[strange])


@verifier(range=(0, 1), shaping=True)
def half(episodes: Sequence[Episode]) -> list[float]:
    """The same for all."""
    return [0.5] * len(episodes)


def test_a_group_that_is_judged_together_is_resumed_whole_or_not_at_all() -> None:
    rubric = Rubric(Part(number), Part(half))
    episodes = play(Counting(), rubric)
    part = [e for e in episodes if (e.task.id, e.sample) != ("sum-2", 1)]
    policy = Counting()
    again = play(policy, rubric, resume=part)
    assert policy.begun == ["sum-2", "sum-2"]
    assert plain(again) == plain(episodes)
