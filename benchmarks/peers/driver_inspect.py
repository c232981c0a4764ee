"""The work of benchmarks/driver.py in PyPI's `inspect-ai`: generate() with tools and mockllm.

Runs in its own virtual environment, pinned to one core; prints one JSON object.
"""

# mypy: ignore-errors

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from typing import Any

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import exact
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool


@tool
def add() -> Tool:
    async def execute(a: int, b: int) -> int:
        """Add two integers.

        Args:
            a: the first
            b: the second
        """
        return a + b

    return execute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)

    def reply(input: list[Any], *_: Any) -> ModelOutput:
        done = sum(message.role == "tool" for message in input)
        if done < options.calls:
            arguments = {"a": 17, "b": 25}
            output = ModelOutput.for_tool_call("mockllm", "add", arguments, content="")
        else:
            output = ModelOutput.from_content("mockllm", "42")
        output.usage = usage  # else mockllm spends its time on counting tokens
        return output

    def play(episodes: int) -> EvalLog:
        samples = [Sample(input="What is 17+25?", target="42") for _ in range(episodes)]
        solver = [use_tools(add()), generate()]
        with tempfile.TemporaryDirectory() as logs:
            [log] = eval(
                Task(dataset=MemoryDataset(samples), solver=solver, scorer=exact()),
                model=get_model("mockllm/model", custom_outputs=reply),
                log_dir=logs,
                display="none",
                log_realtime=False,
                log_model_api=False,
                max_samples=256,
                max_connections=256,
            )
        return log

    play(10)  # imports and caches
    wall, cpu = time.perf_counter(), time.process_time()
    log = play(options.episodes)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert log.results is not None
    accuracy = next(
        metric.value for score in log.results.scores for metric in score.metrics.values()
    )
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "solved": round(accuracy * options.episodes)}))


if __name__ == "__main__":
    main()
