import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest
import torch

from palestra.rollout.engine_errors import BadLogprobs, ContextOverflow, UnknownToken
from palestra.rollout.engine_hf import HFEngine
from palestra.rollout.sampling import Sampler
from palestra.trainer.tiny import build_model
from palestra.types import Completion, Sampling, Structure, VersionSpan

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
    with pytest.raises(
        ContextOverflow, match="a prompt of 16 tokens does not fit: it needs 1 to 15"
    ):
        run(engine_of(model, context_length=16).generate([1] * 16, Sampling()))
    with pytest.raises(ValueError, match="prompt of 0 tokens"):
        run(engine_of(model).generate([], Sampling()))


def alone(model: Any, prompt: list[int], sampling: Sampling) -> Completion:
    """What an engine that does nothing else samples."""
    completion: Completion = run(engine_of(model, context_length=256).generate(prompt, sampling))
    return completion


def assert_same(completion: Completion, other: Completion) -> None:
    assert completion.ids == other.ids
    assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-6)


def test_the_prompt_of_a_group_is_computed_once(model: Any) -> None:
    """Each of the others computes only its last token, whose logits it needs."""
    engine = engine_of(model, context_length=256)
    prompt = [random.Random(0).randrange(VOCAB) for _ in range(101)]
    samplings = [Sampling(max_tokens=12, seed=seed) for seed in range(6)]

    async def group() -> list[Completion]:
        return await asyncio.gather(*(engine.generate(prompt, s) for s in samplings))

    completions = run(group())
    assert engine.prompt_tokens_computed == 101 + 5
    assert len({completion.ids for completion in completions}) == 6
    for completion, sampling in zip(completions, samplings, strict=True):
        assert_same(completion, alone(model, prompt, sampling))


def test_a_request_copies_what_a_running_one_has_computed(model: Any) -> None:
    engine = engine_of(model, context_length=256, stop_ids=frozenset())
    prompt = [random.Random(1).randrange(VOCAB) for _ in range(90)]

    async def one_after_the_other() -> list[Completion]:
        first = asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=150, seed=0)))
        await asyncio.sleep(0.02)
        assert engine.prompt_tokens_computed == 90
        second = await engine.generate([*prompt, 1, 2], Sampling(max_tokens=4, seed=1))
        assert not first.done()
        return [await first, second]

    first, second = run(one_after_the_other())
    assert engine.prompt_tokens_computed == 90 + 2
    for completion, tokens in ((first, prompt), (second, [*prompt, 1, 2])):
        expected = recomputed(model, tokens, completion, 1.0)
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)


def test_prompts_that_begin_alike_share_just_that(model: Any) -> None:
    """More of them than slots: some copy from slots that others have left or still use."""
    engine = engine_of(model, context_length=256, max_slots=4)
    draw = random.Random(2)
    common = [draw.randrange(VOCAB) for _ in range(70)]
    tails = [[draw.randrange(VOCAB) for _ in range(draw.randrange(1, 40))] for _ in range(12)]

    async def all_of_them() -> list[Completion]:
        return await asyncio.gather(
            *(
                engine.generate(common + tail, Sampling(max_tokens=draw.randrange(1, 20), seed=i))
                for i, tail in enumerate(tails)
            )
        )

    for tail, completion in zip(tails, run(all_of_them()), strict=True):
        expected = recomputed(model, common + tail, completion, 1.0)
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)
    assert engine.prompt_tokens_computed <= 70 + sum(map(len, tails))


def test_a_group_shares_no_key_of_older_weights() -> None:
    new = build_model(VOCAB, eos_id=STOP, seed=2).eval()
    live = build_model(VOCAB, eos_id=STOP, seed=1).eval()
    engine = engine_of(live, stop_ids=frozenset(), context_length=256)
    prompt = [random.Random(3).randrange(VOCAB) for _ in range(60)]

    async def update_on_the_way() -> list[Completion]:
        group = asyncio.gather(
            *(engine.generate(prompt, Sampling(max_tokens=180, seed=i)) for i in range(4))
        )
        await asyncio.sleep(0.05)
        await engine.update_weights(1, lambda: live.load_state_dict(new.state_dict()) and None)
        late = engine.generate(prompt, Sampling(max_tokens=5, seed=9))
        return [*await group, await late]

    for completion in run(update_on_the_way()):
        cut = completion.version_spans[-1].start
        expected = recomputed(new, prompt, completion, 1.0)
        assert completion.logprobs[cut:] == pytest.approx(expected[cut:], abs=1e-4)


