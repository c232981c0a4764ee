"""Arguments checked against a schema that somebody else wrote."""

from __future__ import annotations

from typing import Any

import pytest

from palestra.tools.given_arguments import GivenArguments
from palestra.tools.problems import BadArguments

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1},
        "odd-name": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["city"],
    "additionalProperties": False,
}


def parse(schema: dict[str, Any], text: str) -> dict[str, Any]:
    return GivenArguments(schema, tool_name="f").parse(text)


def test_the_schema_reaches_the_model_as_it_is() -> None:
    assert GivenArguments(SCHEMA, tool_name="f").json_schema == SCHEMA
    assert GivenArguments({}, tool_name="f").json_schema == {"type": "object", "properties": {}}


def test_arguments_that_fit_are_returned() -> None:
    assert parse(SCHEMA, '{"city": "Rome", "odd-name": [1, 2.5]}') == {
        "city": "Rome",
        "odd-name": [1, 2.5],
    }
    assert parse({}, "") == {}


@pytest.mark.parametrize(
    ("text", "kind", "complaint"),
    [
        ("{", "bad_json", "not valid JSON"),
        ('"x"', "bad_json", 'must be a JSON object, got "x"'),
        ('{"city": "\\ud800"}', "bad_json", "not valid JSON"),
        ('{"city": NaN}', "bad_json", "not valid JSON"),
        ('{"a":' * 10_000, "bad_json", "not valid JSON"),
        ("{}", "bad_arguments", "'city' is a required property"),
        ('{"city": 1}', "bad_arguments", "argument \"city\": 1 is not of type 'string'"),
        ('{"city": "a", "days": 0}', "bad_arguments", 'argument "days": 0 is less than'),
        ('{"city": "a", "x": 0}', "bad_arguments", "'x' was unexpected"),
        ('{"city": "a", "odd-name": ["' + "y" * 9999 + '"]}', "bad_arguments", "characters cut"),
    ],
)
def test_what_does_not_fit_is_an_answer_for_the_model(text: str, kind: str, complaint: str) -> None:
    with pytest.raises(BadArguments) as error:
        parse(SCHEMA, text)
    assert error.value.kind == kind
    assert complaint in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "no such type"}}},
        {"properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}},
        {"properties": {"a": {"$ref": "#/missing"}}},
        {"properties": {"a": {"pattern": "(x+x+)+y"}}},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
    ],
)
def test_a_schema_that_cannot_be_checked_is_left_to_its_author(schema: dict[str, Any]) -> None:
    arguments = {"a": "x" * 60}
    assert parse(schema, '{"a": "' + "x" * 60 + '"}') == arguments
