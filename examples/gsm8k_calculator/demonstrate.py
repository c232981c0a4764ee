"""Turn GSM8K's solutions into demonstrations of multi-turn tool use, played in the environment."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from gsm8k import HUB, GSM8KEnv, agrees, read_solution, read_tasks

from palestra.rollout import OraclePolicy, rollout
from palestra.rollout.chat_format import ChatFormat
from palestra.trainer.demonstrations import (
    demonstration_rows,
    read_demonstrations,
    write_demonstrations,
)
from palestra.trainer.model_folder import find_model_folder
from palestra.types import Episode, Task

PLAIN_EVERY = 4  # every fourth problem is solved without the tool, so that both can be evaluated


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What became of the problems, and how long the demonstrations are, in tokens."""

    problems: int
    with_tool: int
    without_tool: int
    without_calculation: int  # left out: nothing to call the tool for
    disagreeing: int  # left out: the tool gives another result than the annotation
    wrong: int  # left out: the verifier does not find the reference in the solution
    mean_tokens: float
    longest_tokens: int
    beyond_context: int  # demonstrations longer than the context


async def write_all(
    data: str, folder: Path, chat_format: ChatFormat, context_length: int
) -> Counts:
    """Write `demonstrations.jsonl` and `demonstrations.json`, the counts, into a folder.

    The solutions are played in the environment, so that what the tool says is what it will say
    in training.
    """
    tasks = read_tasks(data, "train")
    plain = tasks[::PLAIN_EVERY]
    chosen = {task.id for task in plain}
    called = [task for task in tasks if task.id not in chosen]
    left_out: Counter[str] = Counter()
    partial, path = folder / ".demonstrations.partial", folder / "demonstrations.jsonl"
    counts = []
    with open(partial, "w", encoding="utf-8") as file:
        for solved, has_tool in ((called, True), (plain, False)):
            part = folder / ".part.jsonl"
            episodes = _faithful(_play(data, solved, has_tool), has_tool, left_out)
            counts.append(await write_demonstrations(part, episodes))
            with open(part, encoding="utf-8") as rows:
                # In ASCII: a text of GSM8K's holds U+2028, which some take for the end of a line.
                file.writelines(json.dumps(json.loads(row)) + "\n" for row in rows)
            part.unlink()
    lengths = [
        len(row.token_ids)
        for messages, tools in read_demonstrations(partial)
        for row in demonstration_rows(messages, tools, chat_format)
    ]
    result = Counts(
        problems=len(tasks),
        with_tool=counts[0],
        without_tool=counts[1],
        without_calculation=left_out["without calculation"],
        disagreeing=left_out["disagreeing"],
        wrong=len(tasks) - sum(counts) - left_out.total(),
        mean_tokens=sum(lengths) / len(lengths),
        longest_tokens=max(lengths),
        beyond_context=sum(length > context_length for length in lengths),
    )
    text = json.dumps(asdict(result), indent=2) + "\n"
    (folder / "demonstrations.json").write_text(text, encoding="utf-8")
    os.replace(partial, path)  # last: where it exists, the stage is done
    return result


def _play(data: str, tasks: Iterable[Task], has_tool: bool) -> AsyncIterator[Episode]:
    solve = GSM8KEnv.solve if has_tool else GSM8KEnv.solve_without_tool
    return rollout(
        lambda: GSM8KEnv(data=data, tool=has_tool),
        tasks,
        OraclePolicy(solve),
        max_concurrent=1,  # in the order of the tasks
    )


async def _faithful(
    episodes: AsyncIterator[Episode], has_tool: bool, left_out: Counter[str]
) -> AsyncIterator[Episode]:
    """The episodes in which the tool said what the text goes on with."""
    async for episode in episodes:
        annotated = read_solution(episode.task.info["solution"]).results if has_tool else ()
        said = [result.content for turn in episode.turns for result in turn.tool_results]
        if has_tool and not annotated:
            left_out["without calculation"] += 1
        elif not all(map(agrees, said, annotated)):
            left_out["disagreeing"] += 1
        else:
            yield episode


def main() -> None:
    """Write the demonstrations of GSM8K's training problems."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=HUB, help="GSM8K: a folder of its two files, or the hub")
    parser.add_argument("--model", default="smollm2", help="whose tokens are counted")
    parser.add_argument("--context-length", type=int, required=True, help="to compare with")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    chat_format = ChatFormat.load(find_model_folder(given.model))
    counts = asyncio.run(write_all(given.data, given.out, chat_format, given.context_length))
    print(json.dumps(asdict(counts), indent=2))


if __name__ == "__main__":
    main()
