"""What the trainer makes of recorded episodes: one weight each, however they branched."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from palestra.trainer import train_rl
from palestra.trainer.advantages import group_relative
from palestra.trainer.batch import pack, rows_of
from palestra.trainer.config import RLConfig
from palestra.types import AGENT, Episode, Message, Outcome, Sampling, Score, Structure, Task

QUESTION: list[Message] = [{"role": "user", "content": "What is 17 + 25?"}]
TASK = Task(id="sum", messages=tuple(QUESTION))


def also(history: list[Message], reply: Message, text: str) -> list[Message]:
    return [*history, reply, {"role": "user", "content": text}]


async def branch(session: Any, ask: Any) -> None:
    """A root with three forks, one of them forked twice; a replay, an edit, a structured turn."""
    root = await ask(session, QUESTION)
    forks = []
    for text in ("Sure?", "Why?", "How?"):
        history = also(QUESTION, root.message, text)
        end = await ask(session, history)
        forks.append(also(history, end.message, "Go on."))
    await ask(session, forks[1])
    await ask(session, forks[1])
    await ask(session, QUESTION)
    edited = [{"role": "user", "content": "What is 17 + 26?"}, *forks[0][1:]]
    await ask(session, edited)
    forced = Sampling(max_tokens=50, structure=Structure(regex="[0-9]+"))
    await ask(session, QUESTION, sampling=forced)


@pytest.fixture
def record(make_engine: Any, open_session: Any, ask: Any) -> Any:
    """Records an episode of so many plain turns, or a branched one, with a reward."""
    engine = make_engine(lambda prompt, number: f"It is {number}.")

    def record(sample: int, reward: float, turns: int | None = None) -> Episode:
        async def play() -> Any:
            session = open_session(engine, max_turns=100)
            if turns is None:
                await branch(session, ask)
            history = QUESTION
            for _ in range(turns or 0):
                end = await ask(session, history)
                history = also(history, end.message, "Go on.")
            return session

        session = asyncio.run(play())
        return Episode(
            id=f"sum/{sample}",
            env_id="test",
            task=TASK,
            prompt=session.prompt,
            turns=session.turns,
            sample=sample,
            outcome=Outcome.SCORED,
            stop_reason="answer",
            scores={AGENT: Score(value=reward)},
            rewards={AGENT: reward},
        )

    return record


def test_every_sampled_token_of_a_branched_episode_trains_exactly_once(record: Any) -> None:
    episode = record(0, 1.0)
    assert [turn.parent for turn in episode.turns] == [None, 0, 0, 0, 2, 2, None, None, None]
    rows = rows_of(episode, 0.5)
    # The paths to the forks' ends, the replay and the edited history.
    assert len(rows) == 6
    trained: Counter[float] = Counter()
    for row in rows:
        assert len(row.sampled_logprobs) == sum(row.loss_mask) == len(row.advantages)
        trained.update(row.sampled_logprobs)
    free = [turn for turn in episode.turns if turn.sampling.structure is None]
    assert trained == Counter(logprob for turn in free for logprob in turn.logprobs)
    assert set(trained.values()) == {1}


def test_each_log_probability_stands_at_the_token_it_was_sampled_with(record: Any) -> None:
    episode = record(0, 1.0)
    sampled = {
        logprob: token
        for turn in episode.turns
        for logprob, token in zip(turn.logprobs, turn.completion_ids, strict=True)
    }
    for row in rows_of(episode, 0.5):
        tokens = [
            token for token, trains in zip(row.token_ids, row.loss_mask, strict=True) if trains
        ]
        assert tokens == [sampled[logprob] for logprob in row.sampled_logprobs]
    batch = pack(rows_of(episode, 0.5))
    assert len(batch.target_ids_S) == len(batch.sampled_logprobs_S)


def test_a_branched_episode_counts_once_in_its_groups_baseline(record: Any, tmp_path: Path) -> None:
    group = [
        record(0, 1.0),
        record(1, 0.0, turns=1),
        record(2, 0.0, turns=3),
        record(3, 0.5, turns=2),
    ]
    config = RLConfig(model="tiny", out=tmp_path, env="none", minibatches=1)
    rows, advantages = train_rl._rows([group], config, 1)
    rewards_G = torch.tensor([1.0, 0.0, 0.0, 0.5])
    expected = group_relative(rewards_G).tolist()
    assert [advantages[episode.id] for episode in group] == pytest.approx(expected)
    assert sum(expected) == pytest.approx(0.0, abs=1e-6)
    for episode, advantage in zip(group, expected, strict=True):
        own = [row for row in rows if row.episode_id == episode.id]
        values = [value for row in own for value in row.advantages]
        assert values == pytest.approx([advantage] * len(values))
        free = [turn for turn in episode.turns if turn.sampling.structure is None]
        assert sum(len(row.advantages) for row in own) == sum(len(t.completion_ids) for t in free)


def test_branching_changes_no_advantage(record: Any, tmp_path: Path) -> None:
    config = RLConfig(model="tiny", out=tmp_path, env="none")
    branched, plain = record(0, 1.0), record(1, 0.0, turns=1)
    straight = replace(branched, turns=branched.turns[:1])
    both = [train_rl._rows([[first, plain]], config, 1)[1] for first in (branched, straight)]
    assert both[0] == both[1]
