"""What `VLLMEngine` makes of servers that answer wrongly, are something else, or die.

The server here speaks vLLM's protocol, with a fault; the file is also the program that runs it.
"""

import asyncio
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from palestra.rollout.engine_errors import (
    BadAnswer,
    BadLogprobs,
    EngineError,
    RawLogprobs,
    ServerDied,
    ServerNotStarted,
    UnknownToken,
    UnsupportedServer,
)
from palestra.rollout.engine_python import find_python
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.vllm_launch import vllm_command
from palestra.types import Completion, Sampling, VersionSpan

LOGITS = [-0.5 * token for token in range(10)]

Fault = Callable[[dict[str, Any]], None]


def answer_generate(body: dict[str, Any], *, raw: bool) -> dict[str, Any]:
    """What vLLM would answer if its model always had LOGITS and every draw were the likeliest."""
    params = body["sampling_params"]
    temperature = 1.0 if raw else params["temperature"] or 1.0
    total = math.log(sum(math.exp(logit / temperature) for logit in LOGITS))
    top = [
        {"token_id": token, "logprob": LOGITS[token] / temperature - total, "rank": token + 1}
        for token in range(max(1, params["logprobs"]))
    ]
    count = min(params["max_tokens"], 4)
    choice = {
        "finish_reason": "length",
        "token_ids": [0] * count,
        "logprobs": {"content": [{**top[0], "top_logprobs": top} for _ in range(count)]},
        "weight_versions": [{"version": "default", "start": 0, "end": count}],
    }
    return {"choices": [{"index": index, **choice} for index in range(params["n"])]}


