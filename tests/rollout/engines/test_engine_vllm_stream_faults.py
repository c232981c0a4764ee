"""What `VLLMEngine` makes of streams that are wrong, break off or fall silent."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import (
    BadAnswer,
    BadLogprobs,
    ConnectionLost,
    ContextOverflow,
    EngineError,
    RequestFailed,
    UnknownToken,
)
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.token_client import TokenClient
from palestra.rollout.vllm_wire import Endpoint
from palestra.types import Sampling, VersionSpan

SPANS = [
    {"version": "default", "start": 0, "end": 1},
    {"version": "8", "start": 1, "end": 3},
]


def chunk(token: int, **fields: Any) -> dict[str, Any]:
    """A chunk of vLLM's token endpoint, with one token."""
    tops = [{"token_id": 9, "logprob": -9999.0}, {"token_id": 1, "logprob": -0.5}]
    entry = {"token_id": token, "logprob": -1.0 - token, "top_logprobs": tops}
    choice = {
        "index": 0,
        "token_ids": [token],
        "logprobs": {"content": [entry]},
        "finish_reason": None,
        "weight_versions": None,
    }
    return {"choices": [{**choice, **fields}]}


FIRST = chunk(2)
LAST = chunk(4, finish_reason="stop", weight_versions=SPANS)


@asynccontextmanager
async def streaming(chunks: Sequence[Any], *, ending: str) -> AsyncGenerator[str, None]:
    """A server that streams these chunks, then ends as told: "done", "cut" or "silent"."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for told in chunks:
            await response.write(f"data: {json.dumps(told)}\n\n".encode())
            await asyncio.sleep(0.02)
        if ending == "silent":
            await asyncio.sleep(30)
        if ending == "cut":
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def stream(
    chunks: Sequence[Any],
    *,
    ending: str = "done",
    endpoint: Endpoint = "generate",
    top_logprobs: int = 0,
    prompt: Sequence[int] = (1, 2, 3),
) -> tuple[list[Piece], Exception | None]:
    """The pieces that came, and what ended them otherwise."""
    pieces: list[Piece] = []

    async def read(url: str) -> None:
        engine = VLLMEngine(
            TokenClient(url),
            TokenClient(url),
            model_name="m",
            endpoint=endpoint,
            stop_ids=frozenset(),
            context_length=64,
            vocab_size=10,
            version=7,
            timeout_s=1.0,
        )
        try:
            answer = engine.stream(prompt, Sampling(max_tokens=4), top_logprobs=top_logprobs)
            async for piece in answer:
                pieces.append(piece)  # noqa: PERF401 - they are wanted even if it fails
        finally:
            await engine.aclose()

    async def run() -> Exception | None:
        async with streaming(chunks, ending=ending) as url:
            try:
                await read(url)
            except Exception as error:
                return error
        return None

    return pieces, asyncio.run(run())


def test_a_stream_becomes_pieces_with_all_that_a_completion_has() -> None:
    pieces, error = stream([FIRST, chunk(3), LAST], top_logprobs=2)
    assert error is None
    assert [piece.ids for piece in pieces] == [(2,), (3,), (4,)]
    assert [piece.logprobs for piece in pieces] == [(-3.0,), (-4.0,), (-5.0,)]
    assert pieces[0].top_logprobs == (((1, -0.5),),)  # the other one cannot be sampled
    assert [piece.stop_reason for piece in pieces] == [None, None, "stop"]
    assert pieces[-1].version_spans == (
        VersionSpan(version=7, start=0, end=1),
        VersionSpan(version=8, start=1, end=3),
    )


def test_the_completions_endpoint_streams_too() -> None:
    def told(token: int, **fields: Any) -> dict[str, Any]:
        logprobs = {
            "token_logprobs": [-1.0],
            "top_logprobs": [{"token_id:3": -1.5, f"token_id:{token}": -1.0}],
        }
        choice = {"index": 0, "token_ids": [token], "logprobs": logprobs, "finish_reason": None}
        return {"choices": [{**choice, **fields}]}

    last = told(0, token_ids=[], logprobs=None, finish_reason="length")
    pieces, error = stream([told(5), last], endpoint="completions", top_logprobs=2)
    assert error is None
    assert pieces == [
        Piece(ids=(5,), logprobs=(-1.0,), top_logprobs=(((5, -1.0), (3, -1.5)),)),
        Piece(
            ids=(),
            logprobs=(),
            stop_reason="length",
            version_spans=(VersionSpan(version=7, start=0, end=1),),
        ),
    ]


def test_an_abort_before_the_first_token_is_told_as_such() -> None:
    pieces, error = stream([chunk(0, token_ids=[], logprobs=None, finish_reason="abort")])
    assert error is None
    assert pieces == [Piece(ids=(), logprobs=(), stop_reason="abort")]


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (chunk(3, logprobs=None), BadLogprobs, "1 tokens without log-probabilities"),
        (chunk(3, token_ids=[1]), BadLogprobs, "other tokens than it answered"),
        (chunk(10), UnknownToken, "token 10, but the vocabulary has 10"),
        (chunk(3, finish_reason="repetition"), BadAnswer, "unknown reason: 'repetition'"),
        ({"object": "chunk"}, BadAnswer, "lacks .*'choices'"),
        ([1], BadAnswer, r"streams \[1\], which is no event"),
        (
            chunk(
                3, finish_reason="stop", weight_versions=[{"version": "x", "start": 0, "end": 2}]
            ),
            BadAnswer,
            "weights 'x'",
        ),
        (
            {"error": {"message": "EngineDeadError", "code": 500}},
            RequestFailed,
            "answered 500: EngineDeadError",
        ),
        (
            {"error": {"message": "token id 9 is out of vocabulary", "code": 400}},
            UnknownToken,
            "of another model",
        ),
    ],
)
def test_a_wrong_stream_has_a_named_error_after_what_was_right(
    second: Any, error: type[EngineError], message: str
) -> None:
    pieces, raised = stream([FIRST, second, LAST])
    assert type(raised) is error
    assert re.search(message, str(raised))
    assert [piece.ids for piece in pieces] == [(2,)]


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ("cut", ConnectionLost, "went away before it had answered"),
        ("silent", TimeoutError, r"was silent for 1 s"),
        ("done", BadAnswer, "ended after 1 tokens without a reason"),
    ],
)
def test_a_stream_that_ends_before_its_completion_is_an_error(
    ending: str, error: type[Exception], message: str
) -> None:
    pieces, raised = stream([FIRST], ending=ending)
    assert type(raised) is error
    assert re.search(message, str(raised))
    assert [piece.ids for piece in pieces] == [(2,)]


def test_a_prompt_without_room_is_refused_before_anything_is_sent() -> None:
    pieces, raised = stream([LAST], prompt=(1,) * 64)
    assert isinstance(raised, ContextOverflow)
    assert not pieces
