"""The rollout driver beside what its servers give to a plain load generator.

**Token server.** A server on the other core answers every request after a fixed second
(benchmarks/token_server.py). Episodes are three tool calls in contexts of 8k tokens, sixteen to a
task as in GRPO. The plain load generator sends the same requests, ready as bytes, as often and as
many at once, and looks at no answer. Both in turns; a fraction is the driver's turns per second
through the generator's. Client time is the processor time of the driver's whole process between
one generation and the next, in episodes of 50 turns that are played alone.

**vLLM** (`--part vllm`). SmolLM2-135M, 32 at once, the same environment; a grammar has every reply
call the tool, so that both sides sample the same tokens. The generator replays the driver's
requests turn after turn, each side on an emptied prefix cache.

**Soak** (`--part soak`). 2,000 episodes at once against a tiny model on vLLM. **Kills** (`--part
kills`): that server is killed 20 times at random moments. Every episode must be accounted for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import orjson
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
from palestra.rollout.engine import Engine
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.episode import is_final
from palestra.rollout.token_client import TokenClient
from palestra.rollout.vllm_wire import generate_body
from palestra.tools import parse_reply, tool
from palestra.trainer.model_folder import find_model_folder
from palestra.trainer.tiny import build_model, train_tokenizer
from palestra.types import Completion, Message, Sampling, Structure, Task

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "rollout.json"
CORES = sorted(os.sched_getaffinity(0))
CONTEXT_TOKENS = 8_000
TURNS = 3
GROUP = 16
LATENCY_S = 1.0
CALL = tool_call("lookup", word="palestra")


@tool
async def lookup(word: str) -> str:
    """Look up a word."""
    return f"{word}: where wrestlers train."


async def always(reply: str) -> bool:
    return True


# --- the token server


def make_chat_format() -> ChatFormat:
    conversation: list[Message] = [{"role": "user", "content": "look it up"}, parse_reply(CALL)]
    return ChatFormat.from_tokenizer(train_tokenizer([conversation], [lookup.schema()]))


def make_tasks(chat_format: ChatFormat, count: int) -> TaskSet:
    """Questions of 8k tokens, no two alike."""
    tools = [lookup.schema()]

    def question(n: int, words: int) -> Message:
        return {"role": "user", "content": f"{n}. " + "Look up every word. " * words}

    per_word = (len(chat_format.render([question(0, 1000)], tools)) - 50) / 1000
    words = int(CONTEXT_TOKENS / per_word)
    return TaskSet(Task(id=str(n), messages=(question(n, words),)) for n in range(count))


def make_env(tasks: TaskSet, turns: int) -> Callable[[], ToolEnv]:
    return lambda: ToolEnv(tasks=tasks, tools=[lookup], verifier=always, max_turns=turns)


@contextmanager
def token_server(reply_ids: Sequence[int], latency_s: float) -> Iterator[str]:
    command = [sys.executable, str(HERE / "token_server.py"), "--ids", json.dumps(list(reply_ids))]
    command += ["--latency-s", str(latency_s), "--core", str(CORES[0])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.communicate()  # closes its standard input: it ends


def engine_at(base_url: str, chat_format: ChatFormat) -> VLLMEngine:
    return VLLMEngine(
        TokenClient(base_url),
        TokenClient(base_url),
        model_name="model",
        endpoint="generate",
        stop_ids=chat_format.stop_ids,
        context_length=131_072,
        vocab_size=None,
        version=0,
        timeout_s=600.0,
    )


class Timed:
    """An engine that notes the processor time at which each generation begins."""

    def __init__(self, engine: VLLMEngine) -> None:
        self.engine = engine
        self.version = engine.version
        self.context_length = engine.context_length
        self.began: list[float] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        self.began.append(time.process_time())
        return await self.engine.generate(prompt_ids, sampling)

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        return await self.engine.score(token_ids)

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None:
        await self.engine.update_weights(version, *args, **kwargs)

    async def aclose(self) -> None:
        await self.engine.aclose()


async def measure_client(base_url: str, chat_format: ChatFormat, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time per turn in groups of episodes of 50 turns, early and late."""
    tasks = make_tasks(chat_format, rounds)
    engine = Timed(engine_at(base_url, chat_format))
    by_turn: list[list[float]] = []
    try:
        for task in tasks:
            engine.began = []
            played = rollout(
                make_env(tasks, 50),
                [task],
                TokenPolicy(engine, chat_format),
                n_per_task=GROUP,
                limits=Limits(max_turns=50),
            )
            async for episode in played:
                assert len(episode.turns) == 50
                assert all(turn.parent is not None for turn in episode.turns[1:])
            # The server takes equally long for all, so that they go from turn to turn together.
            of_turn = engine.began[::GROUP]
            by_turn.append([1e3 * (end - begin) / GROUP for begin, end in pairwise(of_turn)])
    finally:
        await engine.aclose()
    medians = [statistics.median(times) for times in zip(*by_turn, strict=True)]
    return {
        "client_ms_per_turn": round(statistics.fmean(medians[1:]), 3),
        "client_ms_per_turn_2": round(statistics.fmean(medians[1:6]), 3),
        "client_ms_per_turn_50": round(statistics.fmean(medians[-5:]), 3),
    }


