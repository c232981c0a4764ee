import json
from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Message, Score, Unscorable
from palestra.verifiers import tool_calls

Judge = Callable[..., Score]
Calling = Callable[..., list[Message]]
ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}
GET = {"name": "get", "arguments": {"city": "New York", "days": [1, 2]}}


def test_the_calls_of_the_reference_are_right_in_any_order(judge: Judge, calling: Calling) -> None:
    messages = calling(("get", GET["arguments"]), ("add", {"b": 2.0, "a": 1}))
    for answer in ([ADD, GET], json.dumps([ADD, GET]), [{"function": ADD}, {"function": GET}]):
        assert judge(tool_calls(), "done", answer, messages=messages).value == 1.0


def test_a_single_call_may_be_the_reference(judge: Judge, calling: Calling) -> None:
    as_text = {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    for answer in (ADD, as_text, {"add": {"a": [1], "b": [2]}}):
        messages = calling(("add", {"a": 1, "b": 2}))
        assert judge(tool_calls(), "done", answer, messages=messages).value == 1.0


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [("add", {"a": 1})],
        [("add", {"a": 1, "b": 2, "c": 3})],
        [("add", {"a": "1", "b": 2})],
        [("add", {"a": True, "b": 2})],
        [("add", {"a": 1, "b": None})],
        [("add", {"a": 2, "b": 1})],
        [("Add", {"a": 1, "b": 2})],
        [("sub", {"a": 1, "b": 2})],
        [("add", "[1, 2]")],
        [("add", "{nonsense}")],
        [("add", '{"a": 1, "a": 1, "b": 2}')],
        [("add", "[" * 100_000)],
        [("add", {"a": 1, "b": 2}), ("add", {"a": 1, "b": 2})],
        [("add", {"a": 1, "b": 2}), ("sub", {})],
        [("", "")],
    ],
)
def test_any_other_calls_are_wrong(judge: Judge, calling: Calling, calls: list[Any]) -> None:
    score = judge(tool_calls(), "done", [ADD], messages=calling(*calls))
    assert score.value == 0.0
    assert score.explanation.endswith(f"{len(calls)} were made")


@pytest.mark.parametrize("error", ["bad_json", "cut"])
def test_a_call_that_could_not_be_read_is_none(judge: Judge, calling: Calling, error: str) -> None:
    messages = calling(("add", ADD["arguments"]), error=error)
    assert judge(tool_calls(), "done", [ADD], messages=messages).value == 0.0


def test_order_counts_where_it_is_asked_for(judge: Judge, calling: Calling) -> None:
    ordered = tool_calls(ordered=True)
    right = calling(("add", ADD["arguments"]), ("get", GET["arguments"]))
    swapped = calling(("get", GET["arguments"]), ("add", ADD["arguments"]))
    assert judge(ordered, "", [ADD, GET], messages=right).value == 1.0
    assert judge(ordered, "", [ADD, GET], messages=swapped).value == 0.0
    partial = tool_calls(ordered=True, partial=True)
    assert judge(partial, "", [ADD, GET], messages=swapped).value == 0.5


def test_other_calls_may_be_allowed(judge: Judge, calling: Calling) -> None:
    messages = calling(("sub", {}), ("add", ADD["arguments"]), ("sub", {}))
    assert judge(tool_calls(allow_extra=True), "", [ADD], messages=messages).value == 1.0
    assert judge(tool_calls(allow_extra=True), "", [ADD, GET], messages=messages).value == 0.0
    both = tool_calls(allow_extra=True, ordered=True)
    assert judge(both, "", [ADD], messages=messages).value == 1.0


def test_partial_credit_is_the_f1_of_the_calls(judge: Judge, calling: Calling) -> None:
    messages = calling(("add", ADD["arguments"]), ("sub", {}), ("sub", {}))
    assert judge(tool_calls(partial=True), "", [ADD, GET], messages=messages).value == 2 / 5
    share = tool_calls(partial=True, allow_extra=True)
    assert judge(share, "", [ADD, GET], messages=messages).value == 1 / 2


