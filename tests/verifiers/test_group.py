"""Group-level verifiers add to the rewards of a task's scored episodes, and to nothing else."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from palestra.types import AGENT, Episode, Failure, Outcome, Score, Task, Turn, Unscorable
from palestra.verifiers import Part, Rubric, number, verifier
from palestra.verifiers.group import judge_group

TASK = Task(id="t", messages=(), answer="42")


def episode(sample: int, *, reward: float = 1.0, turns: int = 2) -> Episode:
    played = [Turn(message={"role": "assistant", "content": f"{i}"}) for i in range(turns)]
    played[-1] = Turn(message=played[-1].message, reward=reward)
    return Episode(
        id=f"t/{sample}",
        env_id="e",
        task=TASK,
        prompt=(),
        turns=tuple(played),
        outcome=Outcome.SCORED,
        stop_reason="answer",
        sample=sample,
        scores={AGENT: Score(value=0.5, reward=reward, parts={"number": 0.5})},
        rewards={AGENT: reward},
    )


FAILED = Episode(
    id="t/9",
    env_id="e",
    task=TASK,
    prompt=(),
    turns=(),
    outcome=Outcome.FAILED,
    stop_reason="failed",
    cause="engine",
    sample=9,
)


@verifier(range=(-1, 0), shaping=True)
def most_turns(episodes: Sequence[Episode]) -> list[float]:
    lengths = [len(e.turns) for e in episodes]
    return [-float(length == max(lengths)) for length in lengths]


def judged(group_verifier: Any, *episodes: Episode, weight: float = 1.0) -> tuple[Episode, ...]:
    rubric = Rubric(Part(number), Part(group_verifier, weight))
    return asyncio.run(judge_group(rubric.group_parts, episodes))


def test_rewards_of_turn_episode_and_score_change_together_and_the_value_does_not() -> None:
    short, long = judged(most_turns, episode(0), episode(1, turns=3), weight=0.25)
    score = Score(value=0.5, reward=1.0, parts={"number": 0.5, "most_turns": 0.0})
    assert short == replace(episode(0), scores={AGENT: score})
    assert (long.reward, long.turns[-1].reward) == (0.75, 0.75)
    assert long.score == Score(value=0.5, reward=0.75, parts={"number": 0.5, "most_turns": -1.0})
    assert sum(turn.reward for turn in long.turns) == long.reward


def test_only_scored_episodes_are_seen_and_changed() -> None:
    seen: list[int] = []

    def look(episodes: Sequence[Episode], task: Task, answer: str) -> list[float]:
        seen.extend(e.sample for e in episodes)
        assert (task, answer) == (TASK, "42")
        return [1.0] * len(episodes)

    first, failed, last = judged(look, episode(0), FAILED, episode(2))
    assert seen == [0, 2]
    assert (first.reward, last.reward) == (2.0, 2.0)
    assert failed is FAILED
    assert judged(look, FAILED) == (FAILED,)


def test_several_parts_add_up_and_may_be_asynchronous() -> None:
    async def later(episodes: Sequence[Episode]) -> list[float]:
        await asyncio.sleep(0.01)
        return [0.5 for _ in episodes]

    rubric = Rubric(Part(number), Part(most_turns), Part(later, 2))
    (only,) = asyncio.run(judge_group(rubric.group_parts, [episode(0)]))
    assert only.reward == 1.0 - 1.0 + 2 * 0.5
    assert only.score is not None
    assert only.score.parts == {"number": 0.5, "most_turns": -1.0, "later": 0.5}


def test_one_episode_may_be_unscorable() -> None:
    def judge(episodes: Sequence[Episode]) -> list[Any]:
        return [Unscorable("no verdict", cause="judge"), *[1.0] * (len(episodes) - 1)]

    first, second = judged(judge, episode(0), episode(1))
    assert (first.outcome, first.cause, first.detail) == (
        Outcome.UNSCORABLE,
        "judge:judge",
        "no verdict",
    )
    assert (first.scores, first.rewards, first.reward) == ({}, {}, 0.0)
    assert (second.outcome, second.reward) == (Outcome.SCORED, 2.0)


@pytest.mark.parametrize(
    ("returned", "detail"),
    [
        ([1.0], "a verdict for each of 2 episodes, got 1"),
        ([1.0, 2.0], "a score must be between 0 and 1, got 2.0"),
        ([math.nan, 1.0], "a score must be between 0 and 1, got nan"),
        ([None, 1.0], "a verifier returns a Score, a bool or a number from 0 to 1, got None"),
        (None, "TypeError: 'NoneType' object is not iterable"),
        (KeyError("x"), "KeyError: 'x'"),
        (Failure("judge", "gone"), "gone"),
    ],
)
def test_a_verdict_that_is_none_fails_the_group(returned: Any, detail: str) -> None:
    def odd(episodes: Sequence[Episode]) -> Any:
        if isinstance(returned, Exception):
            raise returned
        return returned

    for failed in judged(odd, episode(0), episode(1)):
        assert failed.outcome is Outcome.FAILED
        assert detail in failed.detail
        assert failed.cause in ("verifier:odd", "judge:odd")
        assert failed.rewards == {}


def test_a_group_verifier_that_is_unscorable_makes_the_group_so() -> None:
    def odd(episodes: Sequence[Episode]) -> Any:
        raise Unscorable("no reference")

    assert [e.outcome for e in judged(odd, episode(0), episode(1))] == [Outcome.UNSCORABLE] * 2


def test_a_group_verifier_that_hangs_fails_the_group_in_time() -> None:
    @verifier(timeout_s=0.05)
    def hang(episodes: Sequence[Episode]) -> list[float]:
        time.sleep(1)
        return [1.0]

    (failed,) = judged(hang, episode(0))
    assert (failed.outcome, failed.cause) == (Outcome.FAILED, "verifier:hang")
    assert "no verdict after 0.05 s" in failed.detail


def test_trouble_that_does_not_come_back_was_a_hiccup() -> None:
    tries: list[int] = []

    def flaky(episodes: Sequence[Episode]) -> list[float]:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("the judge restarts")
        return [1.0]

    (only,) = judged(flaky, episode(0))
    assert only.reward == 2.0


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Rubric(Part(most_turns)), "needs a part that judges the answer"),
        (lambda: Rubric(Part(number), Part(lambda episodes, reply: [])), 'asks for "reply"'),
        (lambda: Rubric(Part(number), Part(lambda episodes: [], name="number")), "two parts"),
        (
            lambda: Rubric(Part(Rubric(Part(number), Part(most_turns)), name="inner")),
            "inner judges episodes together: only an environment's own rubric can",
        ),
    ],
)
def test_a_group_part_where_it_cannot_be_is_refused(make: Callable[[], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()