async def play(
    engine: VLLMEngine, chat_format: ChatFormat, tasks: TaskSet, n_per_task: int, concurrency: int
) -> list[Any]:
    episodes = rollout(
        make_env(tasks, TURNS),
        tasks,
        TokenPolicy(engine, chat_format),
        n_per_task=n_per_task,
        max_concurrent=concurrency,
        limits=Limits(max_turns=TURNS),
        max_attempts=1,
    )
    return [episode async for episode in episodes]


async def replay(base_url: str, episodes: Sequence[Sequence[bytes]], concurrency: int) -> float:
    """Seconds in which a plain load generator sends the same requests, so many at once."""
    waiting = iter(episodes)
    url, headers = f"{base_url}/inference/v1/generate", {"Content-Type": "application/json"}

    async def work(session: aiohttp.ClientSession) -> None:
        for requests in waiting:
            for body in requests:
                async with session.post(url, data=body, headers=headers) as response:
                    await response.read()
                    assert response.status == 200, await response.text()

    connector = aiohttp.TCPConnector(limit=concurrency)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        started = time.perf_counter()
        await asyncio.gather(*(work(session) for _ in range(concurrency)))
        return time.perf_counter() - started


def bodies_of(episode: Any, chat_format: ChatFormat) -> list[bytes]:
    """An episode's requests as bytes."""
    return [
        orjson.dumps(
            generate_body(
                "generate",
                "model",
                turn.prompt_ids,
                turn.sampling,
                max_tokens=turn.sampling.max_tokens,
                stop_ids=sorted(chat_format.stop_ids),
            )
        )
        for turn in episode.turns
    ]


