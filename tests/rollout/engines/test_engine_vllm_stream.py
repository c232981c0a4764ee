"""The real vLLM server, streamed: the same tokens, the likeliest beside them, and ends."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import RequestFailed, UnknownToken
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.vllm_wire import Endpoint
from palestra.types import Completion, Sampling, Structure, VersionSpan

PROMPT = tuple(range(20, 60))
ENDPOINTS = pytest.mark.parametrize("endpoint", ["generate", "completions"])


@asynccontextmanager
async def attached(server: ServerProcess, **options: Any) -> AsyncGenerator[VLLMEngine, None]:
    engine = await VLLMEngine.attach(server.base_url, stop_ids=frozenset(), **options)
    try:
        yield engine
    finally:
        await engine.aclose()


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)


async def collect(
    engine: VLLMEngine, sampling: Sampling, prompt: tuple[int, ...] = PROMPT, **options: int
) -> list[Piece]:
    return [piece async for piece in engine.stream(prompt, sampling, **options)]


def joined(pieces: list[Piece]) -> Completion:
    """The completion that these are the pieces of."""
    assert all(piece.stop_reason is None and piece.ids for piece in pieces[:-1])
    stop_reason = pieces[-1].stop_reason
    assert stop_reason is not None
    return Completion(
        ids=tuple(token for piece in pieces for token in piece.ids),
        logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
        stop_reason=stop_reason,
        version_spans=pieces[-1].version_spans,
    )


@ENDPOINTS
def test_the_pieces_are_the_completion(vllm_server: ServerProcess, endpoint: Endpoint) -> None:
    samplings = [
        Sampling(max_tokens=40, seed=seed, temperature=0.5 + seed / 10, top_k=seed % 2 * 20)
        for seed in range(8)
    ]

    async def run() -> tuple[list[list[Piece]], list[Completion]]:
        async with attached(vllm_server, endpoint=endpoint) as engine:
            streamed = await asyncio.gather(*(collect(engine, s) for s in samplings))
            whole = await asyncio.gather(*(engine.generate(PROMPT, s) for s in samplings))
            return streamed, whole

    streamed, whole = asyncio.run(run())
    for pieces, completion in zip(streamed, whole, strict=True):
        together = joined(pieces)
        assert together.ids == completion.ids
        assert together.logprobs == pytest.approx(completion.logprobs, abs=1e-3)
        assert together.stop_reason == completion.stop_reason
        assert together.version_spans == completion.version_spans
        assert together.version_spans == (VersionSpan(version=0, start=0, end=len(completion.ids)),)


@ENDPOINTS
@pytest.mark.parametrize(
    ("sampling", "n"),
    [
        (Sampling(max_tokens=24, seed=1, temperature=1.3), 5),
        (Sampling(max_tokens=24, seed=2, top_k=3), 20),
    ],
)
def test_the_likeliest_tokens_are_those_of_the_distribution_that_was_sampled(
    vllm_server: ServerProcess, model: Any, endpoint: Endpoint, sampling: Sampling, n: int
) -> None:
    async def run() -> list[Piece]:
        async with attached(vllm_server, endpoint=endpoint) as engine:
            return await collect(engine, sampling, top_logprobs=n)

    pieces = asyncio.run(run())
    ids = [token for piece in pieces for token in piece.ids]
    tops = [top for piece in pieces for top in piece.top_logprobs]
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*PROMPT, *ids]])).logits[0, len(PROMPT) - 1 : -1]
    for logits_V, top in zip(logits_TV / sampling.temperature, tops, strict=True):
        kept = logits_V.topk(min(sampling.top_k or n, n))
        total = kept.values if sampling.top_k else logits_V
        expected = (kept.values - total.logsumexp(0)).tolist()
        assert [logprob for _, logprob in top] == pytest.approx(expected, abs=1e-3)
        logprob_of = dict(zip(kept.indices.tolist(), expected, strict=True))
        for token, logprob in top:
            assert logprob_of[token] == pytest.approx(logprob, abs=1e-3)


def test_a_structure_shapes_a_stream(vllm_server: ServerProcess) -> None:
    sampling = Sampling(structure=Structure(regex="[0-9]{3}"), max_tokens=20, seed=1)

    async def run() -> Completion:
        async with attached(vllm_server) as engine:
            return joined(await collect(engine, sampling))

    completion = asyncio.run(run())
    assert completion.stop_reason == "stop"
    assert len(completion.ids) == 4  # each digit is a token, and the grammar's end


@ENDPOINTS
def test_closing_streams_frees_the_engine(
    vllm_server: ServerProcess, server_counts: Any, endpoint: Endpoint
) -> None:
    async def run() -> float:
        async with attached(vllm_server, endpoint=endpoint) as engine:

            async def read_some() -> None:
                async with aclosing(engine.stream(PROMPT, Sampling(max_tokens=900))) as pieces:
                    assert (await anext(pieces)).ids

            before: float = await server_counts.until_idle(engine)
            await asyncio.gather(*(read_some() for _ in range(24)))
            after: float = await server_counts.until_idle(engine)
            return after - before

    # Nobody read on: had they gone on all the same, they would have sampled all of it.
    assert 24 <= asyncio.run(run()) < 24 * 900


@ENDPOINTS
def test_what_the_server_refuses_is_named(vllm_server: ServerProcess, endpoint: Endpoint) -> None:
    async def run() -> None:
        async with attached(vllm_server, endpoint=endpoint) as engine:
            with pytest.raises(UnknownToken, match="99999"):
                await collect(engine, Sampling(), (5, 99999))
            with pytest.raises(RequestFailed, match="logprobs") as raised:
                await collect(engine, Sampling(), top_logprobs=1000)
            assert raised.value.status == 400
            assert joined(await collect(engine, Sampling(max_tokens=3))).stop_reason == "length"

    asyncio.run(run())
