"""How an SGLang server is started: its interpreter, command line and environment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from palestra.rollout.engine_errors import ServerNotStarted
from palestra.rollout.engine_python import find_python

# SGLang keeps so many tokens of its context for itself, and takes no prompt that reaches them.
RESERVED_TOKENS = 7


def sglang_command(
    model_folder: Path,
    *,
    python: str | Path | None,
    dtype: str,
    context_length: int,
    max_concurrent: int,
    on_gpu: bool,
    kv_cache_tokens: int | None = None,
    extra_args: Sequence[str] = (),
) -> Callable[[int], list[str]]:
    """The command line for a port; see `SGLangEngine.launch`.

    Raises:
        ServerNotStarted: there is no such model or interpreter, or its context is shorter.
    """
    config_path = model_folder / "config.json"
    if not config_path.is_file():
        raise ServerNotStarted(f"{model_folder} is not a model folder: it has no config.json")
    config = json.loads(config_path.read_text())
    longest = config.get("max_position_embeddings")
    if longest is not None and context_length > longest:
        raise ServerNotStarted(
            f"context_length {context_length} is longer than the {longest} positions of the model "
            f"in {model_folder}"
        )
    if kv_cache_tokens is None and not on_gpu:
        kv_cache_tokens = max(16_384, 2 * (context_length + RESERVED_TOKENS))
    arguments = [
        *("--model-path", str(model_folder.resolve()), "--served-model-name", "policy"),
        *("--dtype", dtype, "--context-length", str(context_length + RESERVED_TOKENS)),
        *("--max-running-requests", str(max_concurrent), "--sampling-defaults", "openai"),
        *("--skip-server-warmup", "--log-level", "warning", "--incremental-streaming-output"),
    ]
    if kv_cache_tokens is not None:
        arguments += ["--max-total-tokens", str(kv_cache_tokens)]
    if not on_gpu:
        arguments += [
            *("--device", "cpu", "--attention-backend", "torch_native"),
            *("--sampling-backend", "pytorch", "--mem-fraction-static", "0.2"),
            *("--disable-overlap-schedule", "--disable-cuda-graph"),
        ]
    server = [str(python or find_python("sglang")), "-m", "sglang.launch_server"]

    def command(port: int) -> list[str]:
        return [*server, "--host", "127.0.0.1", "--port", str(port), *arguments, *extra_args]

    return command


def sglang_environment(*, on_gpu: bool) -> dict[str, str]:
    """Environment variables of a server, where the user has not set them otherwise."""
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",  # the working directory's `tools` and `envs` are not to be imported
        # The tokens that it reserves may lie beyond the model's last position.
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",
        **({} if on_gpu else {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}),
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}
