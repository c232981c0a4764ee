import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from palestra.tools import parse_reply


def call(name: str, arguments: str, index: int = 0) -> dict[str, Any]:
    return {
        "id": f"call_{index}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def test_text_without_calls_is_content() -> None:
    assert parse_reply(" 42.\n") == {"role": "assistant", "content": "42."}


def test_a_block_becomes_a_call_in_openais_form() -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
    assert parse_reply(text) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [call("add", '{"a": 1, "b": "é"}')],
    }


def test_several_calls_keep_their_order_and_the_text_around_them() -> None:
    text = (
        'First <tool_call>{"name": "f", "arguments": {}}</tool_call> then '
        '<tool_call>{"name": "g"}</tool_call>, done.'
    )
    message = parse_reply(text)
    assert message["content"] == "First  then , done."
    assert message["tool_calls"] == [call("f", "{}"), call("g", "{}", 1)]


def test_leading_thinking_is_reasoning_and_calls_in_it_do_not_count() -> None:
    text = '\n<think>\nmaybe <tool_call>{"name": "f"}</tool_call>\n</think>\n\n42'
    assert parse_reply(text) == {
        "role": "assistant",
        "reasoning_content": 'maybe <tool_call>{"name": "f"}</tool_call>',
        "content": "42",
    }


def test_thinking_that_never_ends_is_all_there_is() -> None:
    message = parse_reply('<think>hm <tool_call>{"name": "f"}</tool_call>')
    assert message["content"] == ""
    assert "tool_calls" not in message


def test_empty_thinking_leaves_no_trace() -> None:
    assert parse_reply("<think>\n\n</think>\n\n42") == {"role": "assistant", "content": "42"}


def test_arguments_written_as_a_string_of_json_are_taken_as_they_are() -> None:
    text = '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert parse_reply(text)["tool_calls"] == [call("f", '{"a": 1}')]


@pytest.mark.parametrize(
    "body",
    ["", "nope", '{"name": "f", }', "[1]", '"f"', "null", '{"arguments": {}}', '{"name": ""}',
     '{"name": 3}', "[" * 100_000, '{"name": "f", "arguments": ' + "9" * 10_000 + "}"],
)  # fmt: skip
def test_a_block_that_is_no_call_is_marked_and_kept(body: str) -> None:
    message = parse_reply(f"<tool_call>{body}</tool_call> after")
    assert message["tool_calls"] == [{**call("", body), "error": "bad_json"}]
    assert message["content"] == "after"


def test_a_block_that_nothing_closes_is_cut() -> None:
    message = parse_reply('x <tool_call>{"name": "add", "argum')
    assert message["tool_calls"] == [{**call("", '{"name": "add", "argum'), "error": "cut"}]
    assert message["content"] == "x"


def test_a_closing_tag_inside_a_string_closes_nothing() -> None:
    arguments = {"text": 'say "</tool_call>" \\ twice: </tool_call>'}
    body = json.dumps({"name": "echo", "arguments": arguments})
    message = parse_reply(f"<tool_call>{body}</tool_call><tool_call>{body}</tool_call>!")
    assert [json.loads(c["function"]["arguments"]) for c in message["tool_calls"]] == [
        arguments
    ] * 2
    assert message["content"] == "!"


def test_a_malformed_block_does_not_swallow_the_next() -> None:
    good = '<tool_call>{"name": "f"}</tool_call>'
    message = parse_reply('<tool_call>{"name": "g</tool_call>' + good + good)
    assert [c.get("error") for c in message["tool_calls"]] == ["bad_json", None, None]


def test_half_characters_are_replaced_so_that_every_call_can_be_written_to_a_file() -> None:
    message = parse_reply(
        '<tool_call>{"name": "f\\ud800", "arguments": {"\\udfff": 1}}</tool_call>'
    )
    json.dumps(message, ensure_ascii=False).encode()


_PIECES = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "f", "arguments": {"a": 1}}',
    '"', "\\", '\\"', "{", "}", "[", "]", ":", ",", "\n", " ", "x", "\ud800", "\0", "é", "1e999",
]  # fmt: skip


@settings(deadline=None)  # the machine is shared
@given(st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=40).map("".join))
@example("<tool_call></tool_call>")
def test_any_text_is_parsed(text: str) -> None:
    message = parse_reply(text)
    assert message["role"] == "assistant"
    assert isinstance(message["content"], str)
    assert "<tool_call>" not in message["content"]
    for index, entry in enumerate(message.get("tool_calls", ())):
        assert entry["id"] == f"call_{index}"
        name, arguments = entry["function"]["name"], entry["function"]["arguments"]
        assert isinstance(arguments, str)
        assert bool(name) == ("error" not in entry)
        if name:
            json.loads(arguments)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # the machine is shared
@given(st.lists(st.dictionaries(st.text(), _json, max_size=3), min_size=1, max_size=4))
def test_calls_that_were_written_are_read(all_arguments: list[dict[str, Any]]) -> None:
    text = "\n".join(
        f"<tool_call>\n{json.dumps({'name': 'f', 'arguments': arguments})}\n</tool_call>"
        for arguments in all_arguments
    )
    calls = parse_reply(text)["tool_calls"]
    assert [json.loads(c["function"]["arguments"]) for c in calls] == all_arguments


@pytest.mark.parametrize(
    "piece",
    ["<tool_call>", "</tool_call>", "<think>", "<tool_call>{</tool_call>",
     '<tool_call>"</tool_call>', '<tool_call>\\</tool_call>',
     '<tool_call>"\\"</tool_call>', '<tool_call>"\\</tool_call>',
     '<tool_call>[",","</tool_call>', "<tool_call>\n\n{</tool_call>", '"<tool_call>"</tool_call>'],
)  # fmt: skip
def test_hostile_repetition_takes_linear_time(piece: str) -> None:
    start = time.process_time()
    parse_reply('<tool_call>"</tool_call>' + piece * (1_000_000 // len(piece)))
    # Linear takes about 0.2 s; quadratic would take minutes.
    assert time.process_time() - start < 5
