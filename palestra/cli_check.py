"""`palestra check`: does an environment keep its promises, can a verifier be trusted?"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from palestra.types import Task
from palestra.verifiers.audit import Audit, audit


def check_environment(id: str, *, episodes: int) -> int:
    """Run `palestra.envs.check` on a registered environment; 1 if a promise is broken."""
    from palestra.envs.check import check

    try:
        check(id, episodes=episodes)
    except AssertionError as error:
        print(f"{id}: {error}")
        return 1
    print(f"{id}: keeps its promises")
    return 0


def check_verifier(name: str, source: str | None, *, limit: int, as_json: bool) -> int:
    """Audit a verifier on the tasks of a source; 1 if it is unfit as a reward.

    `name` is one of `palestra.verifiers`, "module:function", or "reasoning_gym:DATASET", which
    brings its own tasks.
    """
    verifier, tasks = _find(name, source, limit)
    found = asyncio.run(audit(verifier, tasks))
    problems = found.problems()
    if as_json:
        print(json.dumps({**asdict(found), "problems": problems}, indent=2))
    else:
        _show(name, len(tasks), found, problems)
    return 1 if problems else 0


def _find(name: str, source: str | None, limit: int) -> tuple[Callable[..., Any], list[Task]]:
    if name.startswith("reasoning_gym:"):
        return _reasoning_gym(name.partition(":")[2], limit)
    if source is None:
        raise ValueError("name tasks with references: --tasks FILE.jsonl, or an environment's id")
    module_name, colon, function = name.rpartition(":")
    try:
        module = importlib.import_module(module_name if colon else "palestra.verifiers")
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: is it installed, or on PYTHONPATH?") from None
    verifier = getattr(module, function, None)
    if not callable(verifier) or inspect.ismodule(verifier):
        raise ValueError(f'no verifier "{function}" in {module.__name__}')
    return verifier, _tasks(source, limit)


def _tasks(source: str, limit: int) -> list[Task]:
    from palestra import envs
    from palestra.envs.tasks import TaskSet

    if source.endswith(".jsonl"):
        return list(TaskSet.load(source, limit=limit))
    env = envs.make(source)
    tasks = getattr(env, "tasks", None)
    if tasks is None:
        raise ValueError(f"{source} has no tasks with references to check a verifier with")
    return list(tasks[:limit])


def _reasoning_gym(dataset_name: str, limit: int) -> tuple[Callable[..., Any], list[Task]]:
    """A reasoning-gym data set: its own score function on its own entries."""
    try:
        reasoning_gym = importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: pip install 'palestra[bridges]'") from None
    dataset = reasoning_gym.create_dataset(dataset_name, size=limit, seed=0)
    entries = {str(index): dataset[index] for index in range(limit)}
    tasks = [
        Task(
            id=id,
            messages=({"role": "user", "content": entry["question"]},),
            answer=str(entry["answer"]),
        )
        for id, entry in entries.items()
    ]

    def score(reply: str, task: Task) -> float:
        return float(dataset.score_answer(answer=reply, entry=entries[task.id]))

    return score, tasks


def _show(name: str, tasks: int, found: Audit, problems: list[str]) -> None:
    table = Table("reply", "should pass", "tried", "wrong", "no verdict", "broken", "for example")
    for finding in found.findings:
        table.add_row(
            finding.kind,
            "yes" if finding.is_right else "no",
            *map(str, (finding.count, finding.wrong, finding.unscorable, finding.failed)),
            escape(finding.examples[0]) if finding.examples else "",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{escape(name)} on {tasks} tasks, {found.pairs} replies: {found.false_positives} wrong "
        f"ones paid in full, {found.false_negatives} right ones refused; {found.ms_p50:.2f} ms a "
        f"call (p99 {found.ms_p99:.2f}, most {found.ms_max:.1f}); verdicts changed when asked "
        f"again: "
        f"{found.undetermined}, from threads: {found.thread_dependent}",
        highlight=False,
    )
    for cause, count in found.causes.items():
        console.print(f"{count} times {escape(cause)}", highlight=False)
    for line in problems:
        console.print(f"not fit as a reward: {escape(line)}", highlight=False)
    if not problems:
        console.print("no problem found (which right forms it must accept is for you to say)")
