"""Calls that are wrong before anybody runs them."""

from __future__ import annotations

from typing import Any

from palestra.rollout.serving.wrong_calls import find_wrong_calls
from palestra.tools import parse_reply, tool
from palestra.types import Message


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def calling(*calls: tuple[str, str]) -> Message:
    entries: list[dict[str, Any]] = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": entries}


def kinds(message: Message) -> list[tuple[str, str | None]]:
    return [(found.call_id, found.error) for found in find_wrong_calls(message, [add.schema()])]


def test_each_wrong_call_is_found_and_no_other() -> None:
    message = calling(
        ("add", '{"a": 1, "b": 2}'),
        ("sub", "{}"),
        ("add", '{"a": 1}'),
        ("add", '{"a": "x", "b": 2}'),
    )
    assert kinds(message) == [
        ("call_1", "unknown_tool"),
        ("call_2", "bad_arguments"),
        ("call_3", "bad_arguments"),
    ]


def test_malformed_and_cut_calls_keep_their_kind() -> None:
    assert kinds(parse_reply("<tool_call>{nonsense}</tool_call>")) == [("call_0", "bad_json")]
    assert kinds(parse_reply('<tool_call>{"name": "add", "argum')) == [("call_0", "cut")]


def test_a_reply_without_calls_has_none() -> None:
    assert kinds({"role": "assistant", "content": "42"}) == []


def test_a_schema_that_cannot_be_followed_blames_nobody() -> None:
    odd: dict[str, Any] = {"type": "object", "properties": {"a": {"$ref": "https://x.test/y"}}}
    schema = {"type": "function", "function": {"name": "odd", "parameters": odd}}
    assert find_wrong_calls(calling(("odd", '{"a": 1}')), [schema]) == ()
    bare = {"type": "function", "function": {"name": "odd"}}
    assert find_wrong_calls(calling(("odd", '{"a": 1}')), [bare]) == ()
