"""The Responses API, as OpenAI's own client uses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from palestra.rollout.serving.api_error import ApiError

ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
    "strict": True,
}
ANSWER = {"role": "assistant", "content": "The sum is 42."}
CALLS: dict[str, Any] = {
    "role": "assistant",
    "reasoning_content": "I should add.",
    "content": "Adding.",
    "tool_calls": [
        {
            "id": f"call_{i}-0123456789ab",
            "type": "function",
            "function": {"name": "add", "arguments": f'{{"a": {i}, "b": 2}}'},
        }
        for i in range(2)
    ],
}


@contextmanager
def client_of(serve: Any, replier: Any) -> Iterator[openai.OpenAI]:
    with (
        serve(replier) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_text_is_answered_with_everything_that_the_client_reads(serve: Any, scripted: Any) -> None:
    replier = scripted([ANSWER])
    with client_of(serve, replier) as client:
        response = client.responses.create(
            model="tiny",
            input="17 + 25?",
            instructions="Be short.",
            temperature=0.5,
            top_p=0.9,
            max_output_tokens=20,
            metadata={"run": "7"},
            user="somebody",
            store=False,
        )
    assert response.output_text == "The sum is 42."
    assert response.status == "completed"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (3, 2)
    assert (response.metadata, response.instructions) == ({"run": "7"}, "Be short.")
    [asked] = replier.requests
    assert asked.messages == (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "17 + 25?"},
    )
    assert (asked.sampling.temperature, asked.sampling.top_p) == (0.5, 0.9)
    assert asked.sampling.max_tokens == 20
    assert asked.top_logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_is_sent_back_is_the_message_that_it_was(
    serve: Any, scripted: Any, stream: bool
) -> None:
    replier = scripted([CALLS, ANSWER])
    with client_of(serve, replier) as client:
        asked: list[Any] = [{"role": "user", "content": "0 + 2 and 1 + 2?"}]
        if stream:
            with client.responses.stream(model="tiny", input=asked, tools=[ADD]) as events:
                first: Any = events.get_final_response()
        else:
            first = client.responses.create(model="tiny", input=asked, tools=[ADD])
        kinds = [item.type for item in first.output]
        assert kinds == ["reasoning", "message", "function_call", "function_call"]
        calls = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
        assert [json.loads(call.arguments) for call in calls] == [
            {"a": 0, "b": 2},
            {"a": 1, "b": 2},
        ]
        asked += [item.to_dict() for item in first.output]
        asked += [
            {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
            for call in calls
        ]
        second = client.responses.create(model="tiny", input=asked, tools=[ADD])
    assert second.output_text == "The sum is 42."
    messages = replier.requests[1].messages
    assert messages[1] == CALLS
    assert messages[2:] == tuple(
        {"role": "tool", "tool_call_id": call["id"], "content": "2"} for call in CALLS["tool_calls"]
    )
    tool = {key: ADD[key] for key in ("name", "description", "parameters")}
    assert replier.requests[1].tools == ({"type": "function", "function": tool},)


def test_text_behind_a_call_becomes_part_of_the_same_message_again(
    serve: Any, scripted: Any
) -> None:
    replier = scripted([ANSWER])
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Before "}]},
        call,
        {"type": "message", "role": "assistant", "content": "behind"},
        {"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_text", "text": "4"}, {"type": "input_text", "text": "2"}]},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "developer", "content": "Go on."},
    ]  # fmt: skip
    with client_of(serve, replier) as client:
        client.responses.create(model="tiny", input=items, tools=[ADD])
    [request] = replier.requests
    said = request.messages[1]
    assert said["content"] == "Before behind"
    assert [call["id"] for call in said["tool_calls"]] == ["c"]
    assert [m["content"] for m in request.messages[2:]] == ["42", "one", "two", "Go on."]
    assert request.messages[-1]["role"] == "system"


def test_a_stream_has_every_event_in_order_and_numbered(serve: Any, scripted: Any) -> None:
    with client_of(serve, scripted([CALLS])) as client:
        events: list[Any] = list(
            client.responses.create(model="tiny", input="?", tools=[ADD], stream=True)
        )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    in_order = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    part = ["response.content_part.added"]
    call = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert in_order == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        *part,
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        *part,
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        *call,
        *call,
        "response.completed",
    ]
    final = events[-1].response
    done = [event.item.to_dict() for event in events if event.type == "response.output_item.done"]
    assert [item.to_dict() for item in final.output] == done
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == final.output_text == "Adding."
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [item.status for item in added] == ["in_progress"] * 4
    assert added[2].arguments == ""


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_the_limit_cut_is_incomplete(
    serve: Any, scripted: Any, said: Any, stream: bool
) -> None:
    with client_of(serve, scripted([said(message=ANSWER, is_cut=True)])) as client:
        answer: Any = client.responses.create(model="tiny", input="?", stream=stream)
        if stream:
            events = list(answer)
            assert events[-1].type == "response.incomplete"
            answer = events[-1].response
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"


def test_an_empty_reply_is_an_empty_message(serve: Any, scripted: Any) -> None:
    empty = {"role": "assistant", "content": ""}
    with client_of(serve, scripted([empty, empty])) as client:
        assert client.responses.create(model="tiny", input="?").output[0].type == "message"
        with client.responses.stream(model="tiny", input="?") as events:
            assert events.get_final_response().output_text == ""


class Sum(BaseModel):
    total: int


def test_a_schema_constrains_the_reply_and_the_client_parses_it(serve: Any, scripted: Any) -> None:
    replier = scripted([{"role": "assistant", "content": '{"total": 42}'}])
    with client_of(serve, replier) as client:
        response = client.responses.parse(model="tiny", input="?", text_format=Sum)
    assert response.output_parsed == Sum(total=42)
    structure = replier.requests[0].sampling.structure
    assert structure.json_schema["properties"]["total"]["type"] == "integer"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_text_alone(
    serve: Any, scripted: Any, stream: bool
) -> None:
    replier = scripted([CALLS])
    with client_of(serve, replier) as client:
        answer: Any = client.responses.create(
            model="tiny",
            input="?",
            tools=[ADD],
            include=["message.output_text.logprobs"],
            top_logprobs=2,
            stream=stream,
        )
        if stream:
            events = list(answer)
            answer = events[-1].response
            deltas = [event for event in events if event.type == "response.output_text.delta"]
            assert all(event.logprobs[0].token == event.delta for event in deltas)
    assert replier.requests[0].top_logprobs == 2
    logprobs = answer.output[1].content[0].logprobs
    assert [entry.token for entry in logprobs] == ["Add", "ing", "."]
    assert logprobs[0].logprob == -0.5
    assert [top.token for top in logprobs[0].top_logprobs] == ["x", "y"]


@pytest.mark.parametrize(
    ("given", "choice", "name"),
    [
        (None, "auto", None),
        ("none", "none", None),
        ("required", "required", None),
        ({"type": "function", "name": "add"}, "function", "add"),
    ],
)
def test_a_tool_choice_is_passed_on(
    serve: Any, scripted: Any, given: Any, choice: str, name: str | None
) -> None:
    replier = scripted([ANSWER])
    with client_of(serve, replier) as client:
        client.responses.create(
            model="tiny",
            input="?",
            tools=[ADD],
            tool_choice=given,
            parallel_tool_calls=False,
        )
    [request] = replier.requests
    assert (request.tool_choice, request.tool_name) == (choice, name)
    assert not request.parallel_tool_calls


def test_an_error_before_the_first_token_is_an_http_error_even_of_a_stream(
    serve: Any, scripted: Any
) -> None:
    error = ApiError(400, "too long", code="context_length_exceeded", param="messages")
    with client_of(serve, scripted([error, error])) as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="too long") as caught:
                client.responses.create(model="tiny", input="?", stream=stream)
            assert caught.value.code == "context_length_exceeded"


def test_an_error_in_the_middle_ends_the_stream_with_a_failed_response(
    serve: Any, scripted: Any, said: Any
) -> None:
    broken = said(message=ANSWER, error=ApiError(503, "the engine is gone", code="unavailable"))
    with client_of(serve, scripted([broken])) as client:
        events: list[Any] = list(client.responses.create(model="tiny", input="?", stream=True))
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2].message == "the engine is gone"
    assert events[-1].response.status == "failed"
    assert events[-1].response.error.message == "the engine is gone"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_generation(
    serve: Any, scripted: Any, said: Any, stream: bool
) -> None:
    replier = scripted([said(message=ANSWER, hangs=True)])
    body = {"model": "tiny", "input": "?", "stream": stream}
    with serve(replier) as url:
        if stream:
            with httpx.stream("POST", f"{url}/v1/responses", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/responses", json=body, timeout=0.5)
        assert replier.closed.wait(10.0)


def _item(**item: Any) -> dict[str, Any]:
    return {"input": [item]}


@pytest.fixture(scope="module")
def speechless(serve: Any, scripted: Any) -> Iterator[str]:
    """The URL of a server that has nothing to say."""
    with serve(scripted([])) as url:
        yield url


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "other"}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["web_search_call.results"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        (
            {"tools": [{"type": "function", "name": "a", "parameters": {"type": "objct"}}]},
            "tools[0].parameters",
        ),
        ({"tools": [ADD, ADD]}, "tools[1].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"tools": [ADD], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": 3}}}},
            "text.format.schema",
        ),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        (_item(type="item_reference", id="x"), "input[0].type"),
        (_item(role="user", content=[{"type": "input_image"}]), "input[0].content[0].type"),
        (_item(role="tool", content="x"), "input[0].role"),
        (_item(role="user"), "input[0].content"),
        (_item(role="user", content="x", colour="red"), "input[0].colour"),
        (_item(type="function_call_output", call_id="x", output="y"), "input[0].call_id"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    speechless: str, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "input": "?", **fields}
    answer = httpx.post(f"{speechless}/v1/responses", json=body)
    assert answer.status_code == (404 if param == "model" else 400)
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"] and "\n" not in error["message"]


def test_nulls_are_as_good_as_nothing(serve: Any, scripted: Any) -> None:
    names: tuple[str, ...] = (
        "previous_response_id",
        "conversation",
        "prompt",
        "reasoning",
        "tools",
        "text",
    )
    names += ("tool_choice", "include", "temperature", "max_output_tokens", "metadata", "store")
    with serve(scripted([ANSWER])) as url:
        body = {"model": "tiny", "input": "?", **dict.fromkeys(names)}
        assert httpx.post(f"{url}/v1/responses", json=body).status_code == 200
