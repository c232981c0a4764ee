import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest
import torch

from palestra.rollout.engine_hf import HFEngine
from palestra.rollout.sampling import sample
from palestra.trainer.tiny import build_model
from palestra.types import Completion, Sampling, VersionSpan

VOCAB = 64
STOP = 7


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model(VOCAB, eos_id=STOP).eval()


def engine_of(model: Any, **options: Any) -> HFEngine:
    defaults: dict[str, Any] = {"stop_ids": frozenset([STOP]), "max_slots": 8}
    return HFEngine(model, **{**defaults, **options})


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, timeout=60))


def recomputed(
    model: Any, prompt: list[int], completion: Completion, temperature: float
) -> list[float]:
    """The completion's log-probabilities by a plain forward pass of transformers."""
    ids = torch.tensor([[*prompt, *completion.ids]])
    with torch.no_grad():
        logprobs = (model(ids).logits[0].float() / temperature).log_softmax(-1)
    return [logprobs[len(prompt) + i - 1, t].item() for i, t in enumerate(completion.ids)]


def prompts_of(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCAB) for _ in range(draw.randrange(1, 40))] for _ in range(count)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_multi_turn_conversations_equal_a_plain_recomputation(
    model: Any, temperature: float
) -> None:
    """More conversations than slots, of all lengths, three turns each with new context between."""
    engine = engine_of(model, context_length=256)

    async def converse(index: int, prompt: list[int]) -> None:
        for turn in range(3):
            sampling = Sampling(temperature=temperature, max_tokens=12, seed=index * 10 + turn)
            completion = await engine.generate(prompt, sampling)
            expected = recomputed(model, prompt, completion, temperature)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)
            prompt = [*prompt, *completion.ids, *prompts_of(1, seed=index + turn)[0]]

    async def all_of_them() -> None:
        await asyncio.gather(*(converse(i, p) for i, p in enumerate(prompts_of(20))))

    run(all_of_them())


def test_what_a_seed_samples_does_not_depend_on_company(model: Any) -> None:
    engine = engine_of(model)
    sampling = Sampling(max_tokens=20, seed=5)

    async def alone_and_in_company() -> tuple[Completion, Completion]:
        alone = await engine.generate([1, 2, 3], sampling)
        others = [engine.generate(p, Sampling(max_tokens=30)) for p in prompts_of(12)]
        first, *_ = await asyncio.gather(engine.generate([1, 2, 3], sampling), *others)
        return alone, first

    alone, first = run(alone_and_in_company())
    assert first.ids == alone.ids
    assert first.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_a_completion_ends_at_a_stop_token_or_at_its_limit(model: Any) -> None:
    engine = engine_of(model)

    async def many() -> list[Completion]:
        return await asyncio.gather(
            *(engine.generate([3], Sampling(max_tokens=40, seed=i)) for i in range(30))
        )

    reasons = set()
    for completion in run(many()):
        reasons.add(completion.stop_reason)
        assert (completion.ids[-1] == STOP) == (completion.stop_reason == "stop")
        assert STOP not in completion.ids[:-1]
        if completion.stop_reason == "length":
            assert len(completion.ids) == 40
    assert reasons == {"stop", "length"}


def test_the_context_bounds_a_completion_and_a_longer_prompt_is_refused(
    model: Any,
) -> None:
    engine = engine_of(model, context_length=16, stop_ids=frozenset())
    completion = run(engine.generate([1] * 12, Sampling(max_tokens=100)))
    assert (len(completion.ids), completion.stop_reason) == (4, "length")
    with pytest.raises(ValueError, match="a prompt of 16 tokens does not fit: it needs 1 to 15"):
        run(engine_of(model, context_length=16).generate([1] * 16, Sampling()))
    with pytest.raises(ValueError, match="prompt of 0 tokens"):
        run(engine_of(model).generate([], Sampling()))


def test_temperature_zero_takes_the_most_likely_token(model: Any) -> None:
    prompt = [1, 2, 3]
    completion = run(engine_of(model).generate(prompt, Sampling(temperature=0.0, max_tokens=8)))
    with torch.no_grad():
        for index, token in enumerate(completion.ids):
            logits = model(torch.tensor([[*prompt, *completion.ids[:index]]])).logits[0, -1]
            assert token == logits.argmax()


