"""Structured replies of the embedded engine: they fit, and their log-probabilities are honest."""

import asyncio
import json
import re
from collections.abc import Coroutine
from typing import Any

import jsonschema
import pytest
import torch

from palestra.rollout import ChatFormat
from palestra.rollout.engine_hf import HFEngine
from palestra.rollout.grammar import Grammars
from palestra.trainer.tiny import build_model, train_tokenizer
from palestra.types import CallShape, Completion, Message, Sampling, Structure

CONVERSATION: list[Message] = [
    {"role": "user", "content": "What is 12 + 30? Answer as JSON, please."},
    {"role": "assistant", "content": '{"name": "add", "sum": 42, "sure": true}'},
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"enum": ["add", "subtract"]},
        "sum": {"type": "integer", "minimum": -99, "maximum": 99},
        "digits": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9},
                   "maxItems": 3},
        "note": {"type": ["string", "null"], "maxLength": 6},
    },
    "required": ["name", "sum", "digits", "note"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([CONVERSATION], [])


@pytest.fixture(scope="module")
def chat_format(tokenizer: Any) -> ChatFormat:
    return ChatFormat.from_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """A model that knows nothing, and has tokens that the tokenizer does not."""
    return build_model(len(tokenizer) + 7, eos_id=tokenizer.eos_token_id).eval()


@pytest.fixture
def engine(model: Any, tokenizer: Any, chat_format: ChatFormat) -> HFEngine:
    return HFEngine(
        model,
        stop_ids=chat_format.stop_ids,
        max_slots=16,
        context_length=512,
        tokenizer=tokenizer,
    )


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, timeout=120))


def sample(engine: HFEngine, structure: Structure, count: int, **sampling: Any) -> list[Completion]:
    samplings = [
        Sampling(structure=structure, seed=seed, **{"max_tokens": 200, **sampling})
        for seed in range(count)
    ]

    async def main() -> list[Completion]:
        return await asyncio.gather(*(engine.generate([3, 5], s) for s in samplings))

    completions: list[Completion] = run(main())
    return completions


def texts(completions: list[Completion], tokenizer: Any) -> list[str]:
    """What they say; each has ended by itself."""
    assert {completion.stop_reason for completion in completions} == {"stop"}
    return [tokenizer.decode(completion.ids[:-1]) for completion in completions]


def test_fifty_random_replies_to_a_schema_are_all_valid(engine: HFEngine, tokenizer: Any) -> None:
    said = texts(sample(engine, Structure(json_schema=SCHEMA), 50), tokenizer)
    for text in said:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(said)) == 50


@pytest.mark.parametrize(("prefix", "suffix"), [("<tool_call>\n", '\n"</tool_call>'), ("", "")])
def test_a_reply_of_a_schema_may_be_a_call_instead(
    engine: HFEngine, tokenizer: Any, prefix: str, suffix: str
) -> None:
    call = {**SCHEMA, "properties": {**SCHEMA["properties"], "name": {"const": "call"}}}
    shape = CallShape(prefix=prefix, json_schema=call, suffix=suffix)
    said = texts(sample(engine, Structure(json_schema=SCHEMA, call=shape), 50), tokenizer)
    replies = [text for text in said if '"call"' not in text]
    assert 0 < len(replies) < len(said)
    for text in said:
        if text in replies:
            jsonschema.validate(json.loads(text), SCHEMA)
        else:
            assert text.startswith(prefix) and text.endswith(suffix)
            body = text.removeprefix(prefix).removesuffix(suffix)
            jsonschema.validate(json.loads(body), call)


def test_a_choice_is_one_of_them(engine: HFEngine, tokenizer: Any) -> None:
    choices = ("yes", "no", "a.b*", "1/2", "two words", "zwölf", "line\nbreak", "no!")
    said = texts(sample(engine, Structure(choice=choices), 60), tokenizer)
    assert set(said) <= set(choices)
    assert len(set(said)) >= 5


def test_a_regex_is_matched_whole(engine: HFEngine, tokenizer: Any) -> None:
    regex = r"[a-c]{2,4}(-[0-9]+)?"
    said = texts(sample(engine, Structure(regex=regex), 20), tokenizer)
    assert all(re.fullmatch(regex, text) for text in said)
    assert len(set(said)) > 5


