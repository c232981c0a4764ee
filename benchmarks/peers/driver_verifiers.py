"""The work of benchmarks/driver.py in PyPI's `verifiers`: its ToolEnv with a scripted client.

Runs in its own virtual environment, pinned to one core; prints one JSON object. With `--faults`
one episode of twenty breaks, in turn in its tool, its client or its reward function.
"""

# mypy: ignore-errors

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import Any

from datasets import Dataset
from verifiers.types import Response, ResponseMessage, ToolCall  # noqa: TID251

import verifiers as vf  # noqa: TID251 (PyPI's own package is meant)

FAULTS = ["tool", "engine", "verifier"]


async def add(a: int, b: int) -> int:
    """Add two integers."""
    if a < 0:
        raise ConnectionError("the index is gone")
    return a + b


async def correct(completion: Any, answer: str, info: dict[str, Any]) -> float:
    if info["fault"] == "verifier":
        raise TypeError("a bug in the verifier")
    return float(completion[-1]["content"] == answer)


class ScriptedClient(vf.Client):
    """Calls the tool `calls` times, then answers; the question says what is to break."""

    def __init__(self, calls: int) -> None:
        super().__init__(None)
        self.calls = calls

    def setup_client(self, config: Any) -> None:
        return None

    async def to_native_tool(self, tool: Any) -> Any:
        return tool

    async def to_native_prompt(self, messages: Any) -> Any:
        return messages, {}

    async def get_native_response(
        self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **kwargs: Any
    ) -> Response:
        done = sum(message.role == "tool" for message in prompt)
        fault = prompt[0].content.rpartition(" ")[2]
        if fault == "engine" and done:
            raise RuntimeError("CUDA error")
        a = -17 if fault == "tool" else 17
        call = ToolCall(id=f"call_{done}", name="add", arguments=f'{{"a": {a}, "b": 25}}')
        message = ResponseMessage(
            content="" if done < self.calls else "42",
            tool_calls=[call] if done < self.calls else None,
            finish_reason="tool_calls" if done < self.calls else "stop",
            is_truncated=False,
        )
        return Response(id="0", created=0, model=model, message=message)

    async def raise_from_native_response(self, response: Any) -> None: ...

    async def from_native_response(self, response: Response) -> Response:
        return response

    async def close(self) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--faults", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    rows = []
    for n in range(options.episodes):
        fault = FAULTS[n // 20 % len(FAULTS)] if options.faults and n % 20 == 0 else "none"
        question = f"What is 17+25? {fault}"
        rows.append({"question": question, "answer": "42", "info": {"fault": fault}})
    env = vf.ToolEnv(
        dataset=Dataset.from_list(rows),
        tools=[add],
        rubric=vf.Rubric(funcs=[correct]),
        max_turns=options.calls + 2,
    )

    async def play(episodes: int) -> Any:
        return await env.generate(
            env.get_dataset(n=episodes),
            client=ScriptedClient(options.calls),
            model="scripted",
            max_concurrent=options.episodes if options.faults else 256,
            on_start=lambda *_: None,
            on_progress=lambda *_: None,
        )

    asyncio.run(play(1 if options.faults else 100))  # imports and caches
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = asyncio.run(play(options.episodes))["outputs"]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = {
        "wall_s": wall,
        "cpu_s": cpu,
        "solved": sum(output["reward"] == 1.0 for output in outputs),
    }
    if options.faults:
        broken = [output for output in outputs if output["info"]["fault"] != "none"]
        figures["faults_injected"] = len(broken)
        figures["faults_marked"] = sum(output["error"] is not None for output in broken)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