async def stream_answer(
    request: web.Request, token_ids: list[int], answer: dict[str, Any]
) -> web.StreamResponse:
    """The same in two chunks, between which some prompts wait for ever."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    choice = answer["choices"][0]
    count = len(choice["token_ids"])
    for part in (slice(0, 1), slice(1, count)):
        content = {"content": choice["logprobs"]["content"][part]}
        chunk = {**choice, "token_ids": choice["token_ids"][part], "logprobs": content}
        if part.stop < count:
            chunk |= {"finish_reason": None, "weight_versions": None}
        await response.write(f"data: {json.dumps({'choices': [chunk]})}\n\n".encode())
        if token_ids == [7, 7]:
            await asyncio.sleep(60)
    await response.write(b"data: [DONE]\n\n")
    return response


def imitate(
    *, version: str = "0.32.0", raw: bool = False, fault: Fault | None = None
) -> web.Application:
    """A server of vLLM's protocol. `fault` spoils the answers to all but the engine's probe."""

    async def generate(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        answer = answer_generate(body, raw=raw)
        if body.get("stream"):
            return await stream_answer(request, body["token_ids"], answer)
        if body["token_ids"] == [7, 7]:
            await asyncio.sleep(60)
        if body["token_ids"] == [9, 9]:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault is not None and body["token_ids"] == [1, 2, 3]:
            fault(answer)
        return web.json_response(answer)

    async def tell(request: web.Request) -> web.Response:
        answers: dict[str, Any] = {
            "/health": {},
            "/version": {"version": version},
            "/v1/models": {
                "data": [{"id": "m", "root": "/nowhere", "parent": None, "max_model_len": 64}]
            },
            "/weight_info": {"weight_version": "default"},
        }
        if request.path not in answers:
            raise web.HTTPNotFound
        return web.json_response(answers[request.path])

    app = web.Application()
    app.router.add_post("/inference/v1/generate", generate)
    app.router.add_get("/{path:.*}", tell)
    return app


@asynccontextmanager
async def serving(app: web.Application) -> AsyncGenerator[str, None]:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def ask(app: web.Application, n: int = 1, **options: Any) -> list[Completion]:
    """Attach to such a server and sample once."""

    async def run() -> list[Completion]:
        async with serving(app) as url:
            engine = await VLLMEngine.attach(url, stop_ids=frozenset(), vocab_size=10, **options)
            try:
                return await engine.generate_group((1, 2, 3), Sampling(max_tokens=4), n)
            finally:
                await engine.aclose()

    return asyncio.run(run())


def choice_of(answer: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = answer["choices"][0]
    return choice


def spoil(key: str, value: Any) -> Fault:
    return lambda answer: choice_of(answer).update({key: value})


def spoil_logprob(value: Any) -> Fault:
    return lambda answer: choice_of(answer)["logprobs"]["content"][2].update({"logprob": value})


def test_the_imitation_without_a_fault_is_accepted() -> None:
    completions = ask(imitate(), n=2)
    assert [completion.ids for completion in completions] == [(0,) * 4] * 2


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (spoil("logprobs", None), BadLogprobs, "4 tokens without log-probabilities"),
        (spoil_logprob(None), BadLogprobs, "token 2 is None"),
        (spoil_logprob(-9999.0), BadLogprobs, r"token 2 is -9999\.0.*NaN"),
        (spoil("logprobs", {"content": []}), BadLogprobs, "other tokens than it answered"),
        (spoil("token_ids", [0, 0, 0, 1]), BadLogprobs, "other tokens than it answered"),
        (spoil("finish_reason", "repetition"), BadAnswer, "unknown reason: 'repetition'"),
        (lambda answer: answer.pop("choices"), BadAnswer, "lacks .*'choices'"),
        (lambda answer: answer["choices"].clear(), BadAnswer, "0 completions, 1 were asked"),
        (
            spoil("weight_versions", [{"version": "stranger", "start": 0, "end": 4}]),
            BadAnswer,
            "weights 'stranger'",
        ),
    ],
)
def test_a_wrong_answer_has_a_named_error(
    fault: Fault, error: type[EngineError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(imitate(fault=fault))


def test_a_sampled_id_outside_the_vocabulary_is_an_error() -> None:
    def sample_another(answer: dict[str, Any]) -> None:
        choice_of(answer)["token_ids"][3] = 10
        choice_of(answer)["logprobs"]["content"][3]["token_id"] = 10

    with pytest.raises(UnknownToken, match="token 10, but the vocabulary has 10"):
        ask(imitate(fault=sample_another))


def test_an_aborted_generation_is_told_as_such() -> None:
    def abort(answer: dict[str, Any]) -> None:
        choice_of(answer).update(
            finish_reason="abort", token_ids=[], logprobs={"content": []}, weight_versions=[]
        )

    (completion,) = ask(imitate(fault=abort))
    assert completion == Completion(ids=(), logprobs=(), stop_reason="abort")


def test_the_versions_of_a_generation_are_the_servers() -> None:
    spans = [
        {"version": "default", "start": 0, "end": 1},
        {"version": "8", "start": 1, "end": 4},
    ]
    (completion,) = ask(imitate(fault=spoil("weight_versions", spans)), version=7)
    assert completion.version_spans == (
        VersionSpan(version=7, start=0, end=1),
        VersionSpan(version=8, start=1, end=4),
    )


def test_raw_logprobs_are_refused_with_the_flag_that_mends_it() -> None:
    with pytest.raises(RawLogprobs, match="--logprobs-mode processed_logprobs"):
        ask(imitate(raw=True))


def test_an_old_server_is_refused() -> None:
    with pytest.raises(UnsupportedServer, match=r"vLLM 0\.9\.1, 0\.32 or newer is needed"):
        ask(imitate(version="0.9.1"))


def test_a_server_that_is_not_vllm_is_refused() -> None:
    with pytest.raises(UnsupportedServer, match="no vLLM server"):
        ask(web.Application())


# --- servers that die


@asynccontextmanager
async def launched(folder: Path) -> AsyncGenerator[VLLMEngine, None]:
    """An engine that has started this file as its server."""
    (folder / "config.json").write_text('{"vocab_size": 10}')
    interpreter = folder / "python"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    interpreter.chmod(0o755)
    engine = await VLLMEngine.launch(
        folder, stop_ids=frozenset(), context_length=64, python=interpreter, log_folder=folder
    )
    try:
        yield engine
    finally:
        await engine.aclose()


def test_a_death_fails_what_is_in_progress_and_later_requests_wait(tmp_path: Path) -> None:
    async def run() -> None:
        async with launched(tmp_path) as engine:
            assert engine.server is not None
            in_progress = [
                asyncio.create_task(engine.generate((7, 7), Sampling())) for _ in range(3)
            ]
            await asyncio.sleep(0.3)
            os.kill(engine.server.pid, signal.SIGKILL)
            for task in in_progress:
                with pytest.raises(ServerDied, match="signal SIGKILL"):
                    await task
            completions = await asyncio.gather(
                *(engine.generate((1,), Sampling(max_tokens=2)) for _ in range(3))
            )
            assert [completion.ids for completion in completions] == [(0, 0)] * 3

    asyncio.run(run())


def test_a_death_in_the_middle_of_a_stream_is_told_and_later_streams_wait(tmp_path: Path) -> None:
    async def run() -> None:
        async with launched(tmp_path) as engine:
            assert engine.server is not None
            stream = engine.stream((7, 7), Sampling())
            assert (await anext(stream)).ids == (0,)
            os.kill(engine.server.pid, signal.SIGKILL)
            with pytest.raises(ServerDied, match="signal SIGKILL"):
                await anext(stream)
            pieces = [piece async for piece in engine.stream((1,), Sampling(max_tokens=2))]
            assert [token for piece in pieces for token in piece.ids] == [0, 0]

    asyncio.run(run())


def test_a_server_that_was_started_again_gets_its_weights_first(tmp_path: Path) -> None:
    async def run() -> list[str]:
        events: list[str] = []
        async with launched(tmp_path) as engine:
            assert engine.server is not None

            async def restore() -> None:
                await engine.generate((1,), Sampling(max_tokens=1))  # need not wait for itself
                events.append("restored")

            engine.after_restart = restore
            os.kill(engine.server.pid, signal.SIGKILL)
            with pytest.raises(ServerDied):
                await engine.generate((7, 7), Sampling())
            await engine.generate((1,), Sampling(max_tokens=1))
            events.append("generated")
        return events

    assert asyncio.run(run()) == ["restored", "generated"]


def test_a_server_that_dies_of_every_request_is_not_started_for_ever(tmp_path: Path) -> None:
    async def run() -> list[str]:
        said = []
        async with launched(tmp_path) as engine:
            for _ in range(6):
                with pytest.raises(ServerDied) as raised:
                    await engine.generate((9, 9), Sampling())
                said.append(str(raised.value))
        return said

    said = asyncio.run(run())
    assert "without completing a generation" not in said[2]
    assert "4 times without completing a generation" in said[4]
    assert said[5] == said[4]


# --- servers that are not started


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    launch = VLLMEngine.launch(tmp_path, stop_ids=frozenset(), context_length=64, python="python")
    with pytest.raises(ServerNotStarted, match=r"not a model folder: it has no config\.json"):
        asyncio.run(launch)


def test_an_interpreter_without_vllm_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    launch = VLLMEngine.launch(
        tmp_path,
        stop_ids=frozenset(),
        context_length=64,
        python=sys.executable,
        log_folder=tmp_path,
    )
    with pytest.raises(ServerNotStarted, match=r"No module named '?vllm"):
        asyncio.run(launch)


def test_an_interpreter_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALESTRA_VLLM_PYTHON", sys.executable)
    assert find_python("vllm") == Path(sys.executable)
    monkeypatch.setenv("PALESTRA_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(ServerNotStarted, match="PALESTRA_VLLM_PYTHON is /nowhere/python"):
        find_python("vllm")


def test_a_server_samples_by_nobody_elses_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = partial(
        vllm_command,
        tmp_path,
        python="python",
        dtype="bfloat16",
        context_length=64,
        max_concurrent=8,
        kv_cache_gib=0.5,
    )(extra_args=("--seed", "3"))(1234)
    flags = dict(itertools.pairwise(command))
    assert flags["--generation-config"] == "vllm"
    assert flags["--logprobs-mode"] == "processed_logprobs"
    assert flags["--port"] == "1234"
    assert flags["--kv-cache-memory-bytes"] == str(2**29)
    assert command[-2:] == ["--seed", "3"]


def test_importing_the_engine_imports_nothing_heavy() -> None:
    program = (
        "import sys, palestra.rollout.engine_vllm; "
        "print(*{'torch', 'vllm', 'transformers', 'aiohttp', 'orjson'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


if __name__ == "__main__":
    web.run_app(
        imitate(),
        host="127.0.0.1",
        port=int(sys.argv[sys.argv.index("--port") + 1]),
        print=lambda *_: None,
    )
