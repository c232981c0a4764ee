"""One real SGLang server, on the CPU, that the tests here share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from palestra.rollout.engine_sglang import SGLangEngine
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.sglang_launch import sglang_command, sglang_environment
from palestra.trainer.probe import make_probe

CONTEXT_LENGTH = 1000


class Weights:
    """A model's folder, the model as transformers runs it in float32, and its probe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.probe = make_probe(self.model)

    @torch.no_grad()
    def distributions(
        self, prompt: Sequence[int], ids: Sequence[int], temperature: float = 1.0
    ) -> torch.Tensor:
        """Log-probabilities of every token at each position of `ids`."""
        logits_TV = self.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits_TV / temperature, dim=-1)

    def logprobs(
        self, prompt: Sequence[int], ids: Sequence[int], temperature: float = 1.0
    ) -> list[float]:
        logprobs_TV = self.distributions(prompt, ids, temperature)
        picked: list[float] = logprobs_TV.gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist()
        return picked

    def greedy(self, prompt: Sequence[int], n: int) -> tuple[int, ...]:
        ids: list[int] = []
        for _ in range(n):
            ids.append(int(self.distributions(prompt, [*ids, 0])[-1].argmax()))
        return tuple(ids)


async def count_running(engine: SGLangEngine) -> int:
    answer = await engine.control.get("/v1/loads", timeout_s=10)
    loads = answer["loads"]
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)


async def wait_until_running(engine: SGLangEngine, count: int) -> float:
    """How many seconds it took until the server had so many generations."""
    started = time.monotonic()
    for _ in range(3000):
        if await count_running(engine) == count:
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail(f"the server never had {count} generations")
    return time.monotonic() - started


@pytest.fixture(scope="session")
def sglang_python(engine_python: Callable[[str], Path]) -> Path:
    """The interpreter that has SGLang."""
    return engine_python("sglang")


@pytest.fixture(scope="session")
def sglang_server(
    tiny_model_folder: Path,
    sglang_python: Path,
    keep_running: Callable[[ServerProcess], AbstractContextManager[ServerProcess]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    """A running server of `tiny_model_folder` in float32, as `SGLangEngine.launch` starts it.

    A test that changes its weights puts them back.
    """
    server = ServerProcess(
        sglang_command(
            tiny_model_folder,
            python=sglang_python,
            dtype="float32",
            context_length=CONTEXT_LENGTH,
            max_concurrent=32,
            on_gpu=False,
            # Otherwise the tiny model may write spaces for ever, wherever JSON lets it.
            extra_args=["--constrained-json-disable-any-whitespace"],
        ),
        name="SGLang",
        log_path=tmp_path_factory.mktemp("sglang") / "sglang.log",
        env=sglang_environment(on_gpu=False),
    )
    with keep_running(server):
        yield server


@pytest.fixture(scope="session")
def old(tiny_model_folder: Path) -> Weights:
    """What the server was started with."""
    return Weights(tiny_model_folder)


@pytest.fixture(scope="session")
def new(old: Weights, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Every weight of the old model, moved by noise."""
    folder = tmp_path_factory.mktemp("weights") / "new"
    moved = AutoModelForCausalLM.from_pretrained(old.folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    moved.save_pretrained(folder)
    return Weights(folder)