def test_scores_are_those_of_a_plain_forward_pass_while_generations_run(model: Any) -> None:
    engine = engine_of(model, context_length=512, stop_ids=frozenset())
    text = [random.Random(4).randrange(VOCAB) for _ in range(300)]

    async def score_beside_a_generation() -> tuple[tuple[float, ...], Completion]:
        task = asyncio.create_task(engine.generate([1, 2], Sampling(max_tokens=200, seed=0)))
        await asyncio.sleep(0.02)
        scores = await engine.score(text)
        assert not task.done()
        assert await engine.score([5]) == ()
        return scores, await task

    scores, completion = run(score_beside_a_generation())
    with torch.no_grad():
        logprobs_TV = model(torch.tensor([text])).logits[0].log_softmax(-1)
    expected = [logprobs_TV[i, token].item() for i, token in enumerate(text[1:])]
    assert scores == pytest.approx(expected, abs=1e-4)
    assert completion.logprobs == pytest.approx(
        recomputed(model, [1, 2], completion, 1.0), abs=1e-4
    )
    with pytest.raises(ContextOverflow, match="a text of 513 tokens cannot be scored"):
        run(engine_of(model).score([1] * 513))


@pytest.mark.parametrize("token", [VOCAB, -1])
def test_an_id_outside_the_vocabulary_is_refused_and_hurts_nobody_else(
    model: Any, token: int
) -> None:
    engine = engine_of(model)

    async def beside_a_good_one() -> tuple[Any, Any, Any]:
        return await asyncio.gather(
            engine.generate([1, token], Sampling(max_tokens=2)),
            engine.score([1, token]),
            engine.generate([1, 2], Sampling(max_tokens=2)),
            return_exceptions=True,
        )

    generated, scored, good = run(beside_a_good_one())
    for error in (generated, scored):
        assert isinstance(error, UnknownToken)
        assert str(error).startswith(
            f"token id {token} is not in the model's vocabulary of {VOCAB}"
        )
    assert good.ids


def test_a_structure_is_refused_because_there_is_no_grammar(model: Any) -> None:
    sampling = Sampling(structure=Structure(choice=("yes", "no")))
    with pytest.raises(ValueError, match="the embedded engine has no grammar"):
        run(engine_of(model).generate([1], sampling))


def test_sequences_that_end_leave_holes_that_disturb_no_other(model: Any) -> None:
    """Of sequences in slots 0 to 7, those in between end first: few and many of them."""
    for short in ({2, 5}, {0, 1, 3, 4, 6}):
        engine = engine_of(model, stop_ids=frozenset())
        prompts = prompts_of(8, seed=5)

        async def all_of_them(
            engine: HFEngine = engine,
            prompts: list[list[int]] = prompts,
            short: set[int] = short,
        ) -> list[Completion]:
            return await asyncio.gather(
                *(
                    engine.generate(p, Sampling(max_tokens=3 if i in short else 20, seed=i))
                    for i, p in enumerate(prompts)
                )
            )

        for prompt, completion in zip(prompts, run(all_of_them()), strict=True):
            expected = recomputed(model, prompt, completion, 1.0)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_half_precision_weights_give_logprobs_near_those_of_a_plain_forward_pass() -> None:
    half = build_model(VOCAB, eos_id=STOP).bfloat16().eval()
    engine = engine_of(half, stop_ids=frozenset())
    prompts = prompts_of(5, seed=6)

    async def all_of_them() -> list[Completion]:
        return await asyncio.gather(
            *(engine.generate(p, Sampling(max_tokens=10, seed=i)) for i, p in enumerate(prompts))
        )

    for prompt, completion in zip(prompts, run(all_of_them()), strict=True):
        expected = recomputed(half, prompt, completion, 1.0)
        assert completion.logprobs == pytest.approx(expected, abs=0.1)


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
    assert after == VersionSpan(version=1, start=before.end, end=400, kv_after_update="recompute")
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
    assert all(isinstance(error, BadLogprobs) and "NaN" in str(error) for error in errors)
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
    sampler = Sampler([sampling] * count, torch.device("cpu"))
    drawn, drawn_logprobs, _ = sampler.draw(probabilities.log().expand(count, 4), draws)
    tokens, logprobs = drawn.tolist(), drawn_logprobs.tolist()
    assert set(tokens) == support
    total = sum(probabilities[token].item() for token in support)
    for token in support:
        expected = probabilities[token].item() / total
        assert tokens.count(token) / count == pytest.approx(expected, abs=0.03)
        assert logprobs[tokens.index(token)] == pytest.approx(torch.tensor(expected).log().item())