def test_a_weight_update_mid_generation_recomputes_the_context() -> None:
    """Tokens before the switch match the old weights, those after it the new ones."""
    old, new = (build_model(VOCAB, eos_id=STOP, seed=s).eval() for s in (1, 2))
    live = build_model(VOCAB, eos_id=STOP, seed=1).eval()
    engine = engine_of(live, stop_ids=frozenset())
    prompt = [5, 6, 7, 8]

    async def update_on_the_way() -> Completion:
        task = asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=400, seed=0)))
        for _ in range(40):
            await asyncio.sleep(0.002)
        await engine.update_weights(1, lambda: live.load_state_dict(new.state_dict()) and None)
        return await task

    completion = run(update_on_the_way())
    [before, after] = completion.version_spans
    assert before == VersionSpan(version=0, start=0, end=after.start)
    assert after == VersionSpan(version=1, start=before.end, end=400)
    by_old = recomputed(old, prompt, completion, 1.0)
    by_new = recomputed(new, prompt, completion, 1.0)
    cut = before.end
    assert completion.logprobs[:cut] == pytest.approx(by_old[:cut], abs=1e-4)
    assert completion.logprobs[cut:] == pytest.approx(by_new[cut:], abs=1e-4)
    assert by_old[cut:] != pytest.approx(by_new[cut:], abs=1e-2)


def test_no_cached_key_survives_a_weight_update(model: Any) -> None:
    live = build_model(VOCAB, eos_id=STOP, seed=1).eval()
    engine = engine_of(live)

    async def two_versions() -> tuple[list[int], Completion]:
        prompt = list(range(1, 30))
        first = await engine.generate(prompt, Sampling(max_tokens=4, seed=0))
        prompt += first.ids
        await engine.update_weights(1, lambda: live.load_state_dict(model.state_dict()) and None)
        return prompt, await engine.generate(prompt, Sampling(max_tokens=4, seed=0))

    prompt, second = run(two_versions())
    assert second.logprobs == pytest.approx(recomputed(model, prompt, second, 1.0), abs=1e-4)


def test_cancelled_generations_free_their_slots(model: Any) -> None:
    engine = engine_of(model, max_slots=2, stop_ids=frozenset(), context_length=512)

    async def cancel_then_go_on() -> Completion:
        endless = [
            asyncio.create_task(engine.generate([i + 1], Sampling(max_tokens=500)))
            for i in range(4)
        ]
        await asyncio.sleep(0.05)
        for task in endless:
            task.cancel()
        await asyncio.gather(*endless, return_exceptions=True)
        return await engine.generate([1, 2], Sampling(max_tokens=3))

    assert len(run(cancel_then_go_on()).ids) == 3


def test_broken_weights_are_an_error_for_every_caller_and_the_engine_lives_on() -> None:
    live = build_model(VOCAB, eos_id=STOP).eval()
    engine = engine_of(live)
    healthy = {name: value.clone() for name, value in live.state_dict().items()}

    async def break_and_mend() -> tuple[list[Any], Completion]:
        with torch.no_grad():
            live.model.norm.weight.fill_(float("nan"))
        results = await asyncio.gather(
            *(engine.generate([i], Sampling()) for i in range(3)), return_exceptions=True
        )
        await engine.update_weights(1, lambda: live.load_state_dict(healthy) and None)
        return results, await engine.generate([1], Sampling(max_tokens=2, seed=0))

    errors, completion = run(break_and_mend())
    assert all(isinstance(error, RuntimeError) and "NaN" in str(error) for error in errors)
    assert completion.ids


@pytest.mark.parametrize(
    ("sampling", "support"),
    [
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_p=0.75), {0, 1}),
        (Sampling(top_p=0.75, top_k=1), {0}),
        (Sampling(), {0, 1, 2, 3}),
    ],
)
def test_truncated_sampling_draws_from_and_reports_the_renormalised_distribution(
    sampling: Sampling, support: set[int]
) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 4000
    draws = torch.rand(count, generator=torch.Generator().manual_seed(0)).tolist()
    tokens, logprobs = sample(probabilities.log().expand(count, 4), [sampling] * count, draws)
    assert set(tokens) == support
    total = sum(probabilities[token].item() for token in support)
    for token in support:
        expected = probabilities[token].item() / total
        assert tokens.count(token) / count == pytest.approx(expected, abs=0.03)
        assert logprobs[tokens.index(token)] == pytest.approx(torch.tensor(expected).log().item())
