import asyncio
from pathlib import Path

import pytest

from palestra import envs
from palestra.envs.arithmetic import ArithmeticEnv, arithmetic_tasks
from palestra.rollout.driver import rollout
from palestra.rollout.policy import OraclePolicy
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
