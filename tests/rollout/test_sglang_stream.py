"""SGLang's streams, cumulative and incremental, from a server that speaks its protocol."""

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import (
    BadAnswer,
    BadLogprobs,
    ConnectionLost,
    EngineError,
    RequestFailed,
    UnknownToken,
)
from palestra.rollout.engine_sglang import SGLangEngine
from palestra.rollout.sglang_traits import ServerTraits
from palestra.rollout.token_client import TokenClient
from palestra.types import Completion, Sampling, VersionSpan

IDS = [5, 3, 8, 1]
TRAITS = ServerTraits(
    model_folder=Path("nowhere"),
    context_length=64,
    vocab_size=10,
    seeded=False,
    grammar=False,
    max_support=10,
    page_size=1,
    version=None,
)
SAMPLING = Sampling(max_tokens=8)


def logprobs_of(ids: Sequence[int]) -> list[float]:
    return [-1.0 - token / 8 for token in ids]


def event(total: int, first: int = 0, **told: Any) -> dict[str, Any]:
    """One in which `total` tokens have come, and those from `first` on are told."""
    ids = IDS[first:total]
    rows = [[[-0.5, 9, None], [logprob, token, None]] for logprob, token in
            zip(logprobs_of(ids), ids, strict=True)]  # fmt: skip
    meta: dict[str, Any] = {
        "completion_tokens": total,
        "finish_reason": None,
        "output_token_logprobs": [row[1] for row in rows],
        "output_top_logprobs": rows,
        # Half of the probability was cut off, token 9 with it.
        "output_token_sampling_logprobs": [math.log(2) + p for p in logprobs_of(ids)],
        "output_token_sampling_mask": [[token, 2] for token in ids],
    }
    return {"output_ids": ids, "meta_info": {**meta, **told}}


END: dict[str, Any] = {
    "finish_reason": {"type": "stop", "matched": 1},
    "weight_versions": [{"version": "default", "start": 0, "end": 4}],
}
CUMULATIVE = [event(1), event(2), event(4), event(4, **END)]
INCREMENTAL = [event(1), event(2, 1), event(4, 2), event(4, 4, **END)]


