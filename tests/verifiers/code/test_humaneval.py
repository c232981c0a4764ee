"""Problems in the form of HumanEval: made up here, and, if there is a file, the real ones."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palestra.envs import ToolEnv
from palestra.tools.sandboxes import SandboxSpec
from palestra.types import Score, Task
from palestra.verifiers import run_verifier
from palestra.verifiers.code import code

Row = dict[str, str]

PROBLEMS: list[Row] = [
    {
        "entry_point": "running_total",
        "prompt": "from typing import List\n\n\ndef running_total(xs: List[int]) -> List[int]:\n"
        '    """The sums of all beginnings of a list.\n    >>> running_total([1, 2])\n'
        '    [1, 3]\n    """\n',
        "canonical_solution": "    total, sums = 0, []\n    for x in xs:\n        total += x\n"
        "        sums.append(total)\n    return sums\n",
        "test": "\n\nMETADATA = {'author': 'x'}\n\n\ndef check(candidate):\n"
        "    assert candidate([]) == []\n    assert candidate([1, 2, 3]) == [1, 3, 6]\n"
        "    assert candidate([-1, 1]) == [-1, 0], 'negative'\n\n",
    },
    {
        "entry_point": "root",
        "prompt": "import math\n\ndef square(x: float):\n    return x * x\n\n\n"
        'def root(x: float):\n    """The number whose square is x."""\n',
        "canonical_solution": "    return math.sqrt(x)\n",
        "test": "def check(candidate):\n    import random\n    rng = random.Random(0)\n"
        "    for _ in range(30):\n        x = rng.random()\n"
        "        assert abs(square(candidate(x)) - x) < 1e-6\n",
    },
    {
        "entry_point": "is_leap",
        "prompt": 'def is_leap(year):\n    """Whether a year has 366 days."""\n',
        "canonical_solution": "    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)\n",
        "test": "def check(candidate):\n    # simple\n    assert candidate(2024)\n"
        "    assert not candidate(2023)\n    assert candidate(1900) is False\n"
        "    assert candidate(2000) == True\n    assert True\n",
    },
]


def answer_of(row: Row) -> dict[str, Any]:
    return {"tests": row["test"], "entry_point": row["entry_point"], "prompt": row["prompt"]}


@pytest.mark.parametrize("row", PROBLEMS, ids=[row["entry_point"] for row in PROBLEMS])
def test_the_canonical_solution_passes_and_mutations_fail(
    judge: Callable[..., Score], spec: SandboxSpec, row: Row
) -> None:
    verifier = code(sandbox=spec)
    solution = row["canonical_solution"]
    assert judge(verifier, solution, answer_of(row)).value == 1.0
    whole = f"Sure!\n```python\n{row['prompt']}{solution}```"
    assert judge(verifier, whole, answer_of(row)).value == 1.0
    operators = [("+=", "-="), ("math.sqrt(x)", "x"), (" and ", " or ")]
    mutated = [solution.replace(old, new) for old, new in operators if old in solution]
    for wrong in ("    pass\n", "    return 0\n", "    return True\n", "", *mutated):
        assert judge(verifier, wrong, answer_of(row)).value == 0.0


def test_an_environment_takes_it_in_one_line(spec: SandboxSpec) -> None:
    row = PROBLEMS[0]
    task = {"prompt": row["prompt"], "answer": answer_of(row)}
    env = ToolEnv(tasks=[task], verifier=code(sandbox=spec))
    for reply, expected in ((row["canonical_solution"], 1.0), ("    return []", 0.0)):
        env.reset(seed=0)
        _, reward, terminated, _, _ = env.step(reply)
        assert (reward, terminated) == (expected, True)


@pytest.mark.slow
def test_every_canonical_solution_of_the_file_passes(spec: SandboxSpec) -> None:
    file = os.environ.get("PALESTRA_HUMANEVAL")
    if not file:
        pytest.skip("PALESTRA_HUMANEVAL names no file")
    lines = gzip.decompress(Path(file).read_bytes()).splitlines()
    rows: list[Row] = [json.loads(line) for line in lines]
    verifier = code(sandbox=spec, timeout_s=20.0)

    async def value(row: Row, completion: str) -> float:
        prompt = {"role": "user", "content": row["prompt"]}
        task = Task(id=row["task_id"], messages=(prompt,), answer=answer_of(row))
        messages = [prompt, {"role": "assistant", "content": completion}]
        return (await run_verifier(verifier, task=task, messages=messages)).value

    async def values(completions: list[str]) -> list[float]:
        pairs = zip(rows, completions, strict=True)
        return list(await asyncio.gather(*(value(row, text) for row, text in pairs)))

    assert len(rows) == 164
    assert asyncio.run(values([row["canonical_solution"] for row in rows])) == [1.0] * 164
    for wrong in ("    pass\n", "    return 0\n"):
        assert asyncio.run(values([wrong] * 164)) == [0.0] * 164
