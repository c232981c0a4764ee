"""The work of benchmarks/driver.py in PyPI's `verifiers`: its ToolEnv, a scripted client, no-op tool.

Runs in its own virtual environment, pinned to one core; prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import Any

import verifiers as vf  # noqa: TID251 (PyPI's own package is meant)
from datasets import Dataset
from verifiers.types import Response, ResponseMessage, ToolCall  # noqa: TID251


async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


async def correct(completion: Any, answer: str) -> float:
    return float(completion[-1]["content"] == answer)


class ScriptedClient(vf.Client):
    """Calls the tool `calls` times, then answers."""

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
        call = ToolCall(id=f"call_{done}", name="add", arguments='{"a": 17, "b": 25}')
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
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    rows = [{"question": "What is 17+25?", "answer": "42"}] * options.episodes
    env = vf.ToolEnv(
        dataset=Dataset.from_list(rows),
        tools=[add],
        rubric=vf.Rubric(funcs=[correct]),
        max_turns=options.calls + 2,
    )

    async def play() -> Any:
        return await env.generate(
            env.get_dataset(n=options.episodes),
            client=ScriptedClient(options.calls),
            model="scripted",
            max_concurrent=256,
            on_start=lambda *_: None,
            on_progress=lambda *_: None,
        )

    wall, cpu = time.perf_counter(), time.process_time()
    outputs = asyncio.run(play())["outputs"]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    solved = sum(output["reward"] == 1.0 for output in outputs)
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "solved": solved}))


if __name__ == "__main__":
    main()
