"""SGLang servers started with other flags, and killed."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from palestra.rollout.engine_errors import RawLogprobs, ServerDied, UnsupportedServer
from palestra.rollout.engine_sglang import SGLangEngine
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.sglang_launch import sglang_command
from palestra.rollout.sglang_traits import read_traits
from palestra.rollout.token_client import TokenClient
from palestra.types import Completion, Sampling, Structure

from .conftest import Weights, wait_until_running

PROMPT = tuple(range(20, 60))

pytestmark = pytest.mark.slow


def launch(folder: Path, tmp_path: Path, **options: Any) -> Any:
    return SGLangEngine.launch(
        folder,
        **{
            "stop_ids": frozenset(),
            "context_length": 400,
            "max_concurrent": 4,
            "log_folder": tmp_path,
            "timeout_s": 120.0,
            "on_gpu": False,
            **options,
        },
    )


def test_raw_logprobs_and_missing_grammars_are_found_out(
    sglang_python: Path, old: Weights, tmp_path: Path
) -> None:
    async def check() -> None:
        server = ServerProcess(
            sglang_command(
                old.folder,
                python=sglang_python,
                dtype="float32",
                context_length=400,
                max_concurrent=4,
                on_gpu=False,
                extra_args=["--grammar-backend", "none"],
            ),
            name="SGLang",
            log_path=tmp_path / "log",
            env={"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_RETURN_ORIGINAL_LOGPROB": "1"},
        )
        await server.start()
        try:
            with pytest.raises(RawLogprobs, match="without SGLANG_RETURN_ORIGINAL_LOGPROB"):
                await SGLangEngine.attach(server.base_url, stop_ids=frozenset())
            client = TokenClient(server.base_url)
            engine = SGLangEngine(
                client,
                TokenClient(server.base_url),
                await read_traits(client),
                stop_ids=frozenset(),
                context_length=400,
                version=0,
                timeout_s=60,
            )
            with pytest.raises(UnsupportedServer, match="--grammar-backend xgrammar"):
                await engine.generate(PROMPT, Sampling(structure=Structure(regex="a")))
            await engine.aclose()
        finally:
            await server.stop()

    asyncio.run(check())


def test_a_server_that_was_killed_is_started_again_with_its_last_weights(
    sglang_python: Path, old: Weights, new: Weights, tmp_path: Path
) -> None:
    async def run() -> tuple[Completion, int]:
        engine = await launch(old.folder, tmp_path)
        try:
            assert engine.server is not None
            await engine.update_weights(3, new.folder, probe=new.probe)
            work = asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=350)))
            await wait_until_running(engine, 1)
            killed = engine.server.pid
            os.kill(killed, signal.SIGKILL)
            with pytest.raises(ServerDied, match="is started again"):
                await work
            sampling = Sampling(temperature=0.0, max_tokens=8)
            completion = await engine.generate(PROMPT, sampling)
            return completion, engine.server.pid != killed
        finally:
            await engine.aclose()

    completion, restarted = asyncio.run(run())
    assert restarted
    assert completion.ids == new.greedy(PROMPT, 8)
    assert [span.version for span in completion.version_spans] == [3]
