"""How a vLLM server is started: its interpreter, command line and environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from palestra.rollout.engine_errors import ServerNotStarted
from palestra.rollout.engine_python import find_python, has_gpu

# The worker's side of live weight updates.
_UPDATABLE = (
    *("--worker-extension-cls", "palestra.rollout.vllm_worker.WorkerExtension"),
    *("--weight-transfer-config", '{"backend":"disk"}'),
)


def vllm_command(
    model_folder: Path,
    *,
    python: str | Path | None,
    dtype: str,
    context_length: int,
    max_concurrent: int,
    kv_cache_gib: float | None,
    extra_args: Sequence[str] = (),
) -> Callable[[int], list[str]]:
    """The command line for a port; see `VLLMEngine.launch`.

    Raises:
        ServerNotStarted: there is no such model or interpreter.
    """
    if not (model_folder / "config.json").is_file():
        raise ServerNotStarted(f"{model_folder} is not a model folder: it has no config.json")
    on_gpu = has_gpu()
    if kv_cache_gib is None and not on_gpu:
        kv_cache_gib = 1.0
    arguments = [
        *("--model", str(model_folder.resolve()), "--served-model-name", "model"),
        *("--dtype", dtype, "--max-model-len", str(context_length)),
        *("--max-num-seqs", str(max_concurrent), "--enable-scale-out"),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
        # OpenAI's 20 likeliest tokens, and the sampled one, which vLLM counts among them.
        *("--max-logprobs", "21"),
        *("--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"),
        *_UPDATABLE,
    ]
    if kv_cache_gib is not None:
        arguments += ["--kv-cache-memory-bytes", str(int(kv_cache_gib * 2**30))]
    if not on_gpu:
        arguments.append("--enforce-eager")  # compiling takes a minute there and gains nothing
        # A seeded request whose prompt is computed in parts ends vLLM 0.32 on a CPU ("CPU Generator
        # does not use offset").
        arguments.append("--no-enable-chunked-prefill")
        # Its default of 128 leaves shorter prompts out of the prefix cache.
        arguments += ["--block-size", "32"]
        # A worker in a process of its own takes half a GiB more, and whoever waits for it spins.
        arguments += [
            "--distributed-executor-backend",
            "vllm.v1.executor.uniproc_executor.UniProcExecutor",
        ]
    # `vllm serve` looks for a package named vllm, which the CPU builds are not.
    server = [str(python or find_python("vllm")), "-m", "vllm.entrypoints.openai.api_server"]

    def command(port: int) -> list[str]:
        return [*server, "--host", "127.0.0.1", "--port", str(port), *arguments, *extra_args]

    return command


def vllm_environment() -> dict[str, str]:
    """Environment variables of a server, where the user has not set them otherwise."""
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONSAFEPATH": "1",  # the working directory's `tools` and `envs` are not to be imported
        # By default each server on a CPU pins itself to the same first core.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Threads that spin while they wait take many times as long once anything else runs there.
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_SERVER_DEV_MODE": "1",  # the endpoints that change weights
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}
