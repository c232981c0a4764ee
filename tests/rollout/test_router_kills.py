"""Servers that are killed with signal 9, again and again, cost no episode."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from palestra.envs import ToolEnv
from palestra.rollout import ChatFormat, Limits, RoutedEngine, TokenPolicy, rollout, tool_call
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.token_client import TokenClient
from palestra.tools import parse_reply, tool
from palestra.trainer.tiny import train_tokenizer
from palestra.types import Message, Task

# Speaks vLLM's protocol and answers after a fixed time.
SERVER = Path(__file__).parents[2] / "benchmarks" / "token_server.py"
QUESTION: Message = {"role": "user", "content": "Look it up."}
CALL = tool_call("lookup", word="palestra")


@tool
async def lookup(word: str) -> str:
    """Look up a word."""
    return f"{word}: where wrestlers train."


async def always(reply: str) -> bool:
    return True


class Server:
    """A process that is started again at its old address."""

    def __init__(self, reply_ids: list[int]) -> None:
        self._command = [sys.executable, str(SERVER), "--ids", json.dumps(reply_ids)]
        self._command += ["--latency-s", "0.03"]
        self.port = 0
        self.start()

    def start(self) -> None:
        pipe = subprocess.PIPE
        command = [*self._command, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_of_twenty_killed_servers_every_episode_is_accounted_for() -> None:
    tokenizer = train_tokenizer([[QUESTION, parse_reply(CALL)]], [lookup.schema()])
    chat_format = ChatFormat.from_tokenizer(tokenizer)
    reply_ids = chat_format.encode_reply([QUESTION], parse_reply(CALL), [lookup.schema()])
    servers = [Server(reply_ids), Server(reply_ids)]
    kills_left = 20
    begun: list[str] = []
    finished: Counter[str] = Counter()
    draw = random.Random(0)

    def tasks() -> Iterator[Task]:
        while kills_left > 0:
            begun.append(f"{len(begun)}")
            yield Task(id=begun[-1], messages=(QUESTION,))

    async def kill() -> None:
        nonlocal kills_left
        while kills_left > 0:
            await asyncio.sleep(draw.uniform(0.05, 0.3))
            server = draw.choice(servers)
            server.kill()
            kills_left -= 1
            await asyncio.sleep(draw.uniform(0.0, 0.3))
            await asyncio.to_thread(server.start)

    async def main() -> RoutedEngine:
        engines = []
        for server in servers:
            url = f"http://127.0.0.1:{server.port}"
            engines.append(
                VLLMEngine(
                    TokenClient(url, retry_s=0.2),
                    TokenClient(url),
                    model_name="model",
                    endpoint="generate",
                    stop_ids=chat_format.stop_ids,
                    context_length=4096,
                    vocab_size=None,
                    version=0,
                    timeout_s=60.0,
                )
            )
        router = RoutedEngine(engines)
        killing = asyncio.create_task(kill())
        episodes = rollout(
            lambda: ToolEnv(tasks=[{"prompt": "?"}], tools=[lookup], verifier=always,
                            max_turns=3),
            tasks(),
            TokenPolicy(router, chat_format),
            limits=Limits(max_turns=3),
            max_concurrent=64,
        )  # fmt: skip
        async for episode in episodes:
            if episode.outcome == "scored" or episode.attempt == 1:
                finished[episode.task.id] += 1
            if episode.outcome == "scored":
                assert [turn.parent for turn in episode.turns] == [None, 0, 1]
                assert all(list(turn.completion_ids) == reply_ids for turn in episode.turns)
        await killing
        await router.aclose()
        return router

    try:
        router = asyncio.run(asyncio.wait_for(main(), 300))
    finally:
        for server in servers:
            server.kill()
    assert finished == Counter(begun)  # each ended, and once
    assert len(begun) > 100
    assert router.reissued >= 10
