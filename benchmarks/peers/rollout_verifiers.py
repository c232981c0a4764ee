"""The work of benchmarks/rollout.py on vLLM in PyPI's `verifiers`: its ToolEnv on the same server.

Runs in its own virtual environment; prints one JSON object. As a trainer on `verifiers` does, it
asks for the token ids and log-probabilities of every reply.
"""

# mypy: ignore-errors

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
import urllib.request
from typing import Any

from datasets import Dataset
from verifiers.types import ClientConfig  # noqa: TID251

import verifiers as vf  # noqa: TID251 (PyPI's own package is meant)


async def lookup(word: str) -> str:
    """Look up a word."""
    return f"{word}: where wrestlers train."


async def always(completion: Any) -> float:
    return 1.0


def dataset(questions: list[str]) -> Dataset:
    return Dataset.from_list([{"question": text, "answer": ""} for text in questions])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--call", required=True, help="what every reply says")
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--turns", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    options = parser.parse_args()
    os.environ["NO_KEY"] = "none"
    client = ClientConfig(api_base_url=f"{options.base_url}/v1", api_key_var="NO_KEY")
    sampling = {
        "max_tokens": 96,
        "temperature": 0.0,
        "logprobs": True,
        "extra_body": {
            "structured_outputs": {"choice": [options.call]},
            "return_token_ids": True,
        },
    }

    async def play(questions: list[str]) -> list[Any]:
        env = vf.ToolEnv(
            dataset=dataset(questions),
            tools=[lookup],
            rubric=vf.Rubric(funcs=[always]),
            max_turns=options.turns,
        )
        results = await env.generate(
            env.get_dataset(),
            client=client,
            model="model",
            sampling_args=sampling,
            max_concurrent=options.concurrency,
            on_start=lambda *_: None,
            on_progress=lambda *_: None,
        )
        return results["outputs"]

    asyncio.run(play(["what is a palestra?"]))  # imports and caches
    reset = urllib.request.Request(f"{options.base_url}/reset_prefix_cache", method="POST")
    urllib.request.urlopen(reset).read()
    started = time.perf_counter()
    outputs = asyncio.run(play([f"{n}. Say {options.call}" for n in range(options.episodes)]))
    seconds = time.perf_counter() - started
    turns = sum(m["role"] == "assistant" for output in outputs for m in output["completion"])
    calls = sum(bool(m.get("tool_calls")) for output in outputs for m in output["completion"])
    print(json.dumps({"wall_s": seconds, "turns": turns, "calls": calls}))


if __name__ == "__main__":
    main()
