"""POST /v1/chat/completions over a scripted replier: what goes in, what comes out."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import httpx
import pytest

from palestra.rollout.serving.api_error import ApiError
from palestra.types import Structure

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
ANSWER = {"role": "assistant", "content": 'Is "42"\nenough? €'}
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
BAD_SCHEMA = {"name": "n", "schema": {"type": 5}}
BAD_FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": 5}}
IMAGE = {"type": "image_url", "image_url": {"url": "u"}}
CALLS = {
    "role": "assistant",
    "reasoning_content": "I should add.",
    "content": "Adding.",
    "tool_calls": [
        {
            "id": f"call_{i}-0123456789ab",
            "type": "function",
            "function": {"name": "add", "arguments": f'{{"a": {i}}}'},
        }
        for i in range(2)
    ],
}


def ask(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={**HELLO, **fields}, timeout=30)


def events_of(answer: httpx.Response) -> list[Any]:
    """The events of a stream; "[DONE]" as such."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = answer.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def error_of(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error, dict)
    return error


# Answers


def test_a_reply_is_answered_as_openai_does(serve: Any, scripted: Any) -> None:
    with serve(scripted([ANSWER])) as url:
        answer = ask(url).json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert abs(answer.pop("created") - time.time()) < 60
    assert answer == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {**ANSWER, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_a_stream_begins_with_the_role_and_ends_with_done(serve: Any, scripted: Any) -> None:
    with serve(scripted([ANSWER])) as url:
        *chunks, done = events_of(ask(url, stream=True))
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    first, *others, last = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert "".join(other["delta"]["content"] for other in others) == ANSWER["content"]
    assert last == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert {choice["finish_reason"] for choice in (first, *others)} == {None}


def test_the_usage_comes_in_a_chunk_of_its_own(serve: Any, scripted: Any) -> None:
    with serve(scripted([ANSWER])) as url:
        *chunks, last, _ = events_of(ask(url, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert {chunk["usage"] for chunk in chunks} == {None}


def test_calls_and_reasoning_are_told_whole_and_in_pieces(serve: Any, scripted: Any) -> None:
    with serve(scripted([CALLS, CALLS])) as url:
        (whole,) = ask(url, tools=[ADD]).json()["choices"]
        *chunks, _ = events_of(ask(url, tools=[ADD], stream=True))
    assert whole["message"] == {**CALLS, "refusal": None}
    assert whole["finish_reason"] == "tool_calls"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[-1]["finish_reason"] == "tool_calls"
    deltas = [choice["delta"] for choice in choices]
    told = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert told == CALLS["reasoning_content"]
    calls: dict[int, dict[str, Any]] = {}
    for piece in [piece for delta in deltas for piece in delta.get("tool_calls", ())]:
        if piece["index"] not in calls:
            calls[piece["index"]] = piece
            continue
        assert set(piece) == {"index", "function"}
        assert set(piece["function"]) == {"arguments"}
        calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    assert [{k: v for k, v in call.items() if k != "index"} for call in calls.values()] == CALLS[
        "tool_calls"
    ]


def test_content_is_null_beside_calls_alone(serve: Any, scripted: Any) -> None:
    alone = {**CALLS, "content": "", "reasoning_content": ""}
    with serve(scripted([alone])) as url:
        (choice,) = ask(url, tools=[ADD]).json()["choices"]
    assert choice["message"]["content"] is None
    assert "reasoning_content" not in choice["message"]


def test_log_probabilities_have_openais_form(serve: Any, scripted: Any) -> None:
    with serve(scripted([ANSWER])) as url:
        *chunks, _ = events_of(ask(url, stream=True, logprobs=True, top_logprobs=2))
    tokens = [
        token
        for chunk in chunks
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert "".join(token["token"] for token in tokens) == ANSWER["content"]
    assert bytes(tokens[-1]["bytes"]).decode() == tokens[-1]["token"]
    assert [top["token"] for top in tokens[0]["top_logprobs"]] == ["x", "y"]


# Requests


def test_what_is_asked_reaches_the_replier(serve: Any, scripted: Any) -> None:
    replier = scripted([ANSWER])
    with serve(replier) as url:
        ask(
            url,
            messages=[
                {
                    "role": "developer",
                    "content": [
                        {"type": "text", "text": "Be "},
                        {"type": "text", "text": "brief."},
                    ],
                },
                {"role": "user", "content": "Add."},
                {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "audio": None,
                    "annotations": [],
                    "reasoning_content": "Hm.",
                    "tool_calls": [
                        {
                            "id": "call_0-x",
                            "type": "function",
                            "function": {"name": "add", "arguments": '{"a": 1}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_0-x", "content": "1"},
            ],
            tools=[{**ADD, "function": {**ADD["function"], "strict": True}}],
            tool_choice={"type": "function", "function": {"name": "add"}},
            parallel_tool_calls=False,
            temperature=0.5,
            top_p=0.9,
            top_k=7,
            seed=-3,
            n=1,
            stop=["a", "b"],
            max_completion_tokens=9,
            logprobs=True,
        )
    (asked,) = replier.requests
    assert asked.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add."},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {
                    "id": "call_0-x",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_0-x", "content": "1"},
    )
    assert asked.tools == (ADD,)
    assert (asked.tool_choice, asked.tool_name) == ("function", "add")
    assert (asked.parallel_tool_calls, asked.n, asked.stop) == (False, 1, ("a", "b"))
    assert asked.top_logprobs == 0
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.seed, sampling.max_tokens) == (-3, 9)


def test_what_is_left_out_or_null_is_openais_default(serve: Any, scripted: Any) -> None:
    replier = scripted([ANSWER, ANSWER])
    names = "temperature top_p n stop seed tools tool_choice max_tokens stream logit_bias functions"
    nothing = dict.fromkeys(names.split())
    with serve(replier) as url:
        assert ask(url).status_code == 200
        assert ask(url, **nothing).status_code == 200
    first, second = replier.requests
    assert first == second
    assert (first.sampling.temperature, first.sampling.top_p, first.n) == (1.0, 1.0, 1)
    assert first.sampling.max_tokens >= 2**20
    assert first.top_logprobs is None


@pytest.mark.parametrize(
    ("wanted", "structure"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Structure(json_schema={"type": "object"})),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}},
            Structure(json_schema={"type": "array"}),
        ),
    ],
)
def test_response_format_becomes_a_structure(
    serve: Any, scripted: Any, wanted: Any, structure: Any
) -> None:
    replier = scripted([ANSWER])
    with serve(replier) as url:
        assert ask(url, response_format=wanted).status_code == 200
    assert replier.requests[0].sampling.structure == structure


def test_what_changes_nothing_is_accepted(serve: Any, scripted: Any) -> None:
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "logit_bias": {},
        "top_k": -1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "modalities": ["text"],
    }
    replier = scripted([ANSWER])
    with serve(replier) as url:
        assert ask(url, **harmless).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"frequency_penalty": 0.1}, "frequency_penalty", "unsupported_parameter"),
        ({"presence_penalty": -1}, "presence_penalty", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"audio": {"voice": "v"}}, "audio", "unsupported_parameter"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"service_tier": "priority"}, "service_tier", "unsupported_parameter"),
        ({"min_p": 0.1}, "min_p", "unknown_parameter"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": 10**30}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice", "invalid_value"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "unsupported_value"),
        ({"response_format": {"type": "json_schema", "json_schema": BAD_SCHEMA}},
            "response_format.json_schema.schema", "invalid_json_schema"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "Hello"}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bob"}]},
            "messages[0].name", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]},
            "messages[0].content[0].type", "unsupported_value"),
        ({"tools": [{**ADD, "type": "custom"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name", "invalid_value"),
        ({"tools": [ADD, ADD]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [{"type": "function", "function": BAD_FUNCTION}]},
            "tools[0].function.parameters", "invalid_function_parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:60],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(
    serve: Any, scripted: Any, fields: dict[str, Any], param: str, code: str
) -> None:
    replier = scripted([ANSWER])
    with serve(replier) as url:
        error = error_of(ask(url, **fields))
    assert (error["param"], error["code"]) == (param, code)
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"
    assert replier.requests == []


def test_an_unknown_model_is_told_with_those_that_there_are(serve: Any, scripted: Any) -> None:
    with serve(scripted([])) as url:
        error = error_of(ask(url, model="gpt-5"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "there is tiny" in error["message"]


# Errors while it is answered


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_at_fault_has_its_own_status_also_as_a_stream(
    serve: Any, scripted: Any, stream: bool
) -> None:
    overflow = ApiError(400, "too long", code="context_length_exceeded", param="messages")
    with serve(scripted([overflow])) as url:
        error = error_of(ask(url, stream=stream))
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_is_gone_is_a_503_to_be_tried_again(
    serve: Any, scripted: Any, stream: bool
) -> None:
    gone = ApiError(503, "gone", code="unavailable", retry_after_s=1.5)
    with serve(scripted([gone])) as url:
        answer = ask(url, stream=stream)
    assert error_of(answer, 503)["type"] == "server_error"
    assert answer.headers["retry-after"] == "2"


def test_an_error_in_the_middle_is_the_last_event(serve: Any, scripted: Any, said: Any) -> None:
    gone = ApiError(503, "gone", code="unavailable")
    with serve(scripted([said(message=ANSWER, error=gone)])) as url:
        *chunks, last = events_of(ask(url, stream=True))
    assert last == {
        "error": {"message": "gone", "type": "server_error", "param": None, "code": "unavailable"}
    }
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == ANSWER["content"]


def test_a_bug_is_a_500_without_its_traceback(serve: Any, scripted: Any) -> None:
    with serve(scripted([KeyError("secret"), ANSWER])) as url:
        answer = ask(url)
        assert error_of(answer, 500)["message"] == "internal error"
        assert "secret" not in answer.text
        assert ask(url).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_generation(
    serve: Any, scripted: Any, said: Any, stream: bool
) -> None:
    replier = scripted([said(message=ANSWER, hangs=True), ANSWER])
    with serve(replier) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({**HELLO, "stream": stream}).encode()
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            if stream:
                assert b"200 OK" in client.recv(1000)
            else:
                while not replier.requests:
                    time.sleep(0.01)
            assert not replier.closed.is_set()
        assert replier.closed.wait(10)
        assert ask(url).status_code == 200