def test_a_large_vocabulary_is_searched_to_its_last_token() -> None:
    """5,000 tokens: not a whole number of blocks; three of them, in different ones, have mass."""
    expected = {3: 0.25, 2047: 0.5, 4999: 0.25}
    logits_V = torch.full((5000,), -torch.inf)
    for token, probability in expected.items():
        logits_V[token] = torch.tensor(probability).log()
    count = 4000
    uniforms = [0.0, *((i + 0.5) / count for i in range(count - 2)), 1.0 - 2.0**-53]
    sampler = Sampler([Sampling()] * count, torch.device("cpu"))
    tokens_N, logprobs_N, _ = sampler.draw(logits_V.expand(count, -1), uniforms)
    tokens = tokens_N.tolist()
    assert tokens == sorted(tokens)
    for token, probability in expected.items():
        assert tokens.count(token) == pytest.approx(probability * count, abs=3)
    assert logprobs_N.exp().tolist() == pytest.approx([expected[token] for token in tokens])


def test_the_two_ways_to_search_agree() -> None:
    logits_NV = torch.randn(500, 2560, generator=torch.Generator().manual_seed(0)) * 3
    draws = torch.rand(500, generator=torch.Generator().manual_seed(1)).tolist()
    sampler = Sampler([Sampling()] * 500, torch.device("cpu"))
    by_blocks_N, *_ = sampler.draw(logits_NV, draws)
    cumulative_NV = logits_NV.double().softmax(-1).cumsum(-1)
    exact_N1 = torch.searchsorted(cumulative_NV, torch.tensor(draws).double()[:, None], right=True)
    assert (by_blocks_N == exact_N1[:, 0]).float().mean() > 0.99


def test_closing_cancels_what_is_unfinished_and_returns(model: Any) -> None:
    engine = engine_of(model, stop_ids=frozenset())

    async def close_on_the_way() -> list[Any]:
        tasks = [
            asyncio.create_task(engine.generate([i + 1], Sampling(max_tokens=500)))
            for i in range(10)  # more than slots
        ]
        await asyncio.sleep(0.05)
        await engine.aclose()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(ended, asyncio.CancelledError) for ended in run(close_on_the_way()))


def test_prompts_that_are_too_many_for_one_pass_take_several(model: Any) -> None:
    engine = engine_of(model, context_length=512, max_slots=32)
    draw = random.Random(7)
    prompts = [[draw.randrange(VOCAB) for _ in range(450)] for _ in range(24)]

    async def all_of_them() -> list[Completion]:
        return await asyncio.gather(
            *(engine.generate(p, Sampling(max_tokens=3, seed=i)) for i, p in enumerate(prompts))
        )

    for prompt, completion in zip(prompts, run(all_of_them()), strict=True):
        expected = recomputed(model, prompt, completion, 1.0)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
    assert engine.prompt_tokens_computed == 24 * 450
