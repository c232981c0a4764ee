"""Agents written with other people's frameworks run their tool loops against the server.

The engine is scripted at the level of tokens; everything between it and the framework is real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import agents
import anthropic
import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from palestra.rollout import ChatFormat, tool_call
from palestra.rollout.engine import Piece
from palestra.rollout.grammar import Grammars
from palestra.rollout.serving.app import Served, build_app
from palestra.rollout.serving.model_replier import ModelReplier
from palestra.tools import calculator, parse_reply
from palestra.trainer.tiny import train_tokenizer
from palestra.types import Completion, Sampling, VersionSpan

QUESTION = "What is (17 + 25) * 2, and 1 + 1?"


def reply(prompt: str) -> str:
    """What the model says: what a tool returned decides how it goes on."""
    if "84" in prompt:
        return "It is 84, and 2."
    if "42" in prompt:
        return "<think>\nI have 42.\n</think>\n" + tool_call("multiply", a=42, b=2)
    return "Adding.\n" + tool_call("add", a=17, b=25) + "\n" + tool_call("add", a=1, b=1)


def shaped_reply(prompt: str) -> str:
    """The same where the result is to be JSON: that, or one call and nothing else."""
    if "84" in prompt:
        return '{"product": 84, "sum": 2}'
    if "42" in prompt:
        return tool_call("multiply", a=42, b=2)
    return tool_call("add", a=17, b=25)


class Results(BaseModel):
    product: int
    sum: int


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@dataclass
class SayingEngine:
    """Says what `reply` makes of the prompt's text, tokenized in two halves.

    So its ids are not those of its text: a prompt that extends them was not rendered afresh. A
    structure must allow what `shaped_reply` makes of it.
    """

    tokenizer: Any
    context_length: int = 4096
    version: int = 0
    asked: list[tuple[int, ...]] = field(default_factory=list)
    said: list[tuple[int, ...]] = field(default_factory=list)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        prompt = self.tokenizer.decode(prompt_ids)
        text = shaped_reply(prompt) if sampling.structure else reply(prompt)
        half = len(text) // 2 + 1
        ids = (
            *self.tokenizer.encode(text[:half]),
            *self.tokenizer.encode(text[half:]),
            self.tokenizer.eos_token_id,
        )
        if sampling.structure:
            stop_ids = frozenset({self.tokenizer.eos_token_id})
            grammar = Grammars(self.tokenizer, len(self.tokenizer), stop_ids).compile(
                sampling.structure
            )
            for token in ids:
                assert grammar.allowed_V()[token]
                grammar.take(token)
        self.asked.append(tuple(prompt_ids))
        self.said.append(ids)
        spans = (VersionSpan(version=0, start=0, end=len(ids)),)
        return Completion(
            ids=ids, logprobs=(-0.5,) * len(ids), stop_reason="stop", version_spans=spans
        )

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        whole = await self.generate(prompt_ids, sampling)
        for index, token_id in enumerate(whole.ids):
            await asyncio.sleep(0)
            is_last = index == len(whole.ids) - 1
            yield Piece(
                ids=(token_id,),
                logprobs=(-0.5,),
                stop_reason="stop" if is_last else None,
                version_spans=whole.version_spans if is_last else (),
            )

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        return (0.0,) * (len(token_ids) - 1)

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None:
        self.version = version

    async def aclose(self) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    conversation = [
        {"role": "user", "content": QUESTION},
        parse_reply(tool_call("add", a=17, b=25)),
        {"role": "assistant", "content": "It is 84."},
    ]
    return train_tokenizer([conversation], [calculator.schema()])


@pytest.fixture
def serve_engine(serve_app: Any, tokenizer: Any) -> Any:
    @contextmanager
    def serve() -> Iterator[tuple[str, SayingEngine]]:
        engine = SayingEngine(tokenizer)
        replier = ModelReplier(engine, ChatFormat.from_tokenizer(tokenizer), models=("tiny",))
        served = Served(find_replier=lambda request: replier, models=("tiny",), context_length=4096)
        with serve_app(build_app(served)) as url:
            yield url, engine

    return serve


def require_one_conversation(engine: SayingEngine) -> None:
    """Each prompt has the ids of the turn before it, as they were sampled."""
    assert len(engine.asked) == 3
    for turn in (0, 1):
        sampled = (*engine.asked[turn], *engine.said[turn])
        assert engine.asked[turn + 1][: len(sampled)] == sampled


OPENAI_MODELS = pytest.mark.parametrize(
    "model_of", [agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel]
)


async def run_openai_agent(
    url: str, model_of: Callable[..., agents.Model], *, stream: bool = False, **options: Any
) -> Any:
    """What an agent of openai-agents with two tools answers."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        agent = agents.Agent(
            name="Adder",
            instructions="Use the tools.",
            model=model_of(model="tiny", openai_client=client),
            tools=[agents.function_tool(add), agents.function_tool(multiply)],
            **options,
        )
        without_tracing = agents.RunConfig(tracing_disabled=True)
        if not stream:
            return (
                await agents.Runner.run(agent, QUESTION, run_config=without_tracing)
            ).final_output
        streaming = agents.Runner.run_streamed(agent, QUESTION, run_config=without_tracing)
        async for _ in streaming.stream_events():
            pass
        return streaming.final_output


