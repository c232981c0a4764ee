"""The driver: environment steps per second on one core, and 2,000 episodes with 5% faults.

Steps: a scripted policy calls a no-op asynchronous tool seven times and answers, 256 episodes at
once, everything recorded. Peers do the same work with their own scripted models: PyPI's
`verifiers` 0.1.14 (the last release whose environments run in the trainer's process) and
`inspect-ai` (which also keeps an event log of every step). Each gets a virtual environment under
.venv-peers and is pinned to the same core. Steps per second of processor time are what a whole
core would do; those per second of wall time also show who else was using it.

Faults: an engine, a tool and a verifier break in one episode of twenty, each in several ways, while
as many policies provoke trouble that must be scored. Every episode has to end in the outcome that
was planned for it. The peer's column says how many of its faults (a tool, a client or a reward
function that raises) it marks as errors; the others it scores as if nothing had happened.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from palestra.envs import TaskSet, ToolEnv
from palestra.rollout import (
    ChatFormat,
    Limits,
    Recorder,
    ScriptedPolicy,
    TokenPolicy,
    rollout,
    tool_call,
)
from palestra.rollout.engine import Piece
from palestra.tools import ToolError, parse_reply, tool
from palestra.trainer.tiny import train_tokenizer
from palestra.types import Completion, Message, Sampling, Task, ToolSchema, Turn, Unscorable

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "driver.json"
PEERS = HERE.parent / ".venv-peers"
VERIFIERS = "verifiers==0.1.14"
INSPECT = "inspect-ai==0.3.285"
CALLS = 7
STEPS = CALLS + 1
CORE = max(os.sched_getaffinity(0))


@tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


async def correct(reply: str, answer: str) -> bool:
    return reply == answer


def measure_steps(episodes: int) -> dict[str, float]:
    """Play on one core and return wall time, processor time and how many were solved."""
    question: Message = {"role": "user", "content": "What is 17+25?"}
    tasks = TaskSet(Task(id=str(n), messages=(question,), answer="42") for n in range(episodes))
    policy = ScriptedPolicy([tool_call("add", a=17, b=25)] * CALLS + ["42"])

    def make_env() -> ToolEnv:
        return ToolEnv(tasks=tasks, tools=[add], verifier=correct, max_turns=STEPS + 1)

    async def play(recorder: Recorder) -> int:
        return sum(
            [e.reward == 1.0 async for e in rollout(make_env, tasks, policy, recorder=recorder)]
        )

    with tempfile.TemporaryDirectory() as folder, Recorder(f"{folder}/episodes.jsonl") as recorder:
        wall, cpu = time.perf_counter(), time.process_time()
        solved = asyncio.run(play(recorder))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_s": wall, "cpu_s": cpu, "solved": solved}


# --- faults. What breaks, and the outcome and cause that the episode must then have.

PLANNED = {
    "tool raises": ("failed", "tool:lookup"),
    "engine raises": ("failed", "engine"),
    "engine hangs": ("failed", "engine"),
    "engine returns NaN": ("failed", "engine"),
    "verifier raises": ("failed", "verifier"),
    "reference is broken": ("unscorable", "verifier:reference"),
}
PROVOKED = ["tool says no", "tool runs out of memory", "call is malformed", "call is unknown"]
FAULT_SHARE = 0.05

_task: ContextVar[Task] = ContextVar("task")


@tool
async def lookup(fault: str) -> str:
    """Look something up."""
    await asyncio.sleep(0.001)
    if fault == "tool raises":
        raise ConnectionError("the index is gone")
    if fault == "tool says no":
        raise ToolError("nothing found")
    if fault == "tool runs out of memory":
        raise MemoryError
    return "found"


def judge(task: Task, reply: str) -> bool:
    if task.info["fault"] == "verifier raises":
        raise TypeError("a bug in the verifier")
    if task.info["fault"] == "reference is broken":
        raise Unscorable("the reference does not parse")
    return bool(reply == task.answer)


class FaultyEngine:
    """Says the script of the task at hand in real tokens, unless it breaks."""

    context_length = 4096
    version = 0

    def __init__(self, chat_format: ChatFormat) -> None:
        self._format = chat_format
        self._said: dict[str, tuple[int, ...]] = {}

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        task = _task.get()
        text = task.info["script"][task.info["turn"][0]]
        task.info["turn"][0] += 1
        await asyncio.sleep(0.001)
        if task.info["fault"] == "engine raises":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if task.info["fault"] == "engine hangs":
            await asyncio.Event().wait()
        if text not in self._said:
            reply = parse_reply(text)
            self._said[text] = tuple(self._format.encode_reply(task.messages, reply))
        ids = self._said[text]
        logprob = math.nan if task.info["fault"] == "engine returns NaN" else -0.5
        return Completion(ids=ids, logprobs=(logprob,) * len(ids), stop_reason="stop")

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        yield Piece.whole(await self.generate(prompt_ids, sampling))

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        return (-0.5,) * (len(token_ids) - 1)

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None: ...

    async def aclose(self) -> None: ...


class NamesItsTask(TokenPolicy):
    """Tells the engine, which sees only ids, whose turn it is."""

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        _task.set(task)
        return await super().respond(messages, tools, history=history, task=task, sampling=sampling)


def planned_tasks(count: int) -> TaskSet:
    """One in twenty is broken, as many provoke trouble, and of the others half are right."""
    tasks = []
    every = round(1 / FAULT_SHARE)
    for n in range(count):
        fault = "none"
        if n % every == 0:
            fault = list(PLANNED)[n // every % len(PLANNED)]
        elif n % every == 1:
            fault = PROVOKED[n // every % len(PROVOKED)]
        call = tool_call("lookup", fault=fault)
        if fault == "call is malformed":
            call = "<tool_call>{lookup}</tool_call>"
        elif fault == "call is unknown":
            call = tool_call("look_up", fault=fault)
        script = [call, tool_call("lookup", fault="none"), "right" if n % 2 else "wrong"]
        info = {"fault": fault, "script": script, "turn": [0]}
        messages = ({"role": "user", "content": f"Question {n}?"},)
        tasks.append(Task(id=f"{n:05d}", messages=messages, answer="right", info=info))
    return TaskSet(tasks)


def account_for_faults(count: int) -> dict[str, int | float]:
    """Play `count` episodes at once and compare every outcome with the plan."""
    tasks = planned_tasks(count)
    conversation = [*tasks[0].messages, parse_reply(tool_call("lookup", fault="none"))]
    tokenizer = train_tokenizer([conversation], [lookup.schema()])
    chat_format = ChatFormat.from_tokenizer(tokenizer)
    policy = NamesItsTask(FaultyEngine(chat_format), chat_format)
    limits = Limits(generation_timeout_s=15.0)

    def make_env() -> ToolEnv:
        return ToolEnv(tasks=tasks, tools=[lookup], verifier=judge)

    async def play() -> list[Any]:
        episodes = rollout(
            make_env, tasks, policy, max_concurrent=count, max_attempts=1, limits=limits
        )
        ended = [episode async for episode in episodes]
        left = asyncio.all_tasks() - {asyncio.current_task()}
        return [ended, len(left)]

    start = time.perf_counter()
    episodes, tasks_left = asyncio.run(play())
    found: Counter[str] = Counter()
    for episode in episodes:
        fault = episode.task.info["fault"]
        outcome = (str(episode.outcome), episode.cause)
        right = float(int(episode.task.id) % 2)
        if fault in PLANNED:
            found["accounted"] += outcome == PLANNED[fault]
            found["mis_scored"] += bool(episode.scores or episode.rewards)
        else:
            found["healthy"] += 1
            found["masked_without_fault"] += outcome != ("scored", None)
            found["mis_scored"] += episode.rewards.get("agent") != right
            found["provoked_and_scored"] += fault != "none" and bool(episode.scores)
    injected = sum(task.info["fault"] in PLANNED for task in tasks)
    return {
        "fault_episodes": len(episodes),
        "faults_injected": injected,
        "faults_accounted": found["accounted"],
        "provoked": sum(task.info["fault"] in PROVOKED for task in tasks),
        "provoked_and_scored": found["provoked_and_scored"],
        "masked_without_fault": found["masked_without_fault"],
        "mis_scored": found["mis_scored"],
        "episodes_missing": len({task.id for task in tasks} - {e.task.id for e in episodes}),
        "asyncio_tasks_left": tasks_left,
        "faults_wall_s": round(time.perf_counter() - start, 2),
    }


# --- peers


def peer_python(requirement: str) -> Path:
    """The interpreter of a virtual environment that holds the peer, made if it is missing.

    Raises:
        subprocess.CalledProcessError: pip could not install it.
    """
    folder = PEERS / requirement
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        print(f"installing {requirement} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, requirement], check=True, stderr=subprocess.DEVNULL)
        (folder / ".installed").touch()
    return python


def run_peer(requirement: str, script: str, *arguments: object) -> dict[str, float] | None:
    """What the peer's script prints; None, and a line that says so, if the peer cannot be had."""
    try:
        python = str(peer_python(requirement))
        command = [python, str(HERE / "peers" / script), *map(str, arguments)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "pip could not install it").strip().splitlines()
        print(f"PEER LEFT OUT: {requirement}: {lines[-1]}", flush=True)
        return None
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def compare_steps(episodes: int) -> dict[str, int | float]:
    """Steps per second, ours and the peers', as a table and as figures."""
    measure_steps(100)  # imports and caches
    pinned = ["--calls", CALLS, "--core", CORE]
    runs = [("palestra", episodes, measure_steps(episodes))]
    for peer, script, count in [
        (VERIFIERS, "driver_verifiers.py", episodes),
        (INSPECT, "driver_inspect.py", episodes // 10),
    ]:
        if (run := run_peer(peer, script, "--episodes", count, *pinned)) is not None:
            runs.append((peer, count, run))
    figures: dict[str, int | float] = {}
    table = Table("steps on one core", "episodes", "steps/s, processor", "steps/s, wall", "ours ×")
    for name, count, run in runs:
        assert run["solved"] == count, f"{name} solved {run['solved']} of {count}"
        key = name.partition("==")[0].replace("-", "_")
        per_cpu_s = figures[f"{key}_steps_per_cpu_s"] = round(count * STEPS / run["cpu_s"])
        per_s = figures[f"{key}_steps_per_s"] = round(count * STEPS / run["wall_s"])
        ratio = figures["palestra_steps_per_cpu_s"] / per_cpu_s
        if key != "palestra":
            figures[f"palestra_over_{key}"] = round(ratio, 2)
        table.add_row(name, str(count), f"{per_cpu_s:,}", f"{per_s:,}", f"{ratio:.1f}")
    Console().print(table)
    return figures


def compare_faults(episodes: int) -> dict[str, int | float]:
    """What became of broken episodes, ours and the peer's, as a table and as figures."""
    figures = account_for_faults(episodes)
    table = Table(f"{episodes:,} episodes at once, one in twenty broken", "palestra", VERIFIERS)
    theirs = run_peer(
        VERIFIERS, "driver_verifiers.py", "--faults", "--episodes", episodes, "--calls", 1,
        "--core", CORE,
    )  # fmt: skip
    if theirs is not None:
        figures["verifiers_faults_injected"] = round(theirs["faults_injected"])
        figures["verifiers_faults_accounted"] = round(theirs["faults_marked"])
    for name, figure in figures.items():
        if not name.startswith("verifiers_"):
            table.add_row(
                name.replace("_", " "), str(figure), str(figures.get(f"verifiers_{name}", ""))
            )
    Console().print(table)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the episodes for speed")
    quick = parser.parse_args().quick
    os.sched_setaffinity(0, {CORE})
    figures = compare_steps(1_000 if quick else 4_000) | compare_faults(2_000)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