def test_the_logprobs_are_those_of_the_tokens_that_were_allowed(
    engine: HFEngine, model: Any, tokenizer: Any, chat_format: ChatFormat
) -> None:
    """Beside replies without a structure, which stay as they are."""
    structure = Structure(json_schema=SCHEMA)

    async def main() -> tuple[Completion, Completion, Completion]:
        free = Sampling(max_tokens=30, seed=4)
        alone = await engine.generate([9], free)
        shaped, beside = await asyncio.gather(
            engine.generate([3, 5], Sampling(structure=structure, seed=1, temperature=0.8)),
            engine.generate([9], free),
        )
        return shaped, alone, beside

    shaped, alone, beside = run(main())
    assert beside.ids == alone.ids
    assert beside.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    grammar = Grammars(tokenizer, len(tokenizer) + 7, chat_format.stop_ids).compile(structure)
    with torch.no_grad():
        logits_TV = model(torch.tensor([[3, 5, *shaped.ids]])).logits[0, 1:-1] / 0.8
    for logits_V, token, logprob in zip(logits_TV, shaped.ids, shaped.logprobs, strict=True):
        allowed_V = grammar.allowed_V()
        assert not allowed_V[len(tokenizer) :].any()
        expected = logits_V.masked_fill(~allowed_V, -torch.inf).log_softmax(-1)[token]
        assert logprob == pytest.approx(expected.item(), abs=1e-4)
        grammar.take(token)


def test_a_structured_reply_is_streamed_with_the_likeliest_tokens_that_were_allowed(
    engine: HFEngine, tokenizer: Any
) -> None:
    sampling = Sampling(structure=Structure(choice=("yes", "no")), temperature=0.0)

    async def main() -> list[Any]:
        return [piece async for piece in engine.stream([3], sampling, top_logprobs=5)]

    pieces = run(main())
    tops = [top for piece in pieces for top in piece.top_logprobs]
    assert {tokenizer.decode([token])[:1] for token, _ in tops[0]} <= {"y", "n"}
    assert tokenizer.decode([t for piece in pieces for t in piece.ids][:-1]) in ("yes", "no")


def test_an_update_of_the_weights_leaves_a_reply_in_its_structure(
    engine: HFEngine, tokenizer: Any
) -> None:
    sampling = Sampling(structure=Structure(json_schema=SCHEMA), seed=1)

    async def main() -> Completion:
        asked = asyncio.create_task(engine.generate([3, 5], sampling))
        while not (engine._running and len(engine._running[0].ids) > 5):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await engine.update_weights(1)
        return await asked

    completion = run(main())
    assert [span.version for span in completion.version_spans] == [0, 1]
    jsonschema.validate(json.loads(tokenizer.decode(completion.ids[:-1])), SCHEMA)


def test_a_reply_that_is_cut_by_its_length_is_told_as_such(engine: HFEngine) -> None:
    (completion,) = sample(engine, Structure(regex="a{50}"), 1, max_tokens=3)
    assert (len(completion.ids), completion.stop_reason) == (3, "length")


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        (Structure(json_schema={"type": "nonsense"}), "Invalid type: nonsense"),
        (Structure(json_schema={"not": {"type": "null"}}), r'Unimplemented keys: \["not"\]'),
        (Structure(json_schema={"$ref": "http://127.0.0.1:9/x"}), "does not fetch"),
        (Structure(regex="("), "unclosed group"),
        (Structure(regex="(?=a)b"), "look-around"),
    ],
)
def test_a_structure_without_a_grammar_is_refused_with_the_reason(
    engine: HFEngine, structure: Structure, words: str
) -> None:
    with pytest.raises(ValueError, match=f"no grammar can be made of the structure: .*{words}"):
        sample(engine, structure, 1)


def test_a_reply_whose_grammar_gives_up_fails_alone(engine: HFEngine) -> None:
    async def main() -> list[Any]:
        shaped = engine.generate([3], Sampling(structure=Structure(regex="a{100}")))
        both = asyncio.gather(
            shaped, engine.generate([5], Sampling(max_tokens=50)), return_exceptions=True
        )
        while not any(generation.grammar for generation in engine._running):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        async with engine._between_steps:
            (grammar,) = (g.grammar for g in engine._running if g.grammar is not None)
            grammar.take(0)  # which it does not allow
        return list(await both)

    shaped, other = run(main())
    assert isinstance(shaped, ValueError)
    assert "the reply's structure is too much" in str(shaped)
    assert isinstance(other, Completion)


def test_without_a_tokenizer_or_stop_ids_a_structure_is_refused(model: Any, tokenizer: Any) -> None:
    structure = Structure(choice=("a", "b"))
    without = HFEngine(model, stop_ids=frozenset([1]))
    with pytest.raises(ValueError, match=r"give HFEngine the model's tokenizer"):
        sample(without, structure, 1)
    endless = HFEngine(model, stop_ids=frozenset(), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="the engine has no stop_ids"):
        sample(endless, structure, 1)
