"""The stages end to end, on the tiny model and palestra/Arithmetic-v0."""

import asyncio
import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from palestra import envs
from palestra.rollout.driver import run_episode
from palestra.rollout.policy import TokenPolicy
from palestra.rollout.recorder import read_episodes
from palestra.trainer import train_rl, train_sft
from palestra.trainer.batch import Row, pack, rows_of
from palestra.trainer.config import RLConfig, SFTConfig
from palestra.trainer.demonstrations import demonstration_rows, read_demonstrations
from palestra.trainer.logprobs import token_logprobs
from palestra.trainer.optimizer import Optimizer
from palestra.trainer.rollouts import EmbeddedRollouts
from palestra.trainer.session import Session, tasks_of
from palestra.types import Episode, Outcome, Sampling, Score, Task, Turn
from palestra.verifiers.context import last_reply

ENV = "palestra/Arithmetic-v0"


def sft_config(out: Path, data: Path, **settings: object) -> SFTConfig:
    defaults: dict[str, object] = {
        "model": "tiny",
        "steps": 6,
        "batch_rows": 16,
        "learning_rate": 2e-3,
        "context_length": 256,
        "max_tokens": 24,
    }
    return SFTConfig.model_validate({"out": out, "data": data, **defaults, **settings})


def rl_config(out: Path, model: Path, **settings: object) -> RLConfig:
    defaults: dict[str, object] = {
        "env": ENV,
        "env_args": {"max_turns": 3},
        "steps": 2,
        "tasks_per_step": 4,
        "group_size": 4,
        "learning_rate": 1e-3,
        "context_length": 256,
        "max_tokens": 16,
        "eval_every": 2,
        "eval_tasks": 8,
        "log_kl": True,
    }
    return RLConfig.model_validate({"out": out, "model": str(model), **defaults, **settings})


