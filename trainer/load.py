"""Loading a policy: model, tokenizer and chat format from one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from palestra.rollout.attention import require_packable
from palestra.rollout.chat_format import ChatFormat
from palestra.trainer.model_folder import find_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_policy(
    folder: str | Path, *, device: str = "auto", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ChatFormat]:
    """Load a Hugging Face folder for training and generation.

    Raises:
        ValueError: the folder is missing, holds no model, has no chat template, or its
            architecture cannot be packed.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_model_folder(folder)
    chat_format = ChatFormat.load(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} holds no causal language model: {reason}") from None
    require_packable(model)
    torch.nn.Module.to(model, choose_device(device)).eval()
    return model, AutoTokenizer.from_pretrained(folder), chat_format


def silence_transformers() -> None:
    """Keep transformers' own progress bars from breaking ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
    folder: Path,
) -> None:
    """Write a folder that transformers, vLLM and SGLang load, with its chat format."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    chat_format.save(folder)


def choose_device(name: str) -> torch.device:
    """ "auto" takes the first GPU, else the CPU. Raises ValueError for a device that is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device "{name}" cannot be used here: {reason}') from None
    return device
