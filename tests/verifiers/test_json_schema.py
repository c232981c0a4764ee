import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Score, Unscorable
from palestra.verifiers import json_schema

Judge = Callable[..., Score]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_json_that_fits_the_reference_is_right(judge: Judge, schema: Any) -> None:
    assert judge(json_schema(), '{"name": "Ada", "age": 36}', schema).value == 1.0
    assert judge(json_schema(SCHEMA), '```json\n{"name": "", "age": 0}\n```').value == 1.0


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ('{"name": "Ada"}', r"\$: 'age' is a required property"),
        ('{"name": "Ada", "age": -1}', r"\$\.age: -1 is less than the minimum of 0"),
        ('{"name": "Ada", "age": 1, "x": 1}', "Additional properties are not allowed"),
        ('{"name": "Ada", "age": true}', "True is not of type 'integer'"),
        ("{}", "is a required property"),
        ("", "there is no JSON"),
        ("Ada, 36", "not JSON"),
        ('{"name": "Ada", "age": 1, "age": 2}', "a name occurs twice"),
    ],
)
def test_json_that_does_not_fit_is_wrong_and_told_why(judge: Judge, reply: str, why: str) -> None:
    score = judge(json_schema(SCHEMA), reply)
    assert score.value == 0.0
    assert re.search(why, score.explanation)
    assert len(score.explanation) <= 300


def test_an_empty_reply_fits_no_schema(judge: Judge) -> None:
    assert judge(json_schema(True), "").value == 0.0
    assert judge(json_schema({}), " \n").value == 0.0


def test_a_pattern_that_backtracks_for_ever_makes_the_reply_wrong_in_time(judge: Judge) -> None:
    schema = {"type": "string", "pattern": "^(a|aa)+$"}
    assert judge(json_schema(schema), '"aaa"').value == 1.0
    started = time.perf_counter()
    score = judge(json_schema(schema, timeout_s=0.5), json.dumps("a" * 200 + "b"))
    assert (score.value, score.explanation) == (0.0, "not validated in 0.5 s")
    assert time.perf_counter() - started < 20


def test_a_large_document_is_validated_elsewhere_and_in_bounded_time(judge: Judge) -> None:
    unique = json_schema({"type": "array", "uniqueItems": True}, timeout_s=1)
    assert judge(unique, json.dumps(list(range(2_000)))).value == 1.0
    assert judge(unique, json.dumps([*range(2_000), 7])).value == 0.0
    score = judge(unique, json.dumps([{"a": i} for i in range(50_000)]))
    assert (score.value, score.explanation) == (0.0, "not validated in 1 s")


@pytest.mark.parametrize("answer", [None, "", "{", 1, {"type": "foo"}, {"properties": 1}, "[]"])
def test_a_reference_that_is_no_schema_is_unscorable(judge: Judge, answer: Any) -> None:
    for reply in ("", "{}"):
        with pytest.raises(Unscorable, match="the task's answer is no JSON schema"):
            judge(json_schema(), reply, answer)


def test_a_schema_that_refers_to_elsewhere_is_unscorable_and_nothing_is_fetched(
    judge: Judge,
) -> None:
    with pytest.raises(Unscorable, match="the schema refers to what is not in it"):
        judge(json_schema(), "{}", {"$ref": "http://127.0.0.1:9/schema"})


def test_references_inside_of_the_schema_are_followed(judge: Judge) -> None:
    tree = {"type": "array", "items": {"$ref": "#"}}
    assert judge(json_schema(tree), "[[], [[]]]").value == 1.0
    assert judge(json_schema(tree), "[[], [1]]").value == 0.0


def test_a_schema_that_is_none_is_refused_early() -> None:
    with pytest.raises(ValueError, match=r"not a JSON schema: \$\.type"):
        json_schema({"type": "foo"})
