"""The Messages API, as Anthropic's own client uses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import pytest

from palestra.rollout.serving.api_error import ApiError

ADD: Any = {
    "name": "add",
    "description": "Adds.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    },
}
QUESTION: Any = [{"role": "user", "content": "17 + 25?"}]
ANSWER = {"role": "assistant", "content": "The sum is 42."}
CALLS = {
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
def client_of(serve: Any, replier: Any) -> Iterator[anthropic.Anthropic]:
    with (
        serve(replier) as url,
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


def test_text_is_answered_with_everything_that_the_client_reads(serve: Any, scripted: Any) -> None:
    replier = scripted([ANSWER])
    with client_of(serve, replier) as client:
        message = client.messages.create(
            model="tiny",
            max_tokens=20,
            system=[
                {"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "short."},
            ],
            messages=QUESTION,
            # Only in older versions of the client.
            extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 7},
            stop_sequences=["END"],
            metadata={"user_id": "somebody"},
            thinking={"type": "disabled"},
        )
    [block] = message.content
    assert block.type == "text" and block.text == "The sum is 42."
    assert (message.role, message.model, message.type) == ("assistant", "tiny", "message")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 2)
    [asked] = replier.requests
    assert asked.messages == (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "17 + 25?"},
    )
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.max_tokens, asked.stop) == (20, ("END",))


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop_sends_back_the_message_that_it_got(
    serve: Any, scripted: Any, stream: bool
) -> None:
    replier = scripted([CALLS, ANSWER])
    with client_of(serve, replier) as client:
        messages = list(QUESTION)
        asked: dict[str, Any] = {"model": "tiny", "max_tokens": 50, "tools": [ADD]}
        if stream:
            with client.messages.stream(**asked, messages=messages) as events:
                first: Any = events.get_final_message()
        else:
            first = client.messages.create(**asked, messages=messages)
        assert [block.type for block in first.content] == [
            "thinking",
            "text",
            "tool_use",
            "tool_use",
        ]
        assert first.stop_reason == "tool_use"
        assert (first.usage.input_tokens, first.usage.output_tokens) == (3, 2)
        uses = [block for block in first.content if block.type == "tool_use"]
        assert [use.input for use in uses] == [{"a": 0, "b": 2}, {"a": 1, "b": 2}]
        messages.append({"role": "assistant", "content": first.content})
        results = [
            {"type": "tool_result", "tool_use_id": uses[0].id, "content": "2"},
            {
                "type": "tool_result",
                "tool_use_id": uses[1].id,
                "is_error": True,
                "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "pe"}],
            },
        ]
        text = {"type": "text", "text": "Well?"}
        messages.append({"role": "user", "content": [*results, text]})
        second: Any = client.messages.create(**asked, messages=messages)
    assert second.content[0].text == "The sum is 42."
    sent = replier.requests[1].messages
    assert sent[1] == CALLS
    assert [(m["role"], m["content"]) for m in sent[2:]] == [
        ("tool", "2"),
        ("tool", "nope"),
        ("user", "Well?"),
    ]
    assert [m["tool_call_id"] for m in sent[2:4]] == [use.id for use in uses]
    function = {**ADD, "parameters": ADD["input_schema"]}
    del function["input_schema"]
    assert replier.requests[1].tools == ({"type": "function", "function": function},)


def test_a_stream_has_every_event_in_order(serve: Any, scripted: Any) -> None:
    with serve(scripted([CALLS])) as url:
        body = {"model": "tiny", "max_tokens": 9, "messages": QUESTION, "stream": True}
        body["tools"] = [ADD]
        answer = httpx.post(f"{url}/v1/messages", json=body)
    names, data = [], []
    for block in answer.text.strip().split("\n\n"):
        name, _, payload = block.partition("\n")
        names.append(name.removeprefix("event: "))
        data.append(json.loads(payload.removeprefix("data: ")))
    assert names == [event["type"] for event in data]
    in_order = [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    one_block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert in_order == ["message_start", *one_block * 4, "message_delta", "message_stop"]
    deltas = [event["delta"] for event in data if event["type"] == "content_block_delta"]
    written = "".join(delta.get("partial_json", "") for delta in deltas)
    assert written == '{"a": 0, "b": 2}{"a": 1, "b": 2}'
    starts = [event["content_block"] for event in data if event["type"] == "content_block_start"]
    assert starts[0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert starts[1] == {"type": "text", "text": ""}
    assert starts[2]["input"] == {}


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_reason_tells_why(serve: Any, scripted: Any, said: Any, stream: bool) -> None:
    replies = [said(message=ANSWER, is_cut=True), said(message=ANSWER, stop_string="END")]
    with client_of(serve, scripted(replies)) as client:
        for reason, by in (("max_tokens", None), ("stop_sequence", "END")):
            asked: dict[str, Any] = {
                "model": "tiny",
                "max_tokens": 5,
                "messages": QUESTION,
                "stop_sequences": ["STOP", "END"],
            }
            if stream:
                with client.messages.stream(**asked) as events:
                    message = events.get_final_message()
            else:
                message = client.messages.create(**asked)
            assert (message.stop_reason, message.stop_sequence) == (reason, by)


@pytest.mark.parametrize("stream", [False, True])
def test_arguments_that_the_limit_cut_are_what_there_is_of_them(
    serve: Any, scripted: Any, said: Any, stream: bool
) -> None:
    function = {"name": "add", "arguments": '{"a": 17, "b'}
    call = {"id": "call_0", "type": "function", "function": function}
    cut = said(message={"role": "assistant", "content": "", "tool_calls": [call]}, is_cut=True)
    with client_of(serve, scripted([cut])) as client:
        asked: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "messages": QUESTION}
        if stream:
            with client.messages.stream(**asked) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(**asked)
    [block] = message.content
    assert block.type == "tool_use" and block.input == {"a": 17}


@pytest.mark.parametrize(
    ("given", "choice", "name", "parallel"),
    [
        ({"type": "auto"}, "auto", None, True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", None, False),
        ({"type": "tool", "name": "add"}, "function", "add", True),
        ({"type": "none"}, "none", None, True),
    ],
)
def test_a_tool_choice_is_passed_on(
    serve: Any, scripted: Any, given: Any, choice: str, name: str | None, parallel: bool
) -> None:
    replier = scripted([ANSWER])
    with client_of(serve, replier) as client:
        client.messages.create(
            model="tiny", max_tokens=5, messages=QUESTION, tools=[ADD], tool_choice=given
        )
    [request] = replier.requests
    assert (request.tool_choice, request.tool_name) == (choice, name)
    assert request.parallel_tool_calls == parallel


def test_a_schema_constrains_the_reply(serve: Any, scripted: Any) -> None:
    replier = scripted([{"role": "assistant", "content": "{}"}])
    schema: Any = {"type": "object", "properties": {"total": {"type": "integer"}}}
    with client_of(serve, replier) as client:
        client.messages.create(
            model="tiny",
            max_tokens=5,
            messages=QUESTION,
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
    assert replier.requests[0].sampling.structure.json_schema == schema


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"system": "Be brief."},
        {"tools": [ADD]},
        {"tools": [ADD], "tool_choice": {"type": "any"}},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "integer"}}}},
    ],
    ids=["", "system", "tools", "a forced call", "a schema"],
)
def test_tokens_are_counted_as_the_prompt_will_have_them(
    serve: Any, tiny: Any, options: Any
) -> None:
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "1 + 2"}], **options}
    with client_of(serve, tiny.replier) as client:
        counted = client.messages.count_tokens(**asked).input_tokens
        told = client.messages.create(**asked, max_tokens=1).usage.input_tokens
    assert counted == told > 5


def test_only_what_makes_up_a_prompt_is_counted(serve: Any, scripted: Any) -> None:
    with serve(scripted([])) as url:
        body = {"model": "tiny", "messages": QUESTION}
        answer = httpx.post(f"{url}/v1/messages/count_tokens", json=body)
        assert answer.json() == {"input_tokens": 1}
        answer = httpx.post(f"{url}/v1/messages/count_tokens", json={**body, "max_tokens": 5})
        assert answer.status_code == 400 and "max_tokens" in answer.json()["error"]["message"]


def test_an_error_before_the_first_token_is_an_http_error_even_of_a_stream(
    serve: Any, scripted: Any
) -> None:
    errors = [ApiError(400, "too long"), ApiError(503, "gone")] * 2
    with client_of(serve, scripted(errors)) as client:
        for stream in (False, True):
            for status, kind in ((400, "invalid_request_error"), (503, "overloaded_error")):
                with pytest.raises(anthropic.APIStatusError) as caught:
                    client.messages.create(
                        model="tiny", max_tokens=5, messages=QUESTION, stream=stream
                    )
                assert caught.value.status_code == status
                body: Any = caught.value.body
                assert body["type"] == "error" and body["error"]["type"] == kind


def test_an_error_in_the_middle_of_a_stream_is_raised_by_the_client(
    serve: Any, scripted: Any, said: Any
) -> None:
    broken = said(message=ANSWER, error=ApiError(503, "the engine is gone"))
    with client_of(serve, scripted([broken])) as client:
        stream = client.messages.stream(model="tiny", max_tokens=5, messages=QUESTION)
        with stream as events, pytest.raises(anthropic.APIStatusError, match="the engine is gone"):
            events.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_generation(
    serve: Any, scripted: Any, said: Any, stream: bool
) -> None:
    replier = scripted([said(message=ANSWER, hangs=True)])
    body = {"model": "tiny", "max_tokens": 5, "messages": QUESTION, "stream": stream}
    with serve(replier) as url:
        if stream:
            with httpx.stream("POST", f"{url}/v1/messages", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/messages", json=body, timeout=0.5)
        assert replier.closed.wait(10.0)


def _user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.fixture(scope="module")
def speechless(serve: Any, scripted: Any) -> Iterator[str]:
    """The URL of a server that has nothing to say."""
    with serve(scripted([])) as url:
        yield url


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools[0].name"),
        ({"tools": [{"name": "a", "input_schema": {"type": "x"}}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a", "input_schema": {}}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": [ADD], "tool_choice": {"type": "auto", "x": 1}}, "tool_choice.x"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        (_user({"type": "image", "source": {}}), "messages[0].content[0].type"),
        (_user({"type": "document", "source": {}}), "messages[0].content[0].type"),
        (_user({"type": "text"}), "messages[0].content[0].text"),
        (
            _user({"type": "tool_result", "tool_use_id": "x"}),
            "messages[0].content[0].tool_use_id",
        ),
        (
            _user({"type": "text", "text": "a"}, {"type": "tool_result", "tool_use_id": "x"}),
            "messages[0].content[1]",
        ),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [*QUESTION, {"role": "assistant", "content": "The sum"}]},
            "messages",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    speechless: str, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "max_tokens": 5, "messages": QUESTION, **fields}
    answer = httpx.post(f"{speechless}/v1/messages", json=body)
    assert answer.status_code == 400
    told = answer.json()
    assert told["type"] == "error"
    assert told["error"]["type"] == "invalid_request_error"
    message = told["error"]["message"]
    assert message.startswith(f"{param}: ") and "\n" not in message


def test_an_unknown_model_is_not_found(serve: Any, scripted: Any) -> None:
    with client_of(serve, scripted([])) as client, pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="other", max_tokens=5, messages=QUESTION)
