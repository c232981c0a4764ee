"""OpenAI's own client against the APIs, over a tiny random model and a scripted replier."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

ANSWER = {"role": "assistant", "content": "The sum is 42."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call_0-0123456789ab",
            "type": "function",
            "function": {"name": "add", "arguments": '{"a": 40, "b": 2}'},
        }
    ],
}
ASKED: Any = [{"role": "user", "content": "40 + 2?"}]


class Sum(BaseModel):
    value: int


@pytest.fixture
def client(tiny_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_as_a_whole_and_as_a_stream_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="tiny", messages=ASKED, max_completion_tokens=20, seed=1
    )
    stream = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_completion_tokens=20,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole._request_id is not None


def test_n_replies_differ_and_have_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=8, seed=1, n=3, logprobs=True, top_logprobs=4
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    for choice in answer.choices:
        assert choice.logprobs is not None
        content = choice.logprobs.content
        assert content
        assert all(len(token.top_logprobs) == 4 for token in content)
        assert bytes(b for token in content for b in token.bytes or ()).decode(
            errors="replace"
        ).strip() == (choice.message.content or "")


def test_a_schema_is_followed_by_a_model_that_knows_nothing(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_tokens=100,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "sum", "schema": {"enum": [41, 42]}, "strict": True},
        },
    )
    assert (answer.choices[0].message.content or "").strip() in ("41", "42")


def test_parse_gives_what_the_schema_says(serve: Any, scripted: Any) -> None:
    replier = scripted([{"role": "assistant", "content": '{"value": 42}'}])
    with serve(replier) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with client:
            answer = client.chat.completions.parse(
                model="tiny", messages=ASKED, response_format=Sum
            )
    assert answer.choices[0].message.parsed == Sum(value=42)
    structure = replier.requests[0].sampling.structure
    assert structure is not None
    assert structure.json_schema["required"] == ["value"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_can_be_demanded_of_a_model_that_knows_nothing(
    client: openai.OpenAI, choice: Any
) -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    function: Any = {"name": "add", "description": "Adds.", "parameters": parameters}
    answer = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        tools=[{"type": "function", "function": function}],
        tool_choice=choice,
    )
    (reply,) = answer.choices
    assert reply.message.tool_calls is not None
    (call,) = reply.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "add"
    assert reply.finish_reason == "tool_calls"


def test_a_tool_loop_goes_round(serve: Any, scripted: Any) -> None:
    replier = scripted([CALL, ANSWER])
    messages, content = list(ASKED), None
    with serve(replier) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with client:
            for _ in range(2):
                runner = client.chat.completions.stream(
                    model="tiny",
                    messages=messages,
                    tools=[openai.pydantic_function_tool(_Add, name="add", description="Adds.")],
                )
                with runner as stream:
                    stream.until_done()
                    message = stream.get_final_completion().choices[0].message
                content = message.content
                messages.append(message.model_dump(exclude_none=True))
                for call in message.tool_calls or ():
                    arguments = call.function.parsed_arguments
                    assert isinstance(arguments, _Add)
                    result = str(arguments.a + arguments.b)
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert content == "The sum is 42."
    assert replier.requests[1].messages[-1] == {
        "role": "tool",
        "tool_call_id": "call_0-0123456789ab",
        "content": "42",
    }


class _Add(BaseModel):
    a: int
    b: int


def test_the_asynchronous_client_gets_many_streams_at_once(tiny_url: str) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=10, seed=seed, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def go() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{tiny_url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client, seed % 4) for seed in range(16)))

    texts = asyncio.run(go())
    assert texts[:4] * 4 == texts
    assert len(set(texts)) > 1


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-5", messages=ASKED)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="tiny", messages=ASKED, logit_bias={"5": 1})
    assert unsupported.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError) as overflow:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "7" * 300}]
        )
    assert overflow.value.code == "context_length_exceeded"


def test_an_error_in_a_stream_is_raised(serve: Any, scripted: Any, said: Any) -> None:
    from palestra.rollout.serving.api_error import ApiError

    gone = ApiError(503, "gone", code="unavailable")
    with serve(scripted([said(message=ANSWER, error=gone)])) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.APIError, match="gone"):
            list(client.chat.completions.create(model="tiny", messages=ASKED, stream=True))


def test_models_and_completions(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "palestra"
    answer = client.completions.create(model="tiny", prompt="1", max_tokens=4, logprobs=1)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 4
