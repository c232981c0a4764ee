"""The real SGLang server, streamed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from palestra.rollout.engine import Piece
from palestra.rollout.engine_sglang import SGLangEngine
from palestra.rollout.server_process import ServerProcess
from palestra.types import Sampling

pytestmark = pytest.mark.slow

PROMPT = tuple(range(20, 60))


@asynccontextmanager
async def attached(server: ServerProcess) -> AsyncGenerator[SGLangEngine, None]:
    engine = await SGLangEngine.attach(server.base_url, stop_ids=frozenset())
    try:
        yield engine
    finally:
        await engine.aclose()


async def running_is(engine: SGLangEngine, count: int) -> None:
    """Wait until the server, by its own count, has so many requests."""
    async with asyncio.timeout(60):
        while True:
            loads = (await engine.control.get("/v1/loads", timeout_s=10))["loads"]
            if sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads) == count:
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=40, temperature=0.0),
        Sampling(max_tokens=40, temperature=0.7),
        Sampling(max_tokens=40, top_k=5, top_p=0.9),
    ],
)
def test_a_stream_has_the_log_probabilities_of_what_was_sampled(
    sglang_server: ServerProcess, old: Any, sampling: Sampling
) -> None:
    """Nothing tells the server what to draw, so the model is asked instead of `generate`."""

    async def run() -> list[Piece]:
        async with attached(sglang_server) as engine:
            return [p async for p in engine.stream(PROMPT, sampling, top_logprobs=8)]

    pieces = asyncio.run(run())
    ids = [token for piece in pieces for token in piece.ids]
    logprobs = [logprob for piece in pieces for logprob in piece.logprobs]
    tops = [top for piece in pieces for top in piece.top_logprobs]
    assert (len(ids), len(logprobs), len(tops)) == (40, 40, 40) or pieces[-1].stop_reason == "stop"
    assert len(pieces) > 5
    assert pieces[-1].version_spans[-1].end == len(ids)
    if sampling.temperature == 0:
        assert tuple(ids) == old.greedy(PROMPT, len(ids))
    distributions_TV = old.distributions(PROMPT, ids, sampling.temperature or 1.0)
    for logprobs_V, token, logprob, top in zip(distributions_TV, ids, logprobs, tops, strict=True):
        order = logprobs_V.argsort(descending=True)
        if sampling.top_k:
            order = order[: sampling.top_k]
            # Its top-p is of all the probability, not of what top-k left.
            kept = logprobs_V[order].exp()
            order = order[kept.cumsum(0) - kept < sampling.top_p]
        total = logprobs_V[order].logsumexp(0)
        expected = (logprobs_V[order[:8]] - total).tolist()
        assert [p for _, p in top] == pytest.approx(expected, abs=1e-3)
        assert logprob == pytest.approx((logprobs_V[token] - total).item(), abs=1e-3)
        assert dict(top).get(token, logprob) == pytest.approx(logprob, abs=1e-6)


def test_closing_streams_frees_the_server_at_once(sglang_server: ServerProcess) -> None:
    async def run() -> None:
        async with attached(sglang_server) as engine:

            async def read_some() -> None:
                async with aclosing(engine.stream(PROMPT, Sampling(max_tokens=900))) as pieces:
                    assert (await anext(pieces)).ids
                    await all_begun.wait()

            all_begun = asyncio.Event()
            tasks = [asyncio.create_task(read_some()) for _ in range(8)]
            await running_is(engine, 8)
            all_begun.set()
            await asyncio.gather(*tasks)
            await running_is(engine, 0)

    asyncio.run(run())
