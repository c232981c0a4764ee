"""Real vLLM servers that the engine starts itself: killed, come back, gone at the end."""

import asyncio
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from palestra.rollout.engine_errors import EngineError, RawLogprobs, ServerDied, ServerNotStarted
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.token_client import TokenClient
from palestra.rollout.vllm_inspect import find_endpoint
from palestra.types import Sampling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPT = tuple(range(20, 60))
GREEDY = Sampling(temperature=0.0, max_tokens=16)


async def launch(model_folder: Path, python: Path, logs: Path, **options: Any) -> VLLMEngine:
    return await VLLMEngine.launch(
        model_folder,
        stop_ids=frozenset(),
        context_length=512,
        max_concurrent=8,
        kv_cache_gib=1 / 16,
        python=python,
        env={"OMP_NUM_THREADS": "1"},
        log_folder=logs,
        **options,
    )


def children(pid: int) -> dict[int, str]:
    """The descendants of a process and their command lines."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if parent == pid:
            found |= {int(folder.name): command} | children(int(folder.name))
    return found


def running(processes: Iterable[int]) -> list[int]:
    return [process for process in processes if Path(f"/proc/{process}").exists()]


@pytest.mark.parametrize("victim", ["server", "EngineCore"])
def test_a_killed_server_comes_back_and_leaves_nothing_at_the_end(
    tiny_model_folder: Path, vllm_python: Path, tmp_path: Path, victim: str
) -> None:
    async def run() -> set[int]:
        engine = await launch(tiny_model_folder, vllm_python, tmp_path)
        try:
            first = await engine.generate(PROMPT, GREEDY)
            assert engine.server is not None
            pid = engine.server.pid
            processes = children(pid)
            assert any("EngineCore" in command for command in processes.values())
            if victim != "server":
                pid = next(p for p, command in processes.items() if victim in command)
            long = Sampling(max_tokens=400)
            in_progress = asyncio.create_task(engine.generate(PROMPT, long))
            await asyncio.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ServerDied):
                await in_progress
            assert not running(processes)
            assert (await engine.generate(PROMPT, GREEDY)).ids == first.ids
            return set(children(engine.server.pid)) | {engine.server.pid}
        finally:
            await engine.aclose()

    assert not running(asyncio.run(run()))


def test_a_server_with_vllms_defaults_has_no_token_endpoint_and_is_refused_for_its_logprobs(
    tiny_model_folder: Path, vllm_python: Path, tmp_path: Path
) -> None:
    server = ServerProcess(
        lambda port: [
            *(str(vllm_python), "-m", "vllm.entrypoints.openai.api_server", "--port", str(port)),
            *("--model", str(tiny_model_folder), "--served-model-name", "m", "--enforce-eager"),
            *("--dtype", "float32", "--kv-cache-memory-bytes", str(2**26)),
        ],
        name="vLLM",
        log_path=tmp_path / "vllm.log",
        env={"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONSAFEPATH": "1"},
    )

    async def run() -> tuple[str, EngineError]:
        await server.start()
        client = TokenClient(server.base_url)
        try:
            endpoint = await find_endpoint(client, "m", timeout_s=120)
            with pytest.raises(RawLogprobs) as raised:
                await VLLMEngine.attach(server.base_url, stop_ids=frozenset())
            return endpoint, raised.value
        finally:
            await client.close()
            await server.stop()

    endpoint, error = asyncio.run(run())
    assert endpoint == "completions"
    assert "are those before temperature" in str(error)
    assert "--logprobs-mode processed_logprobs" in str(error)


def test_what_vllm_says_of_a_start_that_fails_is_told_in_one_line(
    tiny_model_folder: Path, vllm_python: Path, tmp_path: Path
) -> None:
    starting = launch(
        tiny_model_folder, vllm_python, tmp_path, extra_args=("--max-model-len", "100000")
    )
    with pytest.raises(ServerNotStarted, match="max_model_len") as raised:
        asyncio.run(starting)
    assert "\n" not in str(raised.value)
