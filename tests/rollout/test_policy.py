"""Policies: what each says, and that token policies send and report exact ids."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
import pytest

from palestra.envs import ToolEnv
from palestra.envs.arithmetic import ArithmeticEnv, arithmetic_tasks
from palestra.rollout import (
    ChatFormat,
    ContextFull,
    Limits,
    OraclePolicy,
    Policy,
    RandomPolicy,
    ScriptedPolicy,
    TokenPolicy,
    count_rewrites,
    run_episode,
    tool_call,
)
from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import ContextOverflow
from palestra.rollout.evaluate import evaluate
from palestra.tools import parse_reply, tool
from palestra.trainer.batch import rows_of
from palestra.trainer.tiny import CHAT_TEMPLATE, train_tokenizer
from palestra.types import (
    Completion,
    Episode,
    Failure,
    Message,
    Sampling,
    Task,
    ToolSchema,
    Turn,
)
from palestra.verifiers import number


@tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


TASK = Task(id="sum", messages=({"role": "user", "content": "17 + 25?"},), answer="42")
SCRIPT = [tool_call("add", a=10, b=20), tool_call("add", a=30, b=12), "42"]


def respond(
    policy: Policy,
    messages: Sequence[Message] = TASK.messages,
    tools: Sequence[ToolSchema] = (),
    **options: Any,
) -> Turn:
    options = {"task": TASK, "sampling": Sampling(seed=1), **options}
    return asyncio.run(policy.respond(messages, tools, **options))


def play(policy: Policy) -> Episode:
    env = ToolEnv(tasks=[TASK], tools=[add], verifier=number)
    return asyncio.run(run_episode(env, policy, TASK))


# --- scripts and oracles


def test_a_script_may_hold_text_messages_and_functions_of_the_conversation() -> None:
    def last(messages: Sequence[Message]) -> str:
        return f"after {len(messages)}: {messages[-1]['content']}"

    policy = ScriptedPolicy(["one", {"role": "assistant", "content": "two"}, last])
    said = [respond(policy, history=[Turn(message={})] * n).message["content"] for n in range(3)]
    assert said == ["one", "two", "after 1: 17 + 25?"]


def test_a_script_that_has_run_out_says_so() -> None:
    with pytest.raises(ValueError, match="the script has 1 replies, but turn 2 began"):
        respond(ScriptedPolicy(["one"]), history=[Turn(message={})])
    with pytest.raises(ValueError, match="must be a list"):
        ScriptedPolicy("one")


def test_a_tool_call_in_text_is_read_back_as_it_was_meant() -> None:
    arguments = {"text": 'say "</tool_call>" ☃', "n": [1, None, 2.5]}
    [call] = parse_reply(tool_call("echo", **arguments))["tool_calls"]
    assert call["function"]["name"] == "echo"
    assert json.loads(call["function"]["arguments"]) == arguments


def test_an_oracle_solves_what_it_knows() -> None:
    tasks = arithmetic_tasks("test")[:50]
    oracle = OraclePolicy(ArithmeticEnv.solve)
    evaluation = asyncio.run(evaluate(ArithmeticEnv, tasks, oracle))
    assert (evaluation.mean, evaluation.n, evaluation.tool_errors) == (1.0, 50, {})


# --- chance


def test_random_calls_fit_the_schemas_and_the_seed_decides_them() -> None:
    parameters = {
        "type": "object",
        "properties": {
            "count": {"type": "integer", "minimum": 1, "maximum": 3},
            "share": {"type": "number"},
            "unit": {"enum": ["m", "km"]},
            "deep": {"type": "array", "items": {"type": "boolean"}, "minItems": 1},
            "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["count", "unit", "deep"],
        "additionalProperties": False,
    }
    schema = {"type": "function", "function": {"name": "measure", "parameters": parameters}}
    policy = RandomPolicy(call_probability=1.0)
    drawn = set()
    for seed in range(100):
        turn = respond(policy, tools=[schema], sampling=Sampling(seed=seed))
        [call] = turn.message["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), parameters)
        drawn.add(call["function"]["arguments"])
        again = respond(policy, tools=[schema], sampling=Sampling(seed=seed))
        assert again.message == turn.message
    assert len(drawn) > 50


def test_chance_does_not_solve_arithmetic() -> None:
    tasks = arithmetic_tasks("test")[:100]
    evaluation = asyncio.run(evaluate(ArithmeticEnv, tasks, RandomPolicy()))
    assert evaluation.n == 100
    assert evaluation.mean <= 0.05


# --- tokens


class SpeakingEngine:
    """Says a script in tokens, whatever the prompt, and notes what it was asked."""

    version = 3

    def __init__(
        self, chat_format: ChatFormat, script: Sequence[str], context_length: int = 4096
    ) -> None:
        self.context_length = context_length
        self.asked: list[tuple[tuple[int, ...], Sampling]] = []
        self._format = chat_format
        self._script = script

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        text = self._script[len(self.asked)]
        self.asked.append((tuple(prompt_ids), sampling))
        ids = self._format.encode_reply(TASK.messages, parse_reply(text))
        cut = tuple(ids[: sampling.max_tokens])
        return Completion(
            ids=cut,
            logprobs=(-0.5,) * len(cut),
            stop_reason="stop" if len(cut) == len(ids) else "length",
        )

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        yield Piece.whole(await self.generate(prompt_ids, sampling))

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        return (-0.5,) * (len(token_ids) - 1)

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None:
        self.version = version

    async def aclose(self) -> None: ...


@cache
def chat_format(template: str = CHAT_TEMPLATE) -> ChatFormat:
    conversation: list[Message] = [*TASK.messages, parse_reply(SCRIPT[0])]
    tokenizer = train_tokenizer([conversation], [add.schema()])
    tokenizer.chat_template = template
    return ChatFormat.from_tokenizer(tokenizer)


def test_each_prompt_is_the_ids_before_it_and_what_the_environment_added() -> None:
    engine = SpeakingEngine(chat_format(), SCRIPT)
    episode = play(TokenPolicy(engine, chat_format()))
    assert (episode.outcome, episode.reward) == ("scored", 1.0)
    first, second, third = episode.turns
    assert [turn.parent for turn in episode.turns] == [None, 0, 1]
    for earlier, later in [(first, second), (second, third)]:
        known = earlier.prompt_ids + earlier.completion_ids
        assert later.prompt_ids[: len(known)] == known
        assert len(later.prompt_ids) > len(known)
    messages = episode.messages
    assert list(third.prompt_ids) == chat_format().render(messages[:-1], episode.tools)
    assert [asked for asked, _ in engine.asked] == [turn.prompt_ids for turn in episode.turns]
    assert [len(turn.logprobs) for turn in episode.turns] == [
        len(turn.completion_ids) for turn in episode.turns
    ]
    assert third.sampling == engine.asked[2][1]


def sampled_tokens(episode: Episode) -> list[tuple[int, float]]:
    return sorted(
        pair
        for turn in episode.turns
        for pair in zip(turn.completion_ids, turn.logprobs, strict=True)
    )


def trained_tokens(episode: Episode) -> list[tuple[int, float]]:
    """The tokens that train, of all rows, each with the log-probability it was sampled with."""
    pairs: list[tuple[int, float]] = []
    for row in rows_of(episode, 1.0):
        ids = [token for token, trains in zip(row.token_ids, row.loss_mask, strict=True) if trains]
        pairs += zip(ids, row.sampled_logprobs, strict=True)
    return sorted(pairs)


def test_a_template_that_rewrites_history_starts_a_new_root(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forgets = CHAT_TEMPLATE.replace(
        "{%- if message.reasoning_content -%}",
        "{%- if message.reasoning_content and loop.last -%}",
    )
    script = ["<think>ten and twenty</think>" + SCRIPT[0], *SCRIPT[1:]]
    engine = SpeakingEngine(chat_format(forgets), script)
    policy = TokenPolicy(engine, chat_format(forgets))
    with caplog.at_level(logging.WARNING):
        episode = play(policy)
        engine.asked.clear()
        assert count_rewrites(play(policy)) == 1
    assert [turn.parent for turn in episode.turns] == [None, None, 1]
    assert sum("otherwise than they were sampled" in text for text in caplog.messages) == 1
    assert trained_tokens(episode) == sampled_tokens(episode)
    assert episode.turns[0].message["reasoning_content"] == "ten and twenty"
    assert list(episode.turns[1].prompt_ids) == chat_format(forgets).render(
        episode.messages[:3], episode.tools
    )


def test_a_reply_gets_the_room_that_the_context_leaves() -> None:
    prompt = chat_format().render(TASK.messages)
    engine = SpeakingEngine(chat_format(), ["a long answer indeed"], len(prompt) + 3)
    turn = respond(TokenPolicy(engine, chat_format()))
    assert (len(turn.completion_ids), turn.stop_reason) == (3, "length")
    assert turn.sampling is not None
    assert turn.sampling.max_tokens == 3
    full = SpeakingEngine(chat_format(), ["a"], len(prompt))
    with pytest.raises(ContextFull, match=f"the prompt has {len(prompt)} tokens"):
        respond(TokenPolicy(full, chat_format()))


@pytest.mark.parametrize(
    ("context", "limits", "max_tokens", "stop_reason"),
    [
        (3, Limits(), 512, "context"),  # the reply finds no end before the context's
        (3, Limits(max_total_tokens=2), 512, "token_budget"),
        (9, Limits(max_total_tokens=3), 4, "token_budget"),
        (9, Limits(max_total_tokens=8), 4, "length"),
        (2, Limits(max_total_tokens=8), 4, "context"),
    ],
)
def test_what_cut_a_reply_short_is_told_apart(
    context: int, limits: Limits, max_tokens: int, stop_reason: str
) -> None:
    env = ToolEnv(tasks=[TASK], verifier=number)
    prompt = chat_format().render(TASK.messages)
    policy = TokenPolicy(
        SpeakingEngine(chat_format(), ["a long answer indeed"], len(prompt) + context),
        chat_format(),
    )
    episode = asyncio.run(
        run_episode(env, policy, TASK, limits=limits, sampling=Sampling(max_tokens=max_tokens))
    )
    assert (episode.outcome, episode.stop_reason) == ("scored", stop_reason)
    assert episode.turns[-1].truncated


def test_a_conversation_that_outgrows_the_context_is_scored_as_it_stands() -> None:
    whole = play(TokenPolicy(SpeakingEngine(chat_format(), SCRIPT), chat_format()))
    full = len(whole.turns[2].prompt_ids)
    engine = SpeakingEngine(chat_format(), SCRIPT, context_length=full)
    episode = play(TokenPolicy(engine, chat_format()))
    assert (episode.outcome, episode.stop_reason) == ("scored", "context")
    assert (len(episode.turns), episode.reward) == (2, 0.0)


def test_a_server_that_has_less_context_than_it_said_ends_the_episode_alike() -> None:
    policy = TokenPolicy(AnsweringEngine(ContextOverflow("at most 512 tokens")), chat_format())
    with pytest.raises(ContextFull, match="at most 512 tokens"):
        respond(policy)


class Compacting(ToolEnv):
    """After the second turn, only a summary is left of the conversation."""

    async def astep(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = await super().astep(action)
        if self._turns_left == self.max_turns - 2:
            summary = {"role": "user", "content": "So far: 17 + 25 was split up. Go on."}
            return (summary,), reward, terminated, truncated, {**info, "replaces": True}
        return observation, reward, terminated, truncated, info


class Forgetful(TokenPolicy):
    """Sees only the question and the last two messages: it compacts by itself."""

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        if len(messages) > 3:
            messages, history = (messages[0], *messages[-2:]), ()
        return await super().respond(messages, tools, history=history, task=task, sampling=sampling)


def test_a_compacted_conversation_branches_and_each_token_trains_once() -> None:
    script = [*SCRIPT[:2], tool_call("add", a=12, b=30), "42"]
    policy = TokenPolicy(SpeakingEngine(chat_format(), script), chat_format())
    env = Compacting(tasks=[TASK], tools=[add], verifier=number)
    episode = asyncio.run(run_episode(env, policy, TASK))
    assert (episode.outcome, episode.reward) == ("scored", 1.0)
    assert [turn.parent for turn in episode.turns] == [None, 0, None, 2]
    assert list(episode.turns[2].prompt_ids) == chat_format().render(
        episode.turns[1].observation, episode.tools
    )
    assert count_rewrites(episode) == 0  # it was asked for
    assert len(rows_of(episode, 1.0)) == 2
    assert trained_tokens(episode) == sampled_tokens(episode)


def test_a_policy_that_compacts_branches_too() -> None:
    policy = Forgetful(SpeakingEngine(chat_format(), SCRIPT), chat_format())
    episode = play(policy)
    assert (episode.outcome, episode.reward) == ("scored", 1.0)
    assert [turn.parent for turn in episode.turns] == [None, 0, None]
    assert trained_tokens(episode) == sampled_tokens(episode)


def test_a_call_cut_by_its_length_is_counted_as_cut() -> None:
    engine = SpeakingEngine(chat_format(), SCRIPT)
    env = ToolEnv(tasks=[TASK], tools=[add], verifier=number)
    policy = TokenPolicy(engine, chat_format())
    episode = asyncio.run(run_episode(env, policy, TASK, sampling=Sampling(max_tokens=4)))
    assert (episode.outcome, episode.stop_reason) == ("scored", "length")
    assert episode.tool_errors() == {"cut": 1}


class AnsweringEngine:
    """Returns one completion, or raises."""

    context_length = 4096
    version = 0

    def __init__(self, answer: Completion | Exception) -> None:
        self._answer = answer

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        yield Piece.whole(await self.generate(prompt_ids, sampling))

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        return (-0.5,) * (len(token_ids) - 1)

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None: ...

    async def aclose(self) -> None: ...


GOOD = Completion(ids=(5, 6), logprobs=(-1.0, -2.0), stop_reason="stop")


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (RuntimeError("CUDA error"), "RuntimeError: CUDA error"),
        (replace(GOOD, stop_reason="abort"), "the generation ended with 'abort'"),
        (replace(GOOD, ids=(), logprobs=()), "0 tokens came back, 1 to 512 asked"),
        (replace(GOOD, logprobs=(-1.0,)), "2 tokens came with 1 log-probabilities"),
        (replace(GOOD, logprobs=(-1.0, math.nan)), "a log-probability is not a finite number"),
    ],
)
def test_an_engines_mistakes_are_the_engines_failures(
    answer: Completion | Exception, detail: str
) -> None:
    policy = TokenPolicy(AnsweringEngine(answer), chat_format())
    with pytest.raises(Failure) as failure:
        respond(policy)
    assert (failure.value.cause, failure.value.detail) == ("engine", detail)
    episode = play(policy)
    assert (episode.outcome, episode.cause, episode.detail) == ("failed", "engine", detail)
