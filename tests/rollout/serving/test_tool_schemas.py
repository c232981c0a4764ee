"""Tools that clients send are checked before a model sees them."""

from __future__ import annotations

from typing import Any

import pytest

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.tool_schemas import check_functions, check_json_schema, check_tools

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


def test_a_tool_is_what_the_model_is_to_read_of_it() -> None:
    given = function(description="d", parameters=SCHEMA, strict=True)
    assert check_tools([given]) == (function(description="d", parameters=SCHEMA),)
    assert check_tools([function(description=None, parameters=None, strict=None)]) == (function(),)


WRONG_SCHEMAS: list[Any] = [
    [],
    {},
    {"type": "array"},
    {"type": "objct"},
    {"type": "object", "$schema": 7},
    {"type": "object", "$ref": 7},
    {"type": "object", "multipleOf": 0},
    {"type": "object", "properties": {"x": {"pattern": "("}}},
    {"type": "object", "properties": {"x": {"pattern": "a{99999999999999999999}"}}},
    {"type": "object", "default": float("nan")},
    {"type": "object", "default": "\ud800"},
    {"type": "object", "title": "x" * 70_000},
    nested(40),
    nested(5000),
]


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ("f", "tools[0]"),
        ({"type": "web_search"}, "tools[0].type"),
        ({"type": "function"}, "tools[0].function"),
        ({**function(), "colour": 1}, "tools[0].colour"),
        (function(colour=1), "tools[0].function.colour"),
        (function(name=None), "tools[0].function.name"),
        (function(name="a b"), "tools[0].function.name"),
        (function(name="a" * 65), "tools[0].function.name"),
        (function(name="f\n"), "tools[0].function.name"),
        (function(strict="yes"), "tools[0].function.strict"),
        (function(description=1), "tools[0].function.description"),
        (function(description="\ud800"), "tools[0].function.description"),
        (function(description="x" * 100_000), "tools[0].function.description"),
        *(
            (function(parameters=schema), "tools[0].function.parameters")
            for schema in WRONG_SCHEMAS
        ),
    ],
)
def test_what_is_wrong_with_a_tool_is_told_in_one_line(tool: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_tools([tool])
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(f"{param}: ")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_a_field_that_no_answer_can_hold_is_named_all_the_same() -> None:
    with pytest.raises(ApiError) as caught:
        check_tools([function(**{"\ud800": 1})])
    assert (
        caught.value.message.encode() == rb"tools[0].function.\ud800: a function has no such field"
    )


def test_two_tools_of_one_name_and_too_many_tools_are_refused() -> None:
    with pytest.raises(ApiError, match=r'^tools\[1\]\.function\.name: two tools are called "f"$'):
        check_tools([function(), function()])
    many = [function(name=f"f{i}") for i in range(129)]
    assert len(check_tools(many[:128])) == 128
    with pytest.raises(ApiError, match="at most 128"):
        check_tools(many)


def test_deep_schemas_and_references_within_limits_are_accepted() -> None:
    check_json_schema(nested(25), at="s")
    check_json_schema({"$ref": "http://example.invalid/schema"}, at="s")
    check_json_schema({"$schema": "http://example.invalid/dialect", "type": "object"}, at="s")


def test_messages_say_where_another_api_has_the_field() -> None:
    with pytest.raises(ApiError) as caught:
        check_functions([{"name": "f", "parameters": {"type": 3}}], parameters="input_schema")
    assert caught.value.param == "tools[0].input_schema"
    assert caught.value.code == "invalid_function_parameters"