@asynccontextmanager
async def serving(
    events: Sequence[Any], aborted: list[str], *, ending: str
) -> AsyncGenerator[str, None]:
    """A server that streams these events, then ends as told: "done", "cut" or "silent"."""

    async def generate(request: web.Request) -> web.StreamResponse:
        assert (await request.json())["stream"] is True
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for told in events:
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

    async def abort(request: web.Request) -> web.Response:
        aborted.append((await request.json())["rid"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/generate", generate)
    app.router.add_post("/abort_request", abort)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def engine_at(url: str) -> SGLangEngine:
    return SGLangEngine(
        TokenClient(url),
        TokenClient(url),
        TRAITS,
        stop_ids=frozenset(),
        context_length=64,
        version=7,
        timeout_s=1.0,
    )


def stream(
    events: Sequence[Any],
    *,
    sampling: Sampling = SAMPLING,
    top_logprobs: int = 0,
    ending: str = "done",
) -> tuple[list[Piece], Exception | None, list[str]]:
    """The pieces that came, what ended them otherwise, and which requests were aborted."""
    pieces: list[Piece] = []
    aborted: list[str] = []

    async def run() -> Exception | None:
        async with serving(events, aborted, ending=ending) as url:
            engine = engine_at(url)
            try:
                async for piece in engine.stream((1, 2), sampling, top_logprobs=top_logprobs):
                    pieces.append(piece)  # noqa: PERF401 - they are wanted even if it fails
            except Exception as error:
                return error
            finally:
                await engine.aclose()
        return None

    return pieces, asyncio.run(run()), aborted


@pytest.mark.parametrize("events", [CUMULATIVE, INCREMENTAL])
def test_a_stream_is_its_completion_however_the_server_tells_it(events: list[Any]) -> None:
    pieces, error, aborted = stream(events)
    assert (error, aborted) == (None, [])
    assert [piece.ids for piece in pieces] == [(5,), (3,), (8, 1), ()]
    together = Completion(
        ids=tuple(token for piece in pieces for token in piece.ids),
        logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
        stop_reason=pieces[-1].stop_reason or "",
        version_spans=pieces[-1].version_spans,
    )
    assert together == Completion(
        ids=tuple(IDS),
        logprobs=tuple(logprobs_of(IDS)),
        stop_reason="stop",
        version_spans=(VersionSpan(version=7, start=0, end=4),),
    )


@pytest.mark.parametrize("events", [CUMULATIVE, INCREMENTAL])
def test_the_likeliest_tokens_are_best_first(events: list[Any]) -> None:
    pieces, _, _ = stream(events, top_logprobs=1)
    assert [piece.top_logprobs for piece in pieces] == [
        (((9, -0.5),),),
        (((9, -0.5),),),
        (((9, -0.5),), ((9, -0.5),)),
        (),
    ]


@pytest.mark.parametrize("events", [CUMULATIVE, INCREMENTAL])
def test_after_top_k_all_log_probabilities_are_those_of_what_is_left(events: list[Any]) -> None:
    pieces, error, _ = stream(events, sampling=Sampling(max_tokens=8, top_k=2), top_logprobs=2)
    assert error is None
    expected = [math.log(2) + logprob for logprob in logprobs_of(IDS)]
    assert [p for piece in pieces for p in piece.logprobs] == pytest.approx(expected)
    tops = [top for piece in pieces for top in piece.top_logprobs]
    assert [[token for token, _ in top] for top in tops] == [[token] for token in IDS]
    assert [top[0][1] for top in tops] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (
            event(2, finish_reason={"type": "abort", "status_code": 400, "message": "too long"}),
            RequestFailed,
            "answered 400: too long",
        ),
        (
            {"error": {"message": "no such token", "code": 400}},
            RequestFailed,
            "answered 400: no such token",
        ),
        (event(2, finish_reason={"type": "tired"}), BadAnswer, "unknown reason: 'tired'"),
        (event(2, finish_reason={"type": "stop"}), BadAnswer, "lacks .*weight_versions"),
        (event(2, output_token_logprobs=[]), BadLogprobs, "other tokens than it answered"),
        (
            event(2, output_token_logprobs=[[-1.0, 5, None], [None, 3, None]]),
            BadLogprobs,
            "not a number",
        ),
        ({"output_ids": [5, 3]}, BadAnswer, "lacks .*meta_info"),
        (
            {**event(2, output_token_logprobs=[[-1, 5], [-1, 11]]), "output_ids": [5, 11]},
            UnknownToken,
            "token 11",
        ),
    ],
)
def test_a_wrong_stream_has_a_named_error_after_what_was_right(
    second: Any, error: type[EngineError], message: str
) -> None:
    pieces, raised, _ = stream([event(1), second])
    assert type(raised) is error, raised
    assert re.search(message, str(raised))
    assert [piece.ids for piece in pieces] == [(5,)]


@pytest.mark.parametrize(
    ("ending", "error", "aborts"),
    [("cut", ConnectionLost, 0), ("silent", TimeoutError, 1), ("done", BadAnswer, 0)],
)
def test_a_stream_that_ends_before_its_completion_is_an_error(
    ending: str, error: type[Exception], aborts: int
) -> None:
    pieces, raised, aborted = stream([event(1)], ending=ending)
    assert type(raised) is error
    assert [piece.ids for piece in pieces] == [(5,)]
    assert len(aborted) == aborts


def test_closing_a_stream_aborts_its_request() -> None:
    aborted: list[str] = []

    async def run() -> None:
        async with serving([event(1)], aborted, ending="silent") as url:
            engine = engine_at(url)
            pieces = engine.stream((1, 2), SAMPLING)
            assert (await anext(pieces)).ids == (5,)
            await pieces.aclose()
            await engine.aclose()

    asyncio.run(run())
    assert len(aborted) == 1