async def measure_fraction(
    base_url: str, chat_format: ChatFormat, concurrency: int, *, waves: int, rounds: int
) -> dict[str, float]:
    """The driver's speed as a fraction of the load generator's."""
    count = concurrency * waves
    tasks = make_tasks(chat_format, count // GROUP)
    driver: list[float] = []
    bare: list[float] = []
    cpu_ms: list[float] = []
    for _ in range(rounds):
        engine = engine_at(base_url, chat_format)
        wall, cpu = time.perf_counter(), time.process_time()
        episodes = await play(engine, chat_format, tasks, GROUP, concurrency)
        driver.append(time.perf_counter() - wall)
        cpu_ms.append(1e3 * (time.process_time() - cpu) / (count * TURNS))
        await engine.aclose()
        assert len(episodes) == count and all(len(e.turns) == TURNS for e in episodes)
        requests = [bodies_of(episodes[n], chat_format) for n in range(0, count, GROUP)]
        bare.append(await replay(base_url, requests * GROUP, concurrency))
    median = statistics.median
    return {
        f"driver_fraction_c{concurrency}": round(median(bare) / median(driver), 3),
        f"client_ms_per_turn_c{concurrency}": round(median(cpu_ms), 3),
        f"driver_turns_per_s_c{concurrency}": round(count * TURNS / median(driver), 1),
        f"bare_turns_per_s_c{concurrency}": round(count * TURNS / median(bare), 1),
    }


def measure_token_server(quick: bool) -> dict[str, float]:
    os.sched_setaffinity(0, {CORES[-1]})
    chat_format = make_chat_format()
    question: Message = {"role": "user", "content": "look it up"}
    reply_ids = chat_format.encode_reply([question], parse_reply(CALL), [lookup.schema()])
    figures: dict[str, float] = {}
    with token_server(reply_ids, 0.05) as base_url:
        figures |= asyncio.run(measure_client(base_url, chat_format, 4 if quick else 10))
    with token_server(reply_ids, LATENCY_S) as base_url:
        for concurrency in (32, 256):
            figures |= asyncio.run(
                measure_fraction(
                    base_url,
                    chat_format,
                    concurrency,
                    waves=2 if quick else 4,
                    rounds=1 if quick else 3,
                )
            )
    os.sched_setaffinity(0, CORES)
    return figures


# --- a real server that is overrun, and one that is killed


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


def short_task(n: int) -> Task:
    return Task(id=str(n), messages=({"role": "user", "content": f"{n}. look it up"},))


# A grammar has every reply call the tool: a random model would never get beyond its first turn.
CALLS = Sampling(max_tokens=96, structure=Structure(choice=(CALL,)))


def play_short(engine: Engine, chat_format: ChatFormat, tasks: Any, concurrency: int) -> Any:
    return rollout(
        make_env(TaskSet([short_task(0)]), TURNS),
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
            tasks = [short_task(n) for n in range(episodes)]
            seen: Counter[str] = Counter()
            turns = rewrites = 0
            async for episode in play_short(engine, chat_format, tasks, episodes):
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
            yield short_task(len(started) - 1)

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
            async for episode in play_short(router, chat_format, tasks(), 256):
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


async def measure_vllm(rounds: int) -> dict[str, float]:
    """The driver's speed on SmolLM2 as a fraction of the load generator's."""
    folder = find_model_folder("smollm2")
    chat_format = ChatFormat.load(folder)
    engine = await VLLMEngine.launch(
        folder,
        stop_ids=chat_format.stop_ids,
        context_length=1024,
        dtype="bfloat16",
        max_concurrent=64,
        env={"OMP_NUM_THREADS": "1"},
    )
    concurrency, count = 32, 64
    driver: list[float] = []
    bare: list[float] = []
    try:
        tasks = [short_task(n) for n in range(count)]
        for warm in (True, *[False] * rounds):
            await engine.control.post("/reset_prefix_cache", timeout_s=60)
            started = time.perf_counter()
            episodes = [e async for e in play_short(engine, chat_format, tasks, concurrency)]
            seconds = time.perf_counter() - started
            assert all(len(e.turns) == TURNS for e in episodes) and len(episodes) == count
            if warm:
                continue
            driver.append(seconds)
            requests = [bodies_of(episode, chat_format) for episode in episodes]
            await engine.control.post("/reset_prefix_cache", timeout_s=60)
            bare.append(await replay(engine.client.base_url, requests, concurrency))
    finally:
        await engine.aclose()
    median = statistics.median
    return {
        "driver_fraction_vllm_c32": round(median(bare) / median(driver), 3),
        "driver_turns_per_s_vllm_c32": round(count * TURNS / median(driver), 2),
        "bare_turns_per_s_vllm_c32": round(count * TURNS / median(bare), 2),
    }


PARTS: dict[str, Callable[[bool], dict[str, float]]] = {
    "token": measure_token_server,
    "vllm": lambda quick: asyncio.run(measure_vllm(1 if quick else 3)),
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
