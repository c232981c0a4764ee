import asyncio
from pathlib import Path

import pytest

from palestra import envs
from palestra.envs.arithmetic import ArithmeticEnv, arithmetic_tasks
from palestra.rollout.driver import rollout
from palestra.rollout.policy import OraclePolicy
from palestra.trainer import train_sft
from palestra.trainer.config import SFTConfig
from palestra.trainer.demonstrations import write_demonstrations


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred solved arithmetic tasks, as JSONL."""
    path = tmp_path_factory.mktemp("data") / "demonstrations.jsonl"
    episodes = rollout(
        lambda: envs.make("palestra/Arithmetic-v0"),
        arithmetic_tasks("train")[:200],
        OraclePolicy(ArithmeticEnv.solve),
    )
    assert asyncio.run(write_demonstrations(path, episodes)) == 200
    return path


@pytest.fixture(scope="session")
def imitator(tmp_path_factory: pytest.TempPathFactory, demonstrations: Path) -> Path:
    """A tiny model after a few steps on the demonstrations: it writes, but solves nothing."""
    config = SFTConfig(
        model="tiny",
        out=tmp_path_factory.mktemp("sft") / "run",
        data=demonstrations,
        steps=6,
        batch_rows=16,
        learning_rate=2e-3,
        context_length=256,
        max_tokens=24,
    )
    return train_sft.train(config).checkpoint
