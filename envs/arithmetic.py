"""`palestra/Arithmetic-v0`: multi-step arithmetic with a calculator, one operation per call."""

from __future__ import annotations

import functools
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from palestra.envs.tasks import TaskSet
from palestra.envs.tool_env import ToolEnv
from palestra.tools import calculator
from palestra.types import Message, Task
from palestra.verifiers import number

_COUNTS = {"train": 20_000, "test": 2_000}
_TEST_SHARE = 11  # one in this many expressions belongs to the test split
_MAX_OPERAND = 99
_MAX_RESULT = 99  # of every step: no number has more than two digits

# [left operand, operator, right operand, result] of one calculator call
CalculatorStep = list[Any]


class ArithmeticEnv(ToolEnv):
    """Expressions of two or three operations on numbers from 1 to 99, such as `4 * 8 - 71 - 9`.

    Two operations stand in any order, three continue one another, and no result has more than two
    digits. The prompt is the expression; the answer is its value, which takes a calculator call per
    operation. Splits "train" and "test" share no expression, not even one with reordered operands.
    `Task.info["steps"]` lists the calls of an oracle as [a, operator, b, result].
    """

    def __init__(
        self,
        *,
        split: str = "train",
        max_turns: int = 6,
        task_seed: int = 0,
        task_limit: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            tasks=arithmetic_tasks(split, task_seed, task_limit),
            tools=[calculator],
            verifier=number,
            max_turns=max_turns,
            **kwargs,
        )

    @staticmethod
    def solve(task: Task, messages: Sequence[Message]) -> Message:
        """An oracle's next reply, for demonstrations: it knows the task's steps."""
        done = sum(message["role"] == "tool" for message in messages)
        steps: list[CalculatorStep] = task.info["steps"]
        if done == len(steps):
            return {"role": "assistant", "content": str(task.answer)}
        a, operator, b, _ = steps[done]
        call = {
            "name": "calculator",
            "arguments": json.dumps({"a": a, "operator": operator, "b": b}),
        }
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": f"call_{done}", "type": "function", "function": call}],
        }


@functools.lru_cache(maxsize=8)
def arithmetic_tasks(split: str = "train", seed: int = 0, limit: int | None = None) -> TaskSet:
    """The first `limit` tasks of a split: all 20,000 for "train" or 2,000 for "test" if None."""
    if split not in _COUNTS:
        raise ValueError(f'Arithmetic has the splits "train" and "test", got "{split}"')
    return TaskSet.load(expressions, split=split, seed=seed, limit=limit or _COUNTS[split])


def expressions(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of distinct expressions, without end."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        operations = 2 + int(rng.random() < 0.5)
        expression = _draw(rng, operations, from_the_left=operations == 3)
        if expression is None or expression.text in seen or _split_of(expression.text) != split:
            continue
        seen.add(expression.text)
        yield {
            "prompt": expression.text,
            "answer": str(expression.value),
            "steps": expression.steps,
        }


def _split_of(text: str) -> str:
    """Decided by the expression alone, whatever the seed, and blind to the order of its parts."""
    parts = sorted(text.replace("(", "").replace(")", "").split())
    return "train" if zlib.crc32(" ".join(parts).encode()) % _TEST_SHARE else "test"


class _Expression(NamedTuple):
    text: str
    precedence: int
    value: int
    steps: list[CalculatorStep]


_OPERANDS = [_Expression(str(value), 3, value, []) for value in range(1, _MAX_OPERAND + 1)]


def _draw(rng: random.Random, operations: int, *, from_the_left: bool) -> _Expression | None:
    """A random expression tree; None if a step's result would be too large.

    `from_the_left` makes every operation continue with the result of the one before it.
    """
    if operations == 0:
        # One digit as often as two: how long a number is must be seen, not assumed.
        return _OPERANDS[int(rng.random() * (9 if rng.random() < 0.5 else _MAX_OPERAND))]
    on_the_left = operations - 1 if from_the_left else int(rng.random() * operations)
    left = _draw(rng, on_the_left, from_the_left=from_the_left)
    right = left and _draw(rng, operations - 1 - on_the_left, from_the_left=from_the_left)
    if left is None or right is None:
        return None
    operator = "+-*"[int(rng.random() * 3)]
    precedence = 2 if operator == "*" else 1
    a, b = left.value, right.value
    value = a + b if operator == "+" else a - b if operator == "-" else a * b
    if abs(value) > _MAX_RESULT:
        return None
    # Parentheses where the usual precedence would read another tree, and round what comes later
    # but is computed first: without them `1 + 2 * 3` would be the one form not read from the left.
    left_text = f"({left.text})" if left.precedence < precedence else left.text
    right_text = f"({right.text})" if right.steps else right.text
    return _Expression(
        f"{left_text} {operator} {right_text}",
        precedence,
        value,
        [*left.steps, *right.steps, [a, operator, b, value]],
    )
