"""Every form of tool calls reads what it writes, and reads anything without raising."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palestra.rollout.call_formats import FORMATS

NAMES = list(FORMATS)
names = st.text(min_size=1, max_size=6).filter(lambda name: name.strip() == name)
arguments = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6), max_size=3)
FRAGMENTS = (
    "<tool_call> </tool_call> <think> </think> [TOOL_CALLS] [ARGS] [CALL_ID] <|python_tag|>"
    ' {"name":"f" ,"arguments":{ ,"parameters":{ } [ ] ; " \\ \n'
)
LARGE = ["{" * 3000, "[" * 3000, "1" * 5000, "\ud800"]
pieces = st.sampled_from([*FRAGMENTS.split(" "), *LARGE])


def entry(name: str, wanted: dict[str, Any], index: int) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(wanted, ensure_ascii=False)}
    return {"id": f"call_{index}", "type": "function", "function": function}


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=100, deadline=None)
@given(wanted=st.lists(st.tuples(names, arguments), min_size=1, max_size=3))
def test_what_is_written_is_read_back(form: str, wanted: list[tuple[str, dict[str, Any]]]) -> None:
    calls = [entry(name, given_, i) for i, (name, given_) in enumerate(wanted)]
    message = FORMATS[form].read(FORMATS[form].write(calls))
    assert message == {"role": "assistant", "content": "", "tool_calls": calls}


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=200, deadline=None)
@given(text=st.lists(pieces | st.text(max_size=5), max_size=12).map("".join))
def test_any_text_is_read(form: str, text: str) -> None:
    message = FORMATS[form].read(text)
    assert message["role"] == "assistant" and isinstance(message["content"], str)
    for call in message.get("tool_calls", []):
        function = call["function"]
        assert isinstance(function["arguments"], str)
        assert function["name"] if "error" not in call else function["name"] == ""


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("piece", ["<tool_call>", "[TOOL_CALLS]", '{"name":', "<think>", "[[{"])
def test_reading_takes_linear_time(form: str, piece: str) -> None:
    started = time.perf_counter()
    FORMATS[form].read(piece * 50_000)
    assert time.perf_counter() - started < 5  # quadratic would take minutes


def test_llama_calls_are_bare_json() -> None:
    read = FORMATS["llama3"].read
    one = read('{"name": "add", "parameters": {"a": 1}}')
    assert one["tool_calls"] == [entry("add", {"a": 1}, 0)]
    assert read('<|python_tag|>{"name": "add", "parameters": {"a": 1}}') == one
    two = read('{"name": "add", "parameters": {}}; {"name": "sub", "parameters": {}}')
    assert [call["function"]["name"] for call in two["tool_calls"]] == ["add", "sub"]
    thinking = read('<think>hm</think>\n{"name": "add", "parameters": {}}')
    assert thinking["reasoning_content"] == "hm" and len(thinking["tool_calls"]) == 1


def test_llama_text_that_only_holds_json_is_no_call() -> None:
    for text in ['{"answer": 42}', 'Use {"name": "add"}.', "{}", "42"]:
        assert FORMATS["llama3"].read(text) == {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("form", "text", "error"),
    [
        ("llama3", '{"name": "add", "parameters": {"a": 1', "cut"),
        ("llama3", '{"name": "add", "parameters": {"a": "1', "cut"),
        ("llama3", '{"name": "add", "parameters": 1}', "bad_json"),
        ("llama3", '{"name": "add" "parameters": {}}', "bad_json"),
        ("llama3", "<|python_tag|>print(1)", "bad_json"),
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {', "cut"),
        ("mistral", '[TOOL_CALLS] {"name": "add"}', "bad_json"),
        ("mistral", "[TOOL_CALLS] []", "bad_json"),
        ("mistral", "[TOOL_CALLS]add[ARGS]{", "cut"),
        ("hermes", '<tool_call>\n{"name": "add"', "cut"),
        ("hermes", "<tool_call>\nadd(1)\n</tool_call>", "bad_json"),
    ],
)
def test_malformed_calls_are_marked_and_written_back(form: str, text: str, error: str) -> None:
    message = FORMATS[form].read(text)
    [call] = message["tool_calls"]
    assert (call["function"]["name"], call["error"]) == ("", error)
    assert FORMATS[form].read(FORMATS[form].write([call])) == message


def test_mistral_calls_are_a_list_or_named_arguments() -> None:
    read = FORMATS["mistral"].read
    both = [entry("add", {"a": 1}, 0), entry("add", {"b": 2}, 1)]
    listed = read(
        'Sure.[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}},'
        ' {"name": "add", "arguments": {"b": 2}}]'
    )
    assert listed == {"role": "assistant", "content": "Sure.", "tool_calls": both}
    named = read('[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]add[ARGS]{"b": 2}')
    assert named["tool_calls"] == both


def test_mistral_keeps_the_ids_that_the_model_chose() -> None:
    read = FORMATS["mistral"].read
    listed = read('[TOOL_CALLS] [{"name": "add", "arguments": {}, "id": "abcdefghi"}]')
    named = read("[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{}")
    assert listed["tool_calls"][0]["id"] == named["tool_calls"][0]["id"] == "abcdefghi"
    twice = read("[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}")
    assert [call["id"] for call in twice["tool_calls"]] == ["call_0", "call_1"]


@pytest.mark.parametrize("form", NAMES)
def test_half_characters_do_not_reach_a_message(form: str) -> None:
    text = FORMATS[form].write([entry("f", {}, 0)]).replace("{}", r'{"a": "\ud800"}')
    FORMATS[form].read(text)["tool_calls"][0]["function"]["arguments"].encode()
