"""A tiny model that calls tools, and one real vLLM server for it that the tests here share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from palestra.rollout import ChatFormat, tool_call
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.vllm_launch import vllm_command, vllm_environment
from palestra.tools import Tool, parse_reply, tool
from palestra.trainer.tiny import build_model, train_tokenizer
from palestra.types import Message

KeepRunning = Callable[[ServerProcess], AbstractContextManager[ServerProcess]]

CONTEXT_LENGTH = 1024
# Longer than the 128 tokens of a block of vLLM's prefix cache on a CPU: each digit is a token.
SYSTEM_PROMPT = "0123456789" * 14


@tool(name="add")
async def _add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@pytest.fixture(scope="session")
def add() -> Tool:
    """The tool that the tiny model calls."""
    return _add


def _conversation(a: int, b: int, c: int) -> list[Message]:
    return [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": f"{a} + {b} + {c}?"},
        parse_reply(tool_call("add", a=a, b=b)),
        {"role": "tool", "tool_call_id": "call_0", "name": "add", "content": str(a + b)},
        parse_reply(tool_call("add", a=a + b, b=c)),
        {"role": "tool", "tool_call_id": "call_0", "name": "add", "content": str(a + b + c)},
        {"role": "assistant", "content": str(a + b + c)},
    ]


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: it has learned to call `add` twice and then to answer, but not to add."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    conversations = [_conversation(a, 30 + a, 7 * a % 10) for a in range(10, 42)]
    tokenizer = train_tokenizer(conversations, [_add.schema()])
    chat_format = ChatFormat.from_tokenizer(tokenizer)
    model = build_model(len(tokenizer), eos_id=tokenizer.eos_token_id, hidden=64)
    texts = []
    for messages in conversations:
        prompt = chat_format.render(messages[:-1], [_add.schema()])
        reply = chat_format.encode_reply(messages[:-1], messages[-1], [_add.schema()])
        texts.append([*prompt, *reply])
    length = max(map(len, texts))
    ids_BT = torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids in texts])
    labels_BT = ids_BT.masked_fill(ids_BT == tokenizer.pad_token_id, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(80):
        rows = slice(step % 4 * 8, step % 4 * 8 + 8)
        model(input_ids=ids_BT[rows], labels=labels_BT[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    chat_format.save(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_python(engine_python: Callable[[str], Path]) -> Path:
    """The interpreter that has vLLM."""
    return engine_python("vllm")


@pytest.fixture(scope="session")
def keep_running() -> KeepRunning:
    """Runs a server for a block, on a loop of its own."""

    @contextmanager
    def keep(server: ServerProcess) -> Iterator[ServerProcess]:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(server.start())
            yield server
        finally:
            loop.run_until_complete(server.stop())
            loop.close()

    return keep


@pytest.fixture(scope="session")
def vllm_server(
    tiny_model_folder: Path,
    vllm_python: Path,
    keep_running: KeepRunning,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    """A running server of `tiny_model_folder` in float32, as `VLLMEngine.launch` starts it.

    A test that changes its weights puts them back.
    """
    server = ServerProcess(
        vllm_command(
            tiny_model_folder,
            python=vllm_python,
            dtype="float32",
            context_length=CONTEXT_LENGTH,
            max_concurrent=32,
            kv_cache_gib=1 / 16,
            # Else a model that knows no JSON may write white space until it is cut.
            extra_args=(
                "--structured-outputs-config",
                '{"backend": "xgrammar", "disable_any_whitespace": true}',
            ),
        ),
        name="vLLM",
        log_path=tmp_path_factory.mktemp("vllm") / "vllm.log",
        env={**vllm_environment(), "OMP_NUM_THREADS": "1"},
    )
    with keep_running(server):
        yield server


class ServerCounts:
    """What a vLLM server itself counts."""

    async def count(self, engine: VLLMEngine, name: str) -> float:
        """What it counts under a name."""
        metrics = await engine.control.get("/metrics", timeout_s=10)
        return sum(map(float, re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", metrics, re.MULTILINE)))

    async def until_idle(self, engine: VLLMEngine) -> float:
        """Wait until it computes nothing; how many tokens it has sampled so far."""
        async with asyncio.timeout(60):
            while await self.count(engine, "num_requests_running"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return await self.count(engine, "generation_tokens_total")


@pytest.fixture(scope="session")
def server_counts() -> ServerCounts:
    """Counts of whichever server an engine is on."""
    return ServerCounts()