@pytest.mark.parametrize("stream", [False, True])
@OPENAI_MODELS
def test_openai_agents_runs_its_tool_loop(
    serve_engine: Any, model_of: Callable[..., agents.Model], stream: bool
) -> None:
    with serve_engine() as (url, engine):
        answer = asyncio.run(run_openai_agent(url, model_of, stream=stream))
    assert str(answer) == "It is 84, and 2."
    require_one_conversation(engine)


@pytest.mark.parametrize("stream", [False, True])
@OPENAI_MODELS
def test_openai_agents_calls_tools_and_then_answers_in_its_output_type(
    serve_engine: Any, model_of: Callable[..., agents.Model], stream: bool
) -> None:
    with serve_engine() as (url, engine):
        answer = asyncio.run(run_openai_agent(url, model_of, stream=stream, output_type=Results))
    assert answer == Results(product=84, sum=2)
    require_one_conversation(engine)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model_of", [OpenAIChatModel, OpenAIResponsesModel])
def test_pydantic_ai_runs_its_tool_loop(
    serve_engine: Any, model_of: Callable[..., Model], stream: bool
) -> None:
    async def read(context: Any, events: AsyncIterable[Any]) -> None:
        async for _ in events:
            pass

    async def run(url: str) -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0
        ) as client:
            model = model_of("tiny", provider=OpenAIProvider(openai_client=client))
            agent = Agent(model, instructions="Use the tools.", tools=[add, multiply])
            # With somebody who reads its events, it streams.
            result = await agent.run(QUESTION, event_stream_handler=read if stream else None)
            return str(result.output)

    with serve_engine() as (url, engine):
        assert asyncio.run(run(url)) == "It is 84, and 2."
    require_one_conversation(engine)


@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_runner_of_anthropics_client_runs_its_tool_loop(
    serve_engine: Any, stream: bool
) -> None:
    def as_text(function: Callable[[int, int], int]) -> Any:
        @anthropic.beta_tool(name=function.__name__, description=function.__doc__)
        def tool(a: int, b: int) -> str:
            return str(function(a, b))

        return tool

    with (
        serve_engine() as (url, engine),
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
    ):
        runner: Any = client.beta.messages.tool_runner(
            model="tiny",
            max_tokens=200,
            system="Use the tools.",
            messages=[{"role": "user", "content": QUESTION}],
            tools=[as_text(add), as_text(multiply)],
            thread=False,  # the conversation is kept here, not by the server
            stream=stream,
        )
        assert runner.until_done().content[-1].text == "It is 84, and 2."
    require_one_conversation(engine)