def test_a_call_matches_one_of_the_reference_only(judge: Judge, calling: Calling) -> None:
    answer = [{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}]
    # Taking the first that fits would pair 1 with the first and leave 2 without.
    assert judge(tool_calls(), "", answer, messages=calling(("f", {"x": 1}), ("f", {"x": 2}))).value
    twice = calling(("f", {"x": 2}), ("f", {"x": 2}))
    assert judge(tool_calls(), "", answer, messages=twice).value == 0.0


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"city": "Paris"}, 1.0),
        ({"city": "Paris, France", "unit": "C"}, 1.0),
        ({"city": "Paris", "unit": "K"}, 0.0),
        ({"city": "Rome"}, 0.0),
        ({"unit": "C"}, 0.0),
        ({"city": ["Paris"]}, 0.0),
        ({"city": "paris"}, 0.0),
    ],
)
def test_arguments_may_have_several_values_and_be_optional(
    judge: Judge, calling: Calling, given: dict[str, Any], value: float
) -> None:
    answer = [{"weather": {"city": ["Paris", "Paris, France"], "unit": ["C", "F", ""]}}]
    assert judge(tool_calls(), "", answer, messages=calling(("weather", given))).value == value


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"where": {"city": "Paris", "zip": 1}}, 1.0),
        ({"where": {"city": "Paris"}}, 1.0),
        ({"where": {"city": "Rome"}}, 0.0),
        ({"where": {"zip": 1}}, 0.0),
        ({"where": {"city": "Paris", "x": 1}}, 0.0),
        ({"where": [{"city": "Paris"}]}, 0.0),
    ],
)
def test_objects_among_the_allowed_values_list_what_their_keys_may_be(
    judge: Judge, calling: Calling, given: dict[str, Any], value: float
) -> None:
    answer = [{"go": {"where": [{"city": ["Paris", "Lyon"], "zip": [1, ""]}]}}]
    assert judge(tool_calls(), "", answer, messages=calling(("go", given))).value == value


def test_strings_may_be_compared_as_bfcl_does(judge: Judge, calling: Calling) -> None:
    messages = calling(("get", {"city": "new-york", "days": [1, 2]}))
    assert judge(tool_calls(), "", [GET], messages=messages).value == 0.0
    assert judge(tool_calls(lenient_strings=True), "", [GET], messages=messages).value == 1.0


@pytest.mark.parametrize(
    ("reply", "calls", "value"),
    [("It is 3.", [], 1.0), ("", [], 0.0), (" \n", [], 0.0), ("It is 3.", [("add", {})], 0.0)],
)
def test_no_call_is_right_where_none_is_due_and_something_is_said(
    judge: Judge, calling: Calling, reply: str, calls: list[Any], value: float
) -> None:
    assert judge(tool_calls(), reply, [], messages=calling(*calls)).value == value


def test_thousands_of_calls_are_wrong_at_once(judge: Judge, calling: Calling) -> None:
    messages = calling(*[("add", ADD["arguments"])] * 5_000)
    score = judge(tool_calls(allow_extra=True), "", [ADD], messages=messages)
    assert (score.value, score.explanation) == (0.0, "more than 256 calls")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "",
        "add(1, 2)",
        1,
        [1],
        [{}],
        [{"name": "add", "arguments": 1}],
        [{"name": "add", "arguments": "{"}],
        [{"add": {"a": 1}}],
        [{"add": [1]}],
        [{"a": {}, "b": {}}],
        object(),
    ],
)
def test_a_reference_that_lists_no_calls_is_unscorable(
    judge: Judge, calling: Calling, answer: Any
) -> None:
    for messages in (calling(), calling(("add", {}))):
        with pytest.raises(Unscorable, match="the task's answer is no list of tool calls"):
            judge(tool_calls(), "", answer, messages=messages)
