from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palestra.verifiers.json_answer import NotJson, canonical, read_answer, read_json, same_json

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        (0, -0.0),
        (10**20, 1e20),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1, [2.0]], [1.0, [2]]),
        ("é", "é"),
    ],
)
def test_json_values_are_equal_by_type_and_value(left: Any, right: Any) -> None:
    assert same_json(left, right)
    assert same_json(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, True),
        (0, False),
        (1, "1"),
        (None, False),
        (None, "null"),
        (None, 0),
        ("", None),
        ([], {}),
        ([1, 2], [2, 1]),
        ([1], 1),
        ({"a": None}, {}),
        ("a", "A"),
        (0.1, 0.1000000001),
        (2**53 + 1, float(2**53)),
        ({"a": "1,b:2"}, {"a": 1, "b": 2}),
        (["a,b"], ["a", "b"]),
        (['a","b'], ["a", "b"]),
        ("é", "e\u0301"),
    ],
)
def test_other_json_values_are_not_equal(left: Any, right: Any) -> None:
    assert not same_json(left, right)
    assert not same_json(right, left)


def test_lists_may_be_bags() -> None:
    assert same_json([1, [2, 3]], [[3, 2], 1.0], unordered=True)
    assert not same_json([1, 1, 2], [1, 2, 2], unordered=True)
    assert not same_json([1, 1], [1], unordered=True)


@given(VALUES, VALUES)
def test_the_canonical_text_tells_values_apart_as_equality_does(left: Any, right: Any) -> None:
    assert same_json(left, left)
    assert same_json(read_json(canonical(left)), left)
    if same_json(left, right):
        assert left == right


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there is no JSON"),
        ("  \n", "there is no JSON"),
        ("{", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("1 2", "not JSON"),
        ("NaN", "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ("[1e999]", "a number too large for a float"),
        ("9" * 5_000, "not JSON"),
        ('{"a": 1, "a": 2}', "a name occurs twice in an object"),
        ("[" * 100 + "]" * 100, "more than 64 levels"),
        ("[" * 200_000, "not JSON"),
        ("[0," * 10_000 + "0" + "]" * 10_000, "not JSON|more than 64 levels"),
        (" " * 1_000_001, "more than 1,000,000 characters"),
        ("\0", "not JSON"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_what_is_no_json_or_says_two_things_is_refused(text: str, problem: str) -> None:
    with pytest.raises(NotJson, match=problem):
        read_json(text)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (' {"a": 1}\n', {"a": 1}),
        ('Here:\n```json\n{"a": 1}\n```\nDone.', {"a": 1}),
        ("```\n[1]\n```\n```json\n[2]\n```", [2]),
        ('"\\ud800"', "\ud800"),
        ("null", None),
    ],
)
def test_the_answer_is_the_reply_or_its_last_block(reply: str, value: Any) -> None:
    assert read_answer(reply) == value


@pytest.mark.parametrize(
    "reply", ['see {"a": 1}', "```json\n[1]\n```\n```json\n[2", "```python\n[1]\n```"]
)
def test_json_inside_of_prose_or_cut_off_is_no_answer(reply: str) -> None:
    with pytest.raises(NotJson):
        read_answer(reply)
