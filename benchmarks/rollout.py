"""The rollout driver beside what its servers give to a plain load generator, and `verifiers`.

**Token server.** A server on the other core answers every request after a fixed second
(benchmarks/token_server.py). Episodes are three tool calls in contexts of 8k tokens, sixteen to a
task as in GRPO. The plain load generator sends the same requests, ready as bytes, as often and as
many at once, and looks at no answer. Both in turns; a fraction is the driver's turns per second
through the generator's. Client time is the processor time of the driver's whole process between
one generation and the next, in episodes of 50 turns that are played alone.

**vLLM** (`--part vllm`). SmolLM2-135M, 32 at once, the same environment; a grammar has every reply
call the tool in the same tokens. The generator replays the driver's
requests turn after turn. PyPI's `verifiers` (in an environment of its own under .venv-peers) plays
the same episodes through the same server's chat completions, with the same chat template; its
fraction is also of the generator's speed. Each side begins with an emptied prefix cache.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from palestra.envs import TaskSet, ToolEnv
from palestra.rollout import ChatFormat, Limits, RoutedEngine, TokenPolicy, rollout, tool_call
from palestra.rollout.engine import Engine, Piece
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.token_client import TokenClient
from palestra.rollout.vllm_wire import generate_body
from palestra.tools import parse_reply, tool
from palestra.trainer.model_folder import find_model_folder
from palestra.trainer.tiny import CHAT_TEMPLATE, train_tokenizer
from palestra.types import Completion, Episode, Message, Sampling, Structure, Task

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "rollout.json"
PEERS = HERE.parent / ".venv-peers"
VERIFIERS = "verifiers==0.1.14"  # the last whose environments run in the trainer's process
CORES = sorted(os.sched_getaffinity(0))
CONTEXT_TOKENS = 8_000
TURNS = 3
GROUP = 16
LATENCY_S = 1.0
CALL = tool_call("lookup", word="palestra")
# A grammar has every reply call the tool, whatever the model would say. It allows the text to
# be cut into other tokens, too, so the question shows the call: then the likeliest are the usual.
CALLS = Sampling(max_tokens=96, temperature=0.0, structure=Structure(choice=(CALL,)))


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

    def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        return self.engine.stream(prompt_ids, sampling, top_logprobs=top_logprobs)

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
    engine: Engine,
    chat_format: ChatFormat,
    tasks: Iterable[Task],
    concurrency: int,
    *,
    n_per_task: int = 1,
    sampling: Sampling,
) -> list[Episode]:
    known = TaskSet(tasks)
    played = rollout(
        make_env(known, TURNS),
        known,
        TokenPolicy(engine, chat_format),
        n_per_task=n_per_task,
        max_concurrent=concurrency,
        limits=Limits(max_turns=TURNS),
        sampling=sampling,
        max_attempts=1,
    )
    episodes = [episode async for episode in played]
    assert len(episodes) == len(known) * n_per_task
    assert all(len(episode.turns) == TURNS for episode in episodes)
    return episodes


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


def bodies_of(episode: Episode, chat_format: ChatFormat) -> list[bytes]:
    """An episode's requests as bytes."""
    bodies = []
    for turn in episode.turns:
        assert turn.sampling is not None
        body = generate_body(
            "generate",
            "model",
            turn.prompt_ids,
            turn.sampling,
            max_tokens=turn.sampling.max_tokens,
            stop_ids=sorted(chat_format.stop_ids),
        )
        bodies.append(orjson.dumps(body))
    return bodies


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
        episodes = await play(
            engine, chat_format, tasks, concurrency, n_per_task=GROUP, sampling=Sampling()
        )
        driver.append(time.perf_counter() - wall)
        cpu_ms.append(1e3 * (time.process_time() - cpu) / (count * TURNS))
        await engine.aclose()
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
    gc.collect()
    gc.freeze()  # as the process in which rollouts run does
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


# --- vLLM


