"""`palestra serve` on a vLLM server, beside that server's own OpenAI endpoint.

**Speed** (`--part speed`). SmolLM2-135M where its package is installed, else the tiny one; greedy.
The same chat requests go to vLLM's own `/v1/chat/completions` and through palestra to the same
server, in turns; both render the same prompt, or the benchmark fails. First token: one client,
from the request to the first text. Throughput: tokens per second of 16 clients, streamed and not.

**Soak** (`--part soak`). 256 clients, half of them streaming, each sending its next request when
the last is answered, against a tiny model; no answer may be an error. Memory is that of palestra's
process, in ten equal parts of the time: what it remembers of conversations is bounded and full well
before the middle, so that it grows until then, and from the middle on shall not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from rich.console import Console
from rich.table import Table

from palestra.rollout import ChatFormat
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.trainer.model_folder import find_model_folder
from palestra.trainer.tiny import build_model, train_tokenizer

RESULTS = Path(__file__).parent / "results" / "serve.json"
CLIENTS = 16
TOKENS = 64
SERVE = [sys.executable, "-c", "import sys; from palestra.cli import main; sys.exit(main())"]


# --- servers


def save_tiny_model(folder: Path) -> Path:
    conversation = [{"role": "user", "content": "17+25?"}, {"role": "assistant", "content": "42"}]
    tokenizer = train_tokenizer([conversation], [])
    model = build_model(512, eos_id=tokenizer.eos_token_id, layers=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[str, str, int]]:
    """vLLM's own address, palestra's, and the process that is palestra's."""
    chat_format = ChatFormat.load(folder)
    engine = await VLLMEngine.launch(
        folder, stop_ids=chat_format.stop_ids, context_length=1024, max_concurrent=256
    )
    try:
        assert engine.server is not None
        command = [*SERVE, "serve", str(folder), "--engine", "vllm", "--port", "0"]
        command += ["--engine-url", engine.server.base_url, "--context-length", "1024"]
        command += ["--max-concurrent", "512", "--served-model-name", "model"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            ready = (await process.stdout.readline()).decode()
            url = next(word for word in ready.split() if word.startswith("http"))
            yield engine.server.base_url, url.removesuffix("/v1"), process.pid
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
    finally:
        await engine.aclose()


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- clients


def chat_body(question: str, *, stream: bool, tokens: int = TOKENS) -> bytes:
    body: dict[str, Any] = {
        "model": "model",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": tokens,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    return orjson.dumps(body)


async def ask(session: aiohttp.ClientSession, url: str, body: bytes) -> dict[str, Any]:
    """`first_s`, seconds to the first text, and the usage; raises for an error of any kind."""
    started = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    answer: dict[str, Any] = {}
    async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as response:
        response.raise_for_status()
        if response.content_type != "text/event-stream":
            return {"usage": orjson.loads(await response.read())["usage"]}
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            chunk = orjson.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            if chunk.get("usage"):
                answer["usage"] = chunk["usage"]
            if "first_s" not in answer and any(c["delta"].get("content") for c in chunk["choices"]):
                answer["first_s"] = time.perf_counter() - started
    return answer


async def first_tokens_s(urls: dict[str, str], questions: list[str]) -> dict[str, float]:
    """Medians over one request after another, to each address in turn."""
    seen: dict[str, list[float]] = {key: [] for key in urls}
    async with aiohttp.ClientSession() as session:
        for number, question in enumerate(questions):
            key = list(urls)[number % len(urls)]
            answer = await ask(session, urls[key], chat_body(question, stream=True, tokens=4))
            if "first_s" in answer:  # a reply may be empty
                seen[key].append(answer["first_s"])
    return {key: statistics.median(times) for key, times in seen.items()}


async def tokens_per_s(url: str, questions: list[str], *, stream: bool) -> tuple[float, int]:
    """Sampled tokens per second of all clients together, and the prompts' tokens."""
    waiting = iter(questions)
    sampled, prompts = 0, 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal sampled, prompts
        for question in waiting:
            usage = (await ask(session, url, chat_body(question, stream=stream)))["usage"]
            sampled += usage["completion_tokens"]
            prompts += usage["prompt_tokens"]

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        started = time.perf_counter()
        await asyncio.gather(*(work(session) for _ in range(CLIENTS)))
        return sampled / (time.perf_counter() - started), prompts


# --- parts


async def measure_speed(quick: bool) -> dict[str, float]:
    rounds, first, load = (2, 24, 32) if quick else (5, 24, 48)
    numbers = iter(range(10**6))

    def questions(count: int) -> list[str]:
        """New ones: neither side finds another's prompts in the cache."""
        return [
            f"({next(numbers):05}) Tell me a story about a wrestler. " * 4 for _ in range(count)
        ]

    with tempfile.TemporaryDirectory(prefix="palestra-serve-") as name:
        try:
            folder = find_model_folder("smollm2")
        except (ValueError, ImportError) as error:
            print(f"without SmolLM2-135M: {error}")
            folder = save_tiny_model(Path(name))
        seen: dict[str, list[float]] = {}
        async with served(folder) as (bare, ours, _):
            for url in (bare, ours):
                await tokens_per_s(url, questions(4), stream=True)  # both are warm
            for _ in range(rounds):
                firsts = await first_tokens_s({"bare": bare, "ours": ours}, questions(2 * first))
                for key, first_s in firsts.items():
                    seen.setdefault(f"first_{key}", []).append(first_s)
                for stream in (True, False):
                    asked = [questions(load), questions(load)]
                    prompts = []
                    for key, url, batch in zip(("bare", "ours"), (bare, ours), asked, strict=True):
                        rate, prompt_tokens = await tokens_per_s(url, batch, stream=stream)
                        seen.setdefault(f"rate_{key}_{stream}", []).append(rate)
                        prompts.append(prompt_tokens)
                    if prompts[0] != prompts[1]:
                        raise SystemExit(f"the prompts differ: {prompts} tokens")

    def ratio(over: str, under: str) -> float:
        pairs = zip(seen[over], seen[under], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "first_token_ratio": ratio("first_ours", "first_bare"),
        "throughput_ratio": ratio("rate_ours_True", "rate_bare_True"),
        "throughput_ratio_unstreamed": ratio("rate_ours_False", "rate_bare_False"),
        "first_token_vllm_s": round(statistics.median(seen["first_bare"]), 4),
        "tokens_vllm_per_s": round(statistics.median(seen["rate_bare_True"]), 1),
    }


async def measure_soak(quick: bool) -> dict[str, float]:
    seconds, clients = (60.0, 256) if quick else (300.0, 256)
    outcomes: Counter[str] = Counter()
    sizes: list[float] = []
    with tempfile.TemporaryDirectory(prefix="palestra-serve-") as name:
        folder = save_tiny_model(Path(name))
        async with served(folder) as (_, url, pid):
            end = time.monotonic() + seconds

            async def work(session: aiohttp.ClientSession, number: int) -> None:
                turn = 0
                while time.monotonic() < end:
                    question = f"{number}.{turn}: 17+25?"
                    turn += 1
                    try:
                        await ask(session, url, chat_body(question, stream=number % 2 == 0))
                        outcomes["answered"] += 1
                    except Exception as error:
                        outcomes[type(error).__name__] += 1
                        print(f"{type(error).__name__}: {error}", file=sys.stderr)

            async def weigh() -> None:
                for left in range(9, -1, -1):
                    await asyncio.sleep(end - left * seconds / 10 - time.monotonic())
                    sizes.append(rss_mb(pid))
                    answers = outcomes["answered"]
                    print(f"{len(sizes)}0% of the time: {answers} answers, {sizes[-1]:.1f} MB")

            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=300)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                await asyncio.gather(weigh(), *(work(session, n) for n in range(clients)))
    return {
        "soak_clients": clients,
        "soak_s": seconds,
        "soak_answered": outcomes.pop("answered"),
        "soak_errors": outcomes.total(),
        **{f"soak_memory_{n}0_percent_mb": round(mb, 1) for n, mb in enumerate(sizes, start=1)},
        "soak_growth_mb": round(sizes[-1] - sizes[4], 1),
    }


PARTS: dict[str, Callable[[bool], Coroutine[Any, Any, dict[str, float]]]] = {
    "speed": measure_speed,
    "soak": measure_soak,
}
AIMS = {
    "first_token_ratio": "1.1",
    "throughput_ratio": "0.9",
    "throughput_ratio_unstreamed": "0.9",
    "soak_errors": "0",
    "soak_growth_mb": "none",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a minute of soak")
    parser.add_argument("--part", choices=PARTS, help="only this one; the other figures stay")
    given = parser.parse_args()
    figures = json.loads(RESULTS.read_text()) if given.part and RESULTS.exists() else {}
    for name in [given.part] if given.part else PARTS:
        figures |= asyncio.run(PARTS[name](given.quick))
    table = Table("figure", "value", "aim")
    for name, value in figures.items():
        table.add_row(name, f"{value:g}", AIMS.get(name, ""))
    Console().print(table)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
