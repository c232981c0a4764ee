"""What a reply must be: a call that its tools take, in every form, JSON of a schema, or either."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palestra.rollout.call_formats import FORMATS
from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.reply import ReplyRequest
from palestra.rollout.serving.reply_shape import call_schema, shape_reply
from palestra.trainer.tiny import CHAT_TEMPLATE, train_tokenizer
from palestra.types import Sampling, Structure, ToolSchema


def tool(name: str, parameters: dict[str, Any] | None) -> ToolSchema:
    function: dict[str, Any] = {"name": name}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


NUMBER = {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}
TREE = {
    "type": "object",
    "properties": {"tree": {"$ref": "#/$defs/Node"}},
    "required": ["tree"],
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
            "additionalProperties": False,
        }
    },
}
WORDS = {
    "type": "object",
    "properties": {"words": {"$ref": "#/$defs/Node"}},
    "$defs": {"Node": {"type": "array", "items": {"type": "string"}}},
}
SELF = {"type": "object", "properties": {"inner": {"$ref": "#"}}, "additionalProperties": False}
TOOLS = (tool("add", NUMBER), tool("walk", TREE), tool("say", WORDS), tool("nest", SELF))


ANSWER = {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}


def asking(
    tool_choice: Any,
    tools: tuple[ToolSchema, ...] = TOOLS,
    *,
    schema: dict[str, Any] | None = None,
    tool_name: str | None = None,
) -> ReplyRequest:
    structure = None if schema is None else Structure(json_schema=schema)
    return ReplyRequest(
        messages=({"role": "user", "content": "Add."},),
        tools=tools,
        tool_choice=tool_choice,
        tool_name=tool_name,
        sampling=Sampling(structure=structure),
    )


def chat() -> ChatFormat:
    return ChatFormat.from_tokenizer(train_tokenizer([[{"role": "user", "content": "Add."}]], []))


def thinking_chat() -> ChatFormat:
    tokenizer = train_tokenizer([[{"role": "user", "content": "Add."}]], [])
    assert "<|im_start|>assistant\n" in CHAT_TEMPLATE.replace("\\n", "\n")
    tokenizer.chat_template = CHAT_TEMPLATE + "{{ '<think>\\n' if add_generation_prompt else '' }}"
    chat_format = ChatFormat.from_tokenizer(tokenizer)
    assert chat_format.opening == "<think>"
    return chat_format


@pytest.mark.parametrize(
    ("call", "is_valid"),
    [
        ({"name": "add", "arguments": {"a": 1.5}}, True),
        ({"name": "add", "arguments": {"a": "1.5"}}, False),
        ({"name": "add", "arguments": {}}, False),
        ({"name": "sub", "arguments": {"a": 1}}, False),
        ({"name": "add"}, False),
        ({"name": "add", "arguments": {"a": 1}, "more": 1}, False),
        # References count from where the tool's own schema began.
        ({"name": "walk", "arguments": {"tree": {"children": [{"children": []}]}}}, True),
        ({"name": "walk", "arguments": {"tree": {"children": ["x"]}}}, False),
        ({"name": "say", "arguments": {"words": ["x"]}}, True),
        ({"name": "say", "arguments": {"words": {"children": []}}}, False),
        ({"name": "nest", "arguments": {"inner": {"inner": {}}}}, True),
        ({"name": "nest", "arguments": {"inner": {"outer": {}}}}, False),
    ],
)
def test_the_schema_takes_calls_of_the_tools_and_no_others(call: Any, is_valid: bool) -> None:
    schema = call_schema(TOOLS, arguments_key="arguments")
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(call) == is_valid
    alone = [t for t in TOOLS if t["function"]["name"] == call["name"]]
    if alone:
        schema = call_schema(alone, arguments_key="arguments")
        assert jsonschema.Draft202012Validator(schema).is_valid(call) == is_valid


def test_a_tool_without_parameters_takes_an_object() -> None:
    schema = call_schema([tool("now", None)], arguments_key="parameters")
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"name": "now", "parameters": {}})
    assert not validator.is_valid({"name": "now", "parameters": 1})


@pytest.mark.parametrize("form", list(FORMATS.values()), ids=list(FORMATS))
@settings(max_examples=50, deadline=None, derandomize=True)
@given(a=st.floats(allow_nan=False, allow_infinity=False))
def test_every_form_reads_a_forced_call(form: Any, a: float) -> None:
    body = json.dumps({"name": "add", form.arguments_key: {"a": a}})
    [call] = form.read(form.prefix + body + form.suffix)["tool_calls"]
    assert "error" not in call and call["function"]["name"] == "add"
    assert json.loads(call["function"]["arguments"]) == {"a": a}


def test_only_a_tool_choice_that_asks_for_it_forces_a_call() -> None:
    assert shape_reply(chat(), asking("auto")) is None
    assert shape_reply(chat(), asking("none")) is None


def test_a_forced_call_begins_as_the_model_begins_one() -> None:
    forced = shape_reply(chat(), asking("required"))
    assert forced is not None
    assert (forced.prefix, forced.suffix) == ("<tool_call>\n", "\n</tool_call>")
    assert chat().text(forced.prefix_ids) == forced.prefix
    schema = forced.structure.json_schema
    assert schema is not None and len(schema["anyOf"]) == len(TOOLS)


def test_a_named_tool_is_the_only_one_that_can_be_called() -> None:
    forced = shape_reply(chat(), asking("function", tool_name="add"))
    assert forced is not None and forced.structure.json_schema is not None
    assert forced.structure.json_schema["properties"]["name"] == {"const": "add"}


def test_where_the_prompt_opens_the_thinking_it_is_closed_first() -> None:
    forced = shape_reply(thinking_chat(), asking("required"))
    assert forced is not None and forced.prefix == "</think>\n\n<tool_call>\n"
    answer = shape_reply(thinking_chat(), asking("none", schema=ANSWER))
    assert answer is not None and (answer.prefix, answer.suffix) == ("</think>\n\n", "")
    assert thinking_chat().text(answer.prefix_ids) == answer.prefix


@pytest.mark.parametrize("tools", [TOOLS, ()])
def test_without_tools_that_may_be_called_a_schema_is_all_that_a_reply_can_be(tools: Any) -> None:
    answer = shape_reply(chat(), asking("none" if tools else "auto", tools, schema=ANSWER))
    assert answer is not None and answer.structure == Structure(json_schema=ANSWER)
    assert (answer.prefix_ids, answer.suffix) == ((), "")


def test_with_tools_a_reply_of_a_schema_may_be_a_call_instead() -> None:
    either = shape_reply(chat(), asking("auto", schema=ANSWER))
    assert either is not None and (either.prefix_ids, either.suffix) == ((), "")
    assert either.structure.json_schema == ANSWER
    call = either.structure.call
    assert call is not None and (call.prefix, call.suffix) == ("<tool_call>\n", "\n</tool_call>")
    assert len(call.json_schema["anyOf"]) == len(TOOLS)


def test_a_call_that_is_required_comes_before_any_schema() -> None:
    forced = shape_reply(chat(), asking("required", schema=ANSWER))
    assert forced is not None and forced.structure.call is None
    assert forced.structure.json_schema is not None and "anyOf" in forced.structure.json_schema


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (asking("required", ()), "the request has no tool: add it"),
        (asking("function", tool_name="sub"), "no tool named 'sub'"),
    ],
)
def test_a_call_of_no_tool_is_refused(request_: ReplyRequest, complaint: str) -> None:
    with pytest.raises(ApiError, match=complaint) as raised:
        shape_reply(chat(), request_)
    assert (raised.value.status, raised.value.param) == (400, "tool_choice")
