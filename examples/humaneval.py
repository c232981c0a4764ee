"""HumanEval as an environment: the reply completes a function, and its tests are the reward.

Run with the path of HumanEval.jsonl.gz to see that every canonical solution passes.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

from palestra import ToolEnv
from palestra.tools.sandboxes import SandboxSpec
from palestra.verifiers.code import code

AT_ONCE = 4


def rows_of(file: Path) -> list[dict[str, str]]:
    """The problems of a file: task_id, prompt, entry_point, canonical_solution, test."""
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def task_of(row: dict[str, str]) -> dict[str, Any]:
    """A problem as a task; the policy sees the prompt alone."""
    return {
        "id": row["task_id"],
        "prompt": row["prompt"],
        "answer": {
            "tests": row["test"],
            "entry_point": row["entry_point"],
            "prompt": row["prompt"],
        },
    }


def make_env(rows: list[dict[str, str]]) -> ToolEnv:
    """The environment."""
    verifier = code(sandbox=SandboxSpec(packages=(), max_live=AT_ONCE), timeout_s=10.0)
    return ToolEnv(tasks=[task_of(row) for row in rows], verifier=verifier, max_turns=1)


async def score_canonical_solutions(rows: list[dict[str, str]]) -> list[float]:
    """The reward of each problem's own solution, several at once."""
    places = asyncio.Semaphore(AT_ONCE)

    async def score(i: int) -> float:
        async with places:
            env = make_env(rows[i : i + 1])
            await env.areset(options={"task": 0})
            _, reward, *_ = await env.astep(rows[i]["canonical_solution"])
            return reward

    return await asyncio.gather(*map(score, range(len(rows))))


if __name__ == "__main__":
    problems = rows_of(Path(sys.argv[1]))
    start = time.perf_counter()
    rewards = asyncio.run(score_canonical_solutions(problems))
    per_s = len(rewards) / (time.perf_counter() - start)
    print(f"{sum(rewards):g} of {len(rewards)} pass, {per_s:.1f} verifications per second")
