"""vLLM inside a process, in its own environment: what is claimed there is checked there."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from palestra.rollout.engine_vllm_inprocess import InProcessVLLM


@pytest.mark.slow
def test_it_samples_and_takes_weights_from_memory_in_the_middle_of_generations(
    tiny_model_folder: Path, vllm_python: Path, tmp_path: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "new")
    script = Path(__file__).with_name("inprocess_check.py")
    done = subprocess.run(
        [str(vllm_python), str(script), str(tiny_model_folder), str(tmp_path / "new")],
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "every claim holds" in done.stdout


def test_without_vllm_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"install palestra\[vllm\], or start a server"):
        InProcessVLLM(tmp_path, stop_ids=frozenset(), context_length=64)
