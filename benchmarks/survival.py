"""Does any episode get lost? A real vLLM server that is overrun, and one that is killed.

**Soak** (`--part soak`). 2,000 episodes at once against a tiny model, more than the server runs.
**Kills** (`--part kills`). That server is killed 20 times at random moments of endless rollouts.
Every episode must be accounted for, once: `soak_lost` is 0 and `kills_accounted` as many as
`kills_episodes`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from palestra.envs import TaskSet, ToolEnv
from palestra.rollout import (
    ChatFormat,
    Limits,
    RoutedEngine,
    TokenPolicy,
    count_rewrites,
    rollout,
    tool_call,
)
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.episode import is_final
from palestra.tools import parse_reply, tool
from palestra.trainer.tiny import build_model, train_tokenizer
from palestra.types import Episode, Message, Sampling, Structure, Task

RESULTS = Path(__file__).parent / "results" / "survival.json"
TURNS = 3
CALL = tool_call("lookup", word="palestra")
# A grammar has every reply call the tool: a random model would never get beyond its first turn.
CALLS = Sampling(max_tokens=96, structure=Structure(choice=(CALL,)))


@tool
async def lookup(word: str) -> str:
    """Look up a word."""
    return f"{word}: where wrestlers train."


async def always(reply: str) -> bool:
    return True


def save_tiny_model(folder: Path) -> ChatFormat:
    """A randomly initialised model of 0.7M parameters that vLLM serves."""
    question: Message = {"role": "user", "content": "look it up"}
    tokenizer = train_tokenizer([[question, parse_reply(CALL)]], [lookup.schema()])
    build_model(512, eos_id=tokenizer.eos_token_id, layers=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ChatFormat.from_tokenizer(tokenizer)


async def launch_tiny(folder: Path, chat_format: ChatFormat) -> VLLMEngine:
    return await VLLMEngine.launch(
        folder,
        stop_ids=chat_format.stop_ids,
        context_length=1024,
        max_concurrent=256,
        env={"OMP_NUM_THREADS": "1"},
    )


def task_of(n: int) -> Task:
    return Task(id=str(n), messages=({"role": "user", "content": f"{n}. look it up"},))


def play(
    engine: RoutedEngine, chat_format: ChatFormat, tasks: Iterable[Task], concurrency: int
) -> AsyncGenerator[Episode, None]:
    known = TaskSet([task_of(0)])
    return rollout(
        lambda: ToolEnv(tasks=known, tools=[lookup], verifier=always, max_turns=TURNS),
        tasks,
        TokenPolicy(engine, chat_format),
        max_concurrent=concurrency,
        limits=Limits(max_turns=TURNS),
        sampling=CALLS,
    )


async def soak(episodes: int) -> dict[str, float]:
    """Many more episodes at once than the server runs."""
    with tempfile.TemporaryDirectory() as folder:
        chat_format = save_tiny_model(Path(folder))
        engine = RoutedEngine([await launch_tiny(Path(folder), chat_format)])
        before_mb, started = rss_mb(), time.perf_counter()
        try:
            tasks = [task_of(n) for n in range(episodes)]
            seen: Counter[str] = Counter()
            turns = rewrites = 0
            async for episode in play(engine, chat_format, tasks, episodes):
                seen[str(episode.outcome)] += 1
                turns += len(episode.turns)
                rewrites += count_rewrites(episode)
        finally:
            await engine.aclose()
    assert rewrites == 0
    return {
        "soak_episodes_at_once": episodes,
        "soak_scored": seen["scored"],
        "soak_failed": seen["failed"],
        "soak_lost": episodes - seen["scored"],
        "soak_turns": turns,
        "soak_s": round(time.perf_counter() - started, 1),
        "soak_memory_mb": round(rss_mb() - before_mb, 1),
    }


async def survive(kills: int) -> dict[str, float]:
    """Episodes without end while the server is killed again and again."""
    started: list[str] = []
    final: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    attempts_failed = 0
    left = kills
    draw = random.Random(0)

    def tasks() -> Iterator[Task]:
        while left > 0:
            started.append(str(len(started)))
            yield task_of(len(started) - 1)

    async def kill(engine: VLLMEngine, router: RoutedEngine) -> None:
        nonlocal left
        server = engine.server
        assert server is not None
        while left > 0:
            await asyncio.sleep(draw.uniform(1.0, 6.0))
            process_id = server.pid
            os.kill(process_id, signal.SIGKILL)
            left -= 1
            print(f"killed {process_id}, {left} to go, {sum(final.values())} finished", flush=True)
            # This waits until another answers.
            await router.generate((1,), Sampling(max_tokens=1))

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        chat_format = save_tiny_model(Path(folder))
        engine = await launch_tiny(Path(folder), chat_format)
        router = RoutedEngine([engine])
        killing = asyncio.create_task(kill(engine, router))
        try:
            async for episode in play(router, chat_format, tasks(), 256):
                if is_final(episode, 2):
                    final[episode.task.id] += 1
                    outcomes[str(episode.outcome)] += 1
                else:
                    attempts_failed += 1
            await killing
        finally:
            killing.cancel()
            await router.aclose()
    return {
        "kills": kills,
        "kills_episodes": len(started),
        "kills_accounted": sum(final[task_id] == 1 for task_id in started),
        "kills_scored": outcomes["scored"],
        "kills_failed": outcomes["failed"],
        "kills_failed_attempts": attempts_failed,
        "kills_reissued_generations": router.reissued,
        "kills_s": round(time.perf_counter() - begun, 1),
    }


def rss_mb() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


PARTS: dict[str, Callable[[bool], dict[str, float]]] = {
    "soak": lambda quick: asyncio.run(soak(500 if quick else 2_000)),
    "kills": lambda quick: asyncio.run(survive(2 if quick else 20)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer episodes and kills")
    parser.add_argument("--part", choices=PARTS, nargs="*", default=list(PARTS))
    options = parser.parse_args()
    for part in options.part:
        figures = PARTS[part](options.quick)
        table = Table(part, "")
        for name, value in figures.items():
            table.add_row(name, str(value))
        Console().print(table)
        # Parts may run at different times: each replaces its own figures.
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(known | figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
