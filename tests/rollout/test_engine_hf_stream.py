"""The embedded engine streams what it would have answered at once."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest
import torch

from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import BadLogprobs, ContextOverflow
from palestra.rollout.engine_hf import HFEngine
from palestra.trainer.tiny import build_model
from palestra.types import Completion, Sampling, VersionSpan

VOCAB = 64
STOP = 7


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model(VOCAB, eos_id=STOP).eval()


def engine_of(model: Any, **options: Any) -> HFEngine:
    return HFEngine(model, **{"stop_ids": frozenset([STOP]), "max_slots": 8, **options})


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, timeout=60))


async def collect(
    engine: HFEngine, prompt: list[int], sampling: Sampling, **options: int
) -> list[Piece]:
    return [piece async for piece in engine.stream(prompt, sampling, **options)]


def joined(pieces: list[Piece]) -> Completion:
    """The completion that these are the pieces of."""
    assert all(piece.stop_reason is None for piece in pieces[:-1])
    last = pieces[-1]
    assert last.stop_reason is not None
    return Completion(
        ids=tuple(token for piece in pieces for token in piece.ids),
        logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
        stop_reason=last.stop_reason,
        version_spans=last.version_spans,
    )


def test_the_pieces_are_the_completion(model: Any) -> None:
    """Thirty at once on eight slots, beside as many that nobody streams."""
    draw = random.Random(0)
    prompts = [[draw.randrange(VOCAB) for _ in range(draw.randrange(1, 40))] for _ in range(30)]
    samplings = [Sampling(max_tokens=20, seed=seed, top_k=seed % 3 * 10) for seed in range(30)]
    engine = engine_of(model, context_length=256)

    async def main() -> tuple[list[list[Piece]], list[Completion]]:
        pairs = list(zip(prompts, samplings, strict=True))
        streams = asyncio.gather(*(collect(engine, *pair) for pair in pairs))
        return await streams, await asyncio.gather(*(engine.generate(*pair) for pair in pairs))

    streamed, completions = run(main())
    for pieces, completion in zip(streamed, completions, strict=True):
        whole = joined(pieces)
        assert (whole.ids, whole.stop_reason) == (completion.ids, completion.stop_reason)
        assert whole.logprobs == pytest.approx(completion.logprobs, abs=1e-5)
        assert whole.version_spans == completion.version_spans
        assert all(piece.top_logprobs == () for piece in pieces)


def test_tokens_come_as_they_are_sampled_and_pile_up_for_who_is_slow(model: Any) -> None:
    engine = engine_of(model, stop_ids=frozenset())

    async def main() -> list[int]:
        sizes: list[int] = []
        async for piece in engine.stream([1, 2], Sampling(max_tokens=60, seed=1)):
            if not sizes:
                assert piece.stop_reason is None  # it goes on meanwhile
                while len(engine._running[0].ids) < 10:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            sizes.append(len(piece.ids))
        return sizes

    sizes = run(main())
    assert sum(sizes) == 60
    assert len(sizes) > 2
    assert sizes[1] >= 9 - sizes[0]


@pytest.mark.parametrize(
    ("sampling", "n"),
    [
        (Sampling(max_tokens=40), 5),
        (Sampling(max_tokens=40, temperature=0.6), 5),
        (Sampling(max_tokens=40, temperature=0.0), 3),
        (Sampling(max_tokens=40, top_k=4, top_p=0.9), 10),
    ],
)
def test_the_likeliest_tokens_are_those_of_the_distribution_that_was_sampled(
    model: Any, sampling: Sampling, n: int
) -> None:
    engine = engine_of(model, stop_ids=frozenset())
    prompt = [3, 1, 4]

    async def main() -> list[Piece]:
        others = [engine.generate([n], Sampling(max_tokens=30)) for n in range(3)]
        both = asyncio.gather(
            collect(engine, prompt, sampling, top_logprobs=n),
            collect(engine, prompt, sampling, top_logprobs=1),
        )
        await asyncio.gather(*others)
        return (await both)[0]

    pieces = run(main())
    ids = [token for piece in pieces for token in piece.ids]
    tops = [top for piece in pieces for top in piece.top_logprobs]
    logprobs = [logprob for piece in pieces for logprob in piece.logprobs]
    with torch.no_grad():
        logits_TV = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    assert len(tops) == len(ids)
    for logits_V, token, logprob, top in zip(logits_TV, ids, logprobs, tops, strict=True):
        probs_V = (logits_V / (sampling.temperature or 1.0)).softmax(-1)
        order = probs_V.argsort(descending=True)
        if sampling.top_k:
            order = order[: sampling.top_k]
            kept = probs_V[order] / probs_V[order].sum()
            order = order[kept.cumsum(0) - kept < sampling.top_p]
        total = probs_V[order].sum()
        expected = [(int(i), (probs_V[i] / total).log().item()) for i in order[:n]]
        assert [token for token, _ in top] == [token for token, _ in expected]
        assert [p for _, p in top] == pytest.approx([p for _, p in expected], abs=1e-4)
        assert dict(top).get(token, logprob) == pytest.approx(logprob, abs=1e-6)


def test_closing_a_stream_frees_its_slot(model: Any) -> None:
    engine = engine_of(model, stop_ids=frozenset(), max_slots=2, context_length=512)

    async def main() -> None:
        long = [engine.stream([n], Sampling(max_tokens=500)) for n in range(2)]
        for stream in long:
            await anext(stream)
        waiting = asyncio.create_task(engine.generate([5], Sampling(max_tokens=3)))
        for stream in long:
            await stream.aclose()
        assert len((await waiting).ids) == 3
        assert engine._running == []
        assert not engine._listeners

    run(main())


def test_a_task_that_is_cancelled_while_it_reads_frees_the_slot_too(model: Any) -> None:
    engine = engine_of(model, stop_ids=frozenset(), max_slots=1)

    async def main() -> None:
        reading = asyncio.create_task(collect(engine, [1], Sampling(max_tokens=400)))
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert len((await engine.generate([5], Sampling(max_tokens=3))).ids) == 3
        assert not engine._listeners

    run(main())


def test_an_update_in_the_middle_of_a_stream_is_told_at_its_end(model: Any) -> None:
    engine = engine_of(model, stop_ids=frozenset())

    async def main() -> list[Piece]:
        pieces: list[Piece] = []
        async for piece in engine.stream([1], Sampling(max_tokens=100), top_logprobs=2):
            if not pieces:
                await engine.update_weights(3)
            pieces.append(piece)
        return pieces

    pieces = run(main())
    assert sum(len(piece.top_logprobs) for piece in pieces) == 100
    first, second = pieces[-1].version_spans
    assert isinstance(first, VersionSpan)
    assert (first.version, second.version, second.end) == (0, 3, 100)
    assert all(piece.version_spans == () for piece in pieces[:-1])


def test_what_is_wrong_is_raised_from_the_stream() -> None:
    broken = build_model(VOCAB, eos_id=STOP).eval()
    engine = engine_of(broken, stop_ids=frozenset())

    async def main() -> None:
        with pytest.raises(ContextOverflow, match="prompt of 0 tokens"):
            await collect(engine, [], Sampling())
        stream = engine.stream([1], Sampling(max_tokens=400))
        await anext(stream)
        async with engine._between_steps:
            with torch.no_grad():
                broken.get_output_embeddings().weight.fill_(torch.nan)
        with pytest.raises(BadLogprobs, match="weights are broken"):
            async for _ in stream:
                pass
        assert not engine._listeners

    run(main())


def test_an_engine_that_is_closed_ends_its_streams(model: Any) -> None:
    engine = engine_of(model, stop_ids=frozenset())

    async def main() -> None:
        stream = engine.stream([1], Sampling(max_tokens=400))
        await anext(stream)
        await engine.aclose()
        with pytest.raises(asyncio.CancelledError):
            async for _ in stream:
                pass

    run(main())
