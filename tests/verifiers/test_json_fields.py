from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Score, Unscorable
from palestra.verifiers import json_fields

Judge = Callable[..., Score]
ANSWER = {"name": "Ada", "age": 36, "tags": ["a", "b"], "boss": None}


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"name": "Ada", "age": 36, "tags": ["a", "b"], "boss": null}', 1.0),
        ('```json\n{"age": 36.0, "boss": null, "name": "Ada", "tags": ["a", "b"]}\n```', 1.0),
        ('{"name": "Ada", "age": 36, "tags": ["a", "b"], "boss": null, "more": 1}', 1.0),
        ('{"name": "Ada", "age": "36", "tags": ["a", "b"], "boss": null}', 0.75),
        ('{"name": "ada", "age": true, "tags": ["b", "a"]}', 0.0),
        ('{"name": "Ada", "age": 36, "tags": ["a", "b"]}', 0.75),
        ("{}", 0.0),
        ("[]", 0.0),
        ("null", 0.0),
        ("", 0.0),
        ("not JSON", 0.0),
    ],
)
def test_the_value_is_the_share_of_fields_that_are_right(
    judge: Judge, reply: str, value: float
) -> None:
    assert judge(json_fields(), reply, ANSWER).value == value


def test_wrong_fields_are_named(judge: Judge) -> None:
    score = judge(json_fields(), '{"name": "Ada", "age": 37}', {"name": "Ada", "age": 36})
    assert score.explanation == "wrong or missing: age"
    assert score.parts == {"name": 1.0, "age": 0.0}


def test_fields_have_weights(judge: Judge) -> None:
    weighted = json_fields({"name": 3, "tags": 0, "unknown": 5})
    assert judge(weighted, '{"name": "Ada"}', ANSWER).value == 3 / 5
    assert judge(weighted, '{"age": 36, "boss": null}', ANSWER).value == 2 / 5


def test_lists_are_bags_where_that_is_said(judge: Judge) -> None:
    answer = {"a": [1, 2], "b": [1, 2]}
    reply = '{"a": [2, 1], "b": [2, 1]}'
    assert judge(json_fields(), reply, answer).value == 0.0
    assert judge(json_fields(unordered=["a"]), reply, answer).value == 0.5
    assert judge(json_fields(unordered=True), reply, answer).value == 1.0


def test_numbers_may_be_nearly_right(judge: Judge) -> None:
    near = json_fields(relative=0.01)
    assert judge(near, '{"x": 101}', {"x": 100}).value == 1.0
    assert judge(near, '{"x": 102}', {"x": 100}).value == 0.0
    assert judge(near, '{"x": true}', {"x": 1}).value == 0.0
    assert judge(near, '{"x": "100"}', {"x": 100}).value == 0.0


def test_more_fields_are_wrong_where_that_is_said(judge: Judge) -> None:
    strict = json_fields(allow_extra=False)
    assert judge(strict, '{"x": 1}', {"x": 1}).value == 1.0
    score = judge(strict, '{"x": 1, "y": 2}', {"x": 1})
    assert (score.value, score.explanation) == (0.0, "unexpected fields: y")


@pytest.mark.parametrize(
    "answer", [None, "", "{", 1, [], {}, "[1]", {"a": float("nan")}, {"a": object()}]
)
def test_a_reference_that_is_no_object_is_unscorable(judge: Judge, answer: Any) -> None:
    for reply in ("", "{}"):
        with pytest.raises(Unscorable, match=r"is no JSON|needs an object"):
            judge(json_fields(), reply, answer)


def test_a_reference_whose_fields_all_weigh_nothing_is_unscorable(judge: Judge) -> None:
    with pytest.raises(Unscorable, match="no field of the reference has a weight: x"):
        judge(json_fields({"x": 0}), '{"x": 1}', '{"x": 1}')


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_a_weight_that_makes_no_sense_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of field x must be at least 0 and finite"):
        json_fields({"x": weight})
