"""RL on a real vLLM server, in short: rollouts in a process of their own, weights updated live."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from palestra.rollout.recorder import read_episodes
from palestra.trainer import train_rl
from palestra.trainer.config import RLConfig
from palestra.trainer.session import Session
from palestra.types import Outcome

# Rewards that differ within a group, whatever a model that solves nothing replies.
LOTTERY = """
import zlib
from palestra import ToolEnv, register
from palestra.envs.arithmetic import arithmetic_tasks

def lottery(reply):
    return float(zlib.crc32(reply.encode()) % 2)

class LotteryEnv(ToolEnv):
    def __init__(self, split="train"):
        super().__init__(tasks=arithmetic_tasks(split, 0, 8), verifier=lottery)

register("test/Lottery-v0", LotteryEnv)
"""


def served_config(out: Path, model: Path, **settings: object) -> RLConfig:
    defaults: dict[str, object] = {
        "env": "lottery_env:test/Lottery-v0",
        "engine": "vllm",
        "context_length": 256,
        "max_tokens": 16,
        "steps": 3,
        "tasks_per_step": 4,
        "group_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "eval_every": 3,
        "eval_tasks": 4,
        "max_concurrent": 16,
    }
    return RLConfig.model_validate({"out": out, "model": str(model), **defaults, **settings})


def test_rl_through_vllm_samples_from_the_weights_that_it_has_just_trained(
    tmp_path: Path,
    imitator: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine_python: Callable[[str], Path],
) -> None:
    engine_python("vllm")
    (tmp_path / "lottery_env.py").write_text(LOTTERY)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    result = train_rl.train(
        served_config(run, imitator, engine_args=["--kv-cache-memory-bytes", "67108864"])
    )
    assert result.best.n == 4

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3]
    for step, measured in enumerate(metrics, start=1):
        assert measured["tokens"] > 0
        assert measured["grad_norm"] > 0
        # The engine sampled with the weights that the trainer had when the step began.
        assert measured["logprob_diff_max"] < 1e-3
        episodes = read_episodes(run / "episodes" / f"step_{step:05d}.jsonl")
        assert len(episodes) == 16
        assert all(episode.outcome is Outcome.SCORED for episode in episodes)
        spans = {s.version for e in episodes for turn in e.turns for s in turn.version_spans}
        assert spans == {step - 1}
    assert "67108864" in (run / "logs" / "vllm.log").read_text()


def test_a_context_too_short_for_the_check_after_updates_is_refused(
    tmp_path: Path, imitator: Path
) -> None:
    with pytest.raises(ValueError, match=r"needs a context_length above \d+, .* got 64"):
        Session.open(served_config(tmp_path / "run", imitator, context_length=64))
