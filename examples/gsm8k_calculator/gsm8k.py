"""GSM8K as an environment: word problems whose every calculation is a call of `calculate`."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from palestra import ToolEnv, register
from palestra.envs.tasks import TaskSet
from palestra.tools import calculate
from palestra.types import Message, Task
from palestra.verifiers import number

HUB = "hf:openai/gsm8k:main"
VALIDATION = 473  # problems at the end of GSM8K's training set that are held out of training

_ANNOTATION = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
_PLAIN_NUMBER = re.compile(r"-?[\d.]+")
_PROMPT = "Solve the problem step by step{how}. End with a line of #### and the number."


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A solution of GSM8K's: text, a calculation, text, a calculation, …, text.

    Example: "She ate 6/2 = <<6/2=3>>3.\\n#### 3" has the texts ("She ate 6/2 =", "3.\\n#### 3"),
    the expression "6/2" and the result "3", as GSM8K's authors wrote them.
    """

    texts: tuple[str, ...]  # one more than calculations
    expressions: tuple[str, ...]
    results: tuple[str, ...]
    answer: str

    @property
    def plain(self) -> str:
        """The text alone, without any calculation."""
        return "".join(self.texts)


class GSM8KEnv(ToolEnv):
    """Grade-school word problems; the answer is the last number of the last reply, exactly.

    `data` is "hf:openai/gsm8k:main" or a folder with GSM8K's train.jsonl and test.jsonl. Split
    "train" lacks the last 473 problems of that file, which are "validation". `tool=False` leaves
    the calculator out. `max_calculations` leaves out problems whose solution needs more.
    """

    def __init__(
        self,
        *,
        data: str = HUB,
        split: str = "train",
        tool: bool = True,
        max_calculations: int | None = None,
        max_turns: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            tasks=read_tasks(data, split, max_calculations),
            tools=[calculate] if tool else [],
            verifier=number,
            system_prompt=_PROMPT.format(how=", every calculation with the tool" if tool else ""),
            max_turns=max_turns,
            **kwargs,
        )

    @staticmethod
    def solve(task: Task, messages: Sequence[Message]) -> Message:
        """The next reply of GSM8K's own solution: text up to a calculation, and its call."""
        solution = read_solution(task.info["solution"])
        done = sum(message["role"] == "tool" for message in messages)
        reply: Message = {"role": "assistant", "content": solution.texts[done].strip()}
        if done < len(solution.expressions):
            arguments = json.dumps({"expression": solution.expressions[done]})
            function = {"name": calculate.name, "arguments": arguments}
            call = {"id": f"call_{done}", "type": "function", "function": function}
            reply["tool_calls"] = [call]
        return reply

    @staticmethod
    def solve_without_tool(task: Task, messages: Sequence[Message]) -> Message:
        """GSM8K's own solution as one reply."""
        return {"role": "assistant", "content": read_solution(task.info["solution"]).plain}


@functools.lru_cache(maxsize=8)
def read_tasks(data: str, split: str, max_calculations: int | None = None) -> TaskSet:
    """The problems of a split; `Task.info` has the "solution".

    Raises:
        ValueError: no such split, unreadable data, or rows that are not GSM8K's.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f'GSM8K has the splits "train", "validation" and "test", got "{split}"')
    rows = TaskSet.load(data, split="test" if split == "test" else "train")
    if split == "validation":
        rows = rows[-VALIDATION:]
    elif split == "train" and len(rows) > VALIDATION:
        rows = rows[:-VALIDATION]
    tasks = []
    for row in rows:
        solution = read_solution(str(row.answer))
        if max_calculations is None or len(solution.expressions) <= max_calculations:
            info = {"solution": row.answer}
            tasks.append(Task(id=row.id, messages=row.messages, answer=solution.answer, info=info))
    return TaskSet(tasks, name="GSM8K", split=split)


def read_solution(text: str) -> Solution:
    """Take one of GSM8K's solutions apart. Raises ValueError where no answer follows ####."""
    _, marked, answer = text.rpartition("####")
    if not marked or not answer.strip():
        raise ValueError(f"GSM8K's solutions end with #### and the answer, got {text!r:.80}")
    texts, start = [""], 0
    expressions: list[str] = []
    results: list[str] = []
    for found in _ANNOTATION.finditer(text):
        texts[-1] += text[start : found.start()]
        start = found.end()
        expression = found[1].replace(",", "").strip()
        if not _PLAIN_NUMBER.fullmatch(expression):  # "<<15=15>>" calculates nothing
            expressions.append(expression)
            results.append(found[2].strip())
            texts.append("")
    texts[-1] += text[start:]
    return Solution(
        texts=tuple(texts),
        expressions=tuple(expressions),
        results=tuple(results),
        answer=answer.strip(),
    )


def agrees(result: str, annotated: str) -> bool:
    """Whether a tool's result is what the annotation says, to the decimals that it gives."""
    try:
        real, written = Fraction(result), Fraction(annotated.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return False
    _, _, decimals = annotated.partition(".")
    return abs(real - written) <= Fraction(51, 100 * 10 ** len(decimals))


register("GSM8K-v0", GSM8KEnv, force=True)