def metrics_of(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_demonstrations_train_every_reply_and_nothing_else(demonstrations: Path) -> None:
    conversations = read_demonstrations(demonstrations)
    config = sft_config(Path("unused"), demonstrations)
    session = Session.open(config, conversations)
    messages, tools = conversations[0]
    [row] = demonstration_rows(messages, tools, session.chat_format)
    tokenizer: Any = session.tokenizer
    text = tokenizer.decode(row.token_ids)
    full = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert full == text + "\n"  # nothing follows the last reply but the template's newline
    trained = [i for i, trains in zip(row.token_ids, row.loss_mask, strict=True) if trains]
    replies = tokenizer.decode(trained, skip_special_tokens=False).split("<|im_end|>")
    assert replies.pop() == ""
    assert len(replies) == sum(m["role"] == "assistant" for m in messages)
    assert replies[-1] == messages[-1]["content"]
    assert all(reply.startswith("<tool_call>") for reply in replies[:-1])


def test_sft_lowers_the_loss_and_writes_a_run(tmp_path: Path, demonstrations: Path) -> None:
    run = tmp_path / "run"
    settings = {"steps": 12, "env": ENV, "eval_every": 6, "eval_tasks": 4}
    result = train_sft.train(sft_config(run, demonstrations, **settings))
    metrics = metrics_of(run)
    losses = [float(str(m["loss"])) for m in metrics]
    assert losses[-1] < 0.7 * losses[0]
    assert [m["step"] for m in metrics if "success" in m] == [6, 12]
    assert result.evaluation is not None and result.evaluation.n == 4
    assert (result.checkpoint / "model.safetensors").is_file()
    assert (run / "config.toml").is_file()


def test_sft_ends_when_the_measure_says_so(tmp_path: Path, demonstrations: Path) -> None:
    settings = {"steps": 50, "env": ENV, "eval_every": 3, "eval_tasks": 4, "stop_at_success": 0.0}
    assert train_sft.train(sft_config(tmp_path / "run", demonstrations, **settings)).steps == 3


def test_sft_evaluates_only_after_steps_of_a_low_loss(tmp_path: Path, demonstrations: Path) -> None:
    run = tmp_path / "run"
    settings = {"env": ENV, "eval_every": 2, "eval_tasks": 4, "eval_below_loss": 5.0}
    train_sft.train(sft_config(run, demonstrations, **settings))
    metrics = metrics_of(run)
    assert {m["step"] for m in metrics if "success" in m} == {
        m["step"] for m in metrics if m["step"] in (2, 4, 6) and float(str(m["loss"])) < 5.0
    }
    assert 0 < sum("success" in m for m in metrics) < 3


def test_rl_writes_metrics_episodes_transcripts_and_the_best_checkpoint(
    tmp_path: Path, imitator: Path
) -> None:
    run = tmp_path / "run"
    result = train_rl.train(rl_config(run, imitator))
    metrics = metrics_of(run)
    assert [m["step"] for m in metrics] == [1, 2]
    assert metrics[0]["episodes"] == 16
    assert "heldout" in metrics[1] and "heldout" not in metrics[0]
    episodes = read_episodes(run / "episodes" / "step_00001.jsonl")
    assert len(episodes) == 16
    assert len({episode.task.id for episode in episodes}) == 4
    assert (result.checkpoint / "chat_format.json").is_file()
    roles = {
        token[1]
        for line in (run / "transcripts.jsonl").read_text().splitlines()
        for token in json.loads(line)["tokens"]
    }
    assert {"prompt", "sampled"} <= roles


def test_rl_raises_the_probability_of_what_was_rewarded(tmp_path: Path, imitator: Path) -> None:
    """One task, and a reward for the character that about half of the first replies hold."""
    from palestra import ToolEnv, envs

    rewarded: list[str] = []

    def holds_the_character(reply: str) -> bool:
        return bool(rewarded) and rewarded[0] in reply

    envs.register(
        "HoldsCharacter-v0",
        ToolEnv,
        tasks=[{"prompt": "1 + 1"}],
        verifier=holds_the_character,
        force=True,
    )
    run = tmp_path / "run"
    settings = {
        "env": "HoldsCharacter-v0",
        "env_args": {},
        "steps": 8,
        "tasks_per_step": 1,
        "group_size": 64,
        "eval_every": 8,
        "eval_tasks": 1,
        "learning_rate": 3e-3,
    }
    config = rl_config(run, imitator, **settings)
    replies = first_replies(config, 64)
    characters = sorted(set("".join(replies)))
    shares = {c: sum(c in reply for reply in replies) / len(replies) for c in characters}
    rewarded.append(min(characters, key=lambda c: abs(shares[c] - 0.5)))
    assert 0.1 < shares[rewarded[0]] < 0.8

    train_rl.train(config)
    rewards = [float(str(m["reward_mean"])) for m in metrics_of(run)]
    assert sum(rewards[-2:]) / 2 > rewards[0] + 0.1


def policy_of(session: Session) -> TokenPolicy:
    assert isinstance(session.rollouts, EmbeddedRollouts)
    return session.rollouts.policy


def first_replies(config: RLConfig, count: int) -> list[str]:
    session = Session.open(config)
    [task] = tasks_of(config, "train")[:1]
    env = envs.make(config.env, split="train", **config.env_args)
    sampling = Sampling(max_tokens=config.max_tokens)
    return [
        last_reply(
            asyncio.run(
                run_episode(env, policy_of(session), task, sampling=sampling, sample=sample)
            ).messages
        )
        for sample in range(count)
    ]


def test_the_engine_and_the_trainer_agree_on_every_sampled_token(imitator: Path) -> None:
    session = Session.open(rl_config(Path("unused"), imitator))
    config = rl_config(Path("unused"), imitator)
    [task] = tasks_of(config, "train")[:1]
    env = envs.make(config.env, split="train", **config.env_args)
    checked = 0
    for sample in range(12):
        episode = asyncio.run(
            run_episode(
                env, policy_of(session), task, sampling=Sampling(max_tokens=16), sample=sample
            )
        )
        for row in rows_of(episode, 1.0):
            with torch.no_grad():
                logprobs_S, _ = token_logprobs(session.model, pack([row]))
            assert logprobs_S.tolist() == pytest.approx(row.sampled_logprobs, abs=1e-4)
            checked += len(logprobs_S)
    assert checked > 50


def test_tool_output_receives_no_gradient_end_to_end(demonstrations: Path) -> None:
    """Changing an advantage changes the loss's gradient only through sampled tokens.

    The gradient with respect to each position's logits is taken by hooking the head's input: it
    must vanish exactly where the next token was not sampled.
    """
    conversations = read_demonstrations(demonstrations)
    session = Session.open(sft_config(Path("unused"), demonstrations), conversations)
    messages, tools = random.Random(0).choice(conversations)
    [row] = demonstration_rows(messages, tools, session.chat_format)
    batch = pack([row])
    states: list[Any] = []
    model: Any = session.model

    def keep(module: Any, inputs: Any, output: Any) -> None:
        output.retain_grad()
        states.append(output)

    handle = model.base_model.norm.register_forward_hook(keep)
    token_logprobs(session.model, batch)[0].sum().backward()
    handle.remove()
    gradient_T = states[0].grad[0].abs().sum(-1)
    predicts_sampled_T = torch.tensor([*row.loss_mask[1:], False])
    assert (gradient_T[predicts_sampled_T] > 0).all()
    assert (gradient_T[~predicts_sampled_T] == 0).all()


def test_shuffled_rewards_keep_their_sum_and_lose_their_owners(imitator: Path) -> None:
    def episode(task: str, sample: int, reward: float) -> Episode:
        turn = Turn(
            message={"role": "assistant", "content": ""},
            prompt_ids=(1,),
            completion_ids=(2,),
            logprobs=(-1.0,),
            sampling=Sampling(),
        )
        return Episode(
            id=f"{task}-{sample}",
            env_id="test",
            task=Task(id=task, messages=()),
            prompt=(),
            turns=(turn,),
            outcome=Outcome.SCORED,
            stop_reason="answer",
            scores={"agent": Score(value=reward)},
            rewards={"agent": reward},
        )

    groups = [[episode("a", i, 1.0) for i in range(8)], [episode("b", i, 0.0) for i in range(8)]]
    honest = rl_config(Path("unused"), imitator)
    rows, advantages = train_rl._rows(groups, honest, step=1)
    assert rows == [] and set(advantages.values()) == {0.0}
    shuffled = honest.model_copy(update={"shuffle_rewards": True})
    rows, advantages = train_rl._rows(groups, shuffled, step=1)
    assert len(rows) == 16 and any(advantages.values())


def test_a_step_reports_how_often_the_template_rewrote_what_was_said() -> None:
    def episode(*parents: int | None) -> Episode:
        turns = tuple(
            Turn(message={"role": "assistant", "content": ""}, prompt_ids=(1,), parent=parent)
            for parent in parents
        )
        return Episode(
            id="0",
            env_id="test",
            task=Task(id="0", messages=()),
            prompt=(),
            turns=turns,
            outcome=Outcome.SCORED,
            stop_reason="answer",
        )

    extended, rewritten = episode(None, 0, 1), episode(None, None, None)
    assert train_rl._describe([[extended, rewritten]], {})["rewrites"] == 1.0
    assert "rewrites" not in train_rl._describe([[extended]], {})


def test_a_step_reports_the_policy_that_sampled_however_many_updates_follow(
    tmp_path: Path, imitator: Path
) -> None:
    settings = {"updates_per_step": 2, "minibatches": 2, "steps": 1}
    config = rl_config(tmp_path / "run", imitator, learning_rate=2e-2, **settings)
    groups = sampled_groups(config)
    rewards = {episode.id: float(i % 2) for group in groups for i, episode in enumerate(group)}
    rows = [row for g in groups for e in g for row in rows_of(e, rewards[e.id] - 0.5)]
    session = Session.open(config)
    reference = copy.deepcopy(session.model)
    optimizer = Optimizer(session.model, config, updates=4)
    metrics = train_rl._update(session.model, reference, optimizer, rows, config, step=1)
    assert metrics["logprob_diff_max"] < 1e-4
    assert metrics["kl_ref"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["clip_fraction"] > 0  # of the last update, when ratios have moved
    assert metrics["tokens"] == sum(sum(row.loss_mask) for row in rows)


def sampled_groups(config: RLConfig) -> list[list[Episode]]:
    session = Session.open(config)
    env = envs.make(config.env, split="train", **config.env_args)
    sampling = Sampling(max_tokens=config.max_tokens)
    return [
        [
            asyncio.run(
                run_episode(env, policy_of(session), task, sampling=sampling, sample=sample)
            )
            for sample in range(4)
        ]
        for task in tasks_of(config, "train")[:2]
    ]


def test_every_pass_deals_each_row_to_one_update(imitator: Path) -> None:
    config = rl_config(Path("unused"), imitator, updates_per_step=2, minibatches=3)
    rows = [row_of(token) for token in range(8)]
    parts = list(train_rl._minibatches(rows, config, step=1))
    assert [len(part) for part in parts] == [3, 3, 2, 3, 3, 2]
    first, second = ([row for part in parts[i : i + 3] for row in part] for i in (0, 3))
    assert sorted(first, key=rows.index) == sorted(second, key=rows.index) == rows
    assert first != second
    assert parts == list(train_rl._minibatches(rows, config, step=1))


def test_fewer_rows_than_minibatches_make_fewer_updates(imitator: Path) -> None:
    config = rl_config(Path("unused"), imitator, minibatches=4)
    assert [len(p) for p in train_rl._minibatches([row_of(1), row_of(2)], config, 1)] == [1, 1]


def row_of(token: int) -> Row:
    return Row(
        token_ids=(token, token),
        loss_mask=(False, True),
        sampled_logprobs=(-1.0,),
        advantages=(1.0,),
        temperatures=(1.0,),
    )
