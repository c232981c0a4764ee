"""LoRA adapters exchanged in a running vLLM server, and what it serves after it was killed."""

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from palestra.rollout.engine import Probe
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.trainer.probe import make_probe
from palestra.types import Completion, Sampling, VersionSpan

PROMPT = tuple(range(5, 45))

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """An adapter's folder, the model that has it, and its probe."""

    folder: Path
    model: Any
    probe: Probe

    @torch.no_grad()
    def logprobs(self, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        logits_TV = self.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0]
        logprobs_TV = torch.log_softmax(logits_TV[len(prompt) - 1 : -1], dim=-1)
        return logprobs_TV.gather(-1, torch.tensor(ids)[:, None])[:, 0]


def make_adapter(base: Path, folder: Path, seed: int) -> Adapter:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return Adapter(folder=folder, model=model.eval(), probe=make_probe(model))


def test_adapters_are_exchanged_checked_and_put_back_after_a_crash(
    tiny_model_folder: Path, vllm_python: Path, tmp_path: Path
) -> None:
    first = make_adapter(tiny_model_folder, tmp_path / "first", 1)
    second = make_adapter(tiny_model_folder, tmp_path / "second", 2)
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    base_probe = make_probe(base)
    damaged = tmp_path / "damaged"
    shutil.copytree(second.folder, damaged)
    content = (damaged / "adapter_model.safetensors").read_bytes()
    (damaged / "adapter_model.safetensors").write_bytes(content[:-10])

    async def sample(engine: VLLMEngine, n: int = 32) -> Completion:
        return await engine.generate(PROMPT, Sampling(max_tokens=n, seed=7))

    async def run() -> None:
        engine = await VLLMEngine.launch(
            tiny_model_folder,
            stop_ids=frozenset(),
            context_length=1024,
            max_concurrent=8,
            kv_cache_gib=1 / 16,
            python=vllm_python,
            log_folder=tmp_path,
            extra_args=["--enable-lora", "--max-lora-rank", "8", "--max-loras", "1"],
            env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "OMP_NUM_THREADS": "1"},
        )
        try:
            await engine.update_weights(1, lora=first.folder, probe=first.probe)
            completion = await sample(engine)
            assert_sampled_by(completion, first, 1, 0, 32)

            # In the middle of generations: the adapter changes, the base does not.
            generation = asyncio.create_task(sample(engine, 600))
            await asyncio.sleep(0.5)
            await engine.update_weights(2, lora=second.folder, probe=second.probe, mode="keep")
            completion = await generation
            switch = completion.version_spans[0].end
            assert 0 < switch < 600
            assert_sampled_by(completion, first, 1, 0, switch)
            assert_sampled_by(completion, second, 2, switch, 600)

            with pytest.raises(ValueError, match=r"adapter_model.safetensors is cut short"):
                await engine.update_weights(3, lora=damaged, probe=second.probe)
            with pytest.raises(ValueError, match="there is no adapter_config"):
                await engine.update_weights(3, lora=tmp_path / "none", probe=second.probe)
            completion = await sample(engine)
            assert_sampled_by(completion, second, 2, 0, 32)

            # A server that is killed starts again with the base model alone.
            assert engine.server is not None
            os.kill(engine.server.pid, signal.SIGKILL)
            await engine.server.wait()
            await asyncio.sleep(0.5)
            completion = await sample(engine)
            assert_sampled_by(completion, second, 2, 0, 32)
            assert engine.version == 2

            await engine.update_weights(4, tiny_model_folder, probe=base_probe)
            completion = await engine.generate(PROMPT, Sampling(temperature=0.0, max_tokens=1))
            with torch.no_grad():
                expected = int(base(torch.tensor([PROMPT])).logits[0, -1].argmax())
            assert completion.ids == (expected,)
            assert completion.version_spans == (recomputed(4, 0, 1),)
        finally:
            await engine.aclose()

    asyncio.run(run())


def recomputed(version: int, start: int, end: int) -> VersionSpan:
    """Tokens of weights whose update threw older weights' keys away."""
    return VersionSpan(version=version, start=start, end=end, kv_after_update="recompute")


def assert_sampled_by(
    completion: Completion, adapter: Adapter, version: int, start: int, end: int
) -> None:
    assert recomputed(version, start, end) in completion.version_spans
    expected = adapter.logprobs(PROMPT, completion.ids)[start:end]
    assert (torch.tensor(completion.logprobs)[start:end] - expected).abs().max() < 1e-3