def peer_python() -> Path:
    """The interpreter of an environment with `verifiers`, made if it is missing.

    Raises:
        subprocess.CalledProcessError: pip could not install it.
    """
    folder = PEERS / VERIFIERS
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        print(f"installing {VERIFIERS} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, VERIFIERS], check=True, stderr=subprocess.DEVNULL)
        (folder / ".installed").touch()
    return python


def play_verifiers(base_url: str, count: int, concurrency: int) -> float | None:
    """Seconds that `verifiers` takes; None, and a line that says so, if it cannot be had."""
    script = HERE / "peers" / "rollout_verifiers.py"
    try:
        command = [str(peer_python()), str(script), "--base-url", base_url, "--call", CALL]
        command += ["--episodes", str(count), "--turns", str(TURNS)]
        command += ["--concurrency", str(concurrency)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "pip could not install it").strip().splitlines()
        print(f"PEER LEFT OUT: {VERIFIERS}: {lines[-1]}", flush=True)
        return None
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["turns"] == count * TURNS, figures
    return float(figures["wall_s"])


def load_smollm2(scratch: Path) -> tuple[Path, ChatFormat, list[str]]:
    """Its folder, a chat format that has tools, and what makes a server use the same template."""
    folder = find_model_folder("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    template = scratch / "template.jinja"
    template.write_text(CHAT_TEMPLATE)
    serving = ["--chat-template", str(template), "--enable-auto-tool-choice"]
    serving += ["--tool-call-parser", "hermes"]
    return folder, ChatFormat.from_tokenizer(tokenizer), serving


async def sampled_tokens(engine: VLLMEngine) -> int:
    """How many tokens the server has sampled since it started."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{engine.client.base_url}/metrics") as response,
    ):
        found = re.findall(
            r"^vllm:generation_tokens_total\{.*\} (\S+)$", await response.text(), re.MULTILINE
        )
    return int(sum(map(float, found)))


async def measure_vllm(rounds: int) -> dict[str, float]:
    """The driver's speed on SmolLM2, and `verifiers`', as fractions of the load generator's."""
    concurrency, count = 32, 64
    driver: list[float] = []
    bare: list[float] = []
    peer: list[float] = []
    tokens: dict[str, int] = {}
    tasks = [
        Task(id=str(n), messages=({"role": "user", "content": f"{n}. Say {CALL}"},))
        for n in range(count)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder, chat_format, serving = load_smollm2(Path(scratch))
        engine = await VLLMEngine.launch(
            folder,
            stop_ids=chat_format.stop_ids,
            context_length=1024,
            dtype="bfloat16",
            max_concurrent=64,
            extra_args=serving,
            env={"OMP_NUM_THREADS": "1"},
        )
        base_url = engine.client.base_url
        try:
            for is_warm in (False, *[True] * rounds):
                await engine.control.post("/reset_prefix_cache", timeout_s=60)
                before = await sampled_tokens(engine)
                started = time.perf_counter()
                episodes = await play(
                    RoutedEngine([engine]), chat_format, tasks, concurrency, sampling=CALLS
                )
                seconds = time.perf_counter() - started
                tokens["driver"] = await sampled_tokens(engine) - before
                if not is_warm:
                    continue
                driver.append(seconds)
                requests = [bodies_of(episode, chat_format) for episode in episodes]
                await engine.control.post("/reset_prefix_cache", timeout_s=60)
                bare.append(await replay(base_url, requests, concurrency))
                before = await sampled_tokens(engine)
                found = await asyncio.to_thread(play_verifiers, base_url, count, concurrency)
                if found is not None:
                    peer.append(found)
                    # One more episode comes before those that are timed.
                    sampled = await sampled_tokens(engine) - before
                    tokens["verifiers"] = round(sampled * count / (count + 1))
        finally:
            await engine.aclose()
    turns, median = count * TURNS, statistics.median
    figures = {
        "driver_fraction_vllm_c32": round(median(bare) / median(driver), 3),
        "driver_turns_per_s_vllm_c32": round(turns / median(driver), 2),
        "bare_turns_per_s_vllm_c32": round(turns / median(bare), 2),
        "driver_tokens_per_turn": round(tokens["driver"] / turns, 1),
    }
    if peer:
        figures["verifiers_fraction_c32"] = round(median(bare) / median(peer), 3)
        figures["verifiers_turns_per_s_vllm_c32"] = round(turns / median(peer), 2)
        figures["verifiers_tokens_per_turn"] = round(tokens["verifiers"] / turns, 1)
    return figures


PARTS: dict[str, Callable[[bool], dict[str, float]]] = {
    "token": measure_token_server,
    "vllm": lambda quick: asyncio.run(measure_vllm(1 if quick else 3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer episodes and rounds")
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
