import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palestra.verifiers.code.compare import same_output, same_value
from palestra.verifiers.code.guest.plain import Refused, decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.complex_numbers()
)
HASHABLE = st.recursive(
    SCALARS | st.binary(max_size=4),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=12,
)


def same(found: Any, expected: Any, *, tolerance: float = 0.0, strict: bool = True) -> bool:
    return same_value(
        json.loads(json.dumps(encode(found))),
        encode(expected),
        tolerance=tolerance,
        strict_tuples=strict,
    )


@given(VALUES)
def test_a_plain_value_crosses_as_it_is(value: Any) -> None:
    crossed = decode(json.loads(json.dumps(encode(value))))
    assert type(crossed) is type(value)
    assert same(crossed, value)


@given(VALUES)
def test_a_value_is_the_same_as_itself(value: Any) -> None:
    assert same(value, value)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, True),
        (0, None),
        (0, False),
        (1, "1"),
        ("", None),
        ([], ()),
        ([], {}),
        ([1], [1, 1]),
        ([1, 2], [2, 1]),
        ({1}, [1]),
        ({1, 2}, {1, 3}),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({1: "x"}, {True: "x"}),
        ({"a": None}, {"b": None}),
        (b"a", "a"),
        (b"a", b"b"),
        (1j, 2j),
        (math.nan, 0.0),
        (math.inf, -math.inf),
        (math.inf, 1e308),
        (2**64, 2**64 + 1),
        (0.1 + 0.2, 0.3),
        (10**400, math.inf),
    ],
)
def test_different_values_differ_both_ways(left: Any, right: Any) -> None:
    assert not same(left, right) and not same(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (2, 2.0),
        (2**70, float(2**70)),
        (-0.0, 0),
        (math.nan, math.nan),
        ({1: "x"}, {1.0: "x"}),
        ({(1, frozenset({2, 3}))}, {(1, frozenset({3, 2}))}),
        ({"a": [1, {"b": (2,)}]}, {"a": [1, {"b": (2,)}]}),
        ({3, 1, 2}, frozenset({1, 2, 3})),
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}),
    ],
)
def test_equal_values_are_the_same_both_ways(left: Any, right: Any) -> None:
    assert same(left, right) and same(right, left)


def test_tuples_are_lists_unless_they_are_told_apart() -> None:
    assert same((1, [2]), [1, (2,)], strict=False)
    assert not same((1,), [1], strict=True)
    assert not same({1}, [1], strict=False)


def test_floats_are_compared_with_a_tolerance_and_integers_are_not() -> None:
    assert same([0.1 + 0.2], [0.3], tolerance=1e-9)
    assert not same(0.31, 0.3, tolerance=1e-9)
    assert not same(10**12, 10**12 + 1, tolerance=1e-9)
    assert same(1e-12, 0.0, tolerance=1e-9)


class LikeAnything(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__

    def __index__(self) -> int:
        return 42

    def __repr__(self) -> str:
        return "42"


def test_what_a_derived_class_overrides_does_not_count() -> None:
    assert encode(LikeAnything(7)) == 7
    assert encode({LikeAnything(7): [LikeAnything(8)]}) == ["dict", [7, ["list", 8]]]


def test_an_object_is_refused_by_type_and_depth_is_not() -> None:
    with pytest.raises(Refused) as refusal:
        encode([object()])
    assert refusal.value.by_type
    nested: list[Any] = []
    for _ in range(1000):
        nested = [nested]
    with pytest.raises(Refused) as refusal:
        encode(nested)
    assert not refusal.value.by_type


@pytest.mark.parametrize(
    "forged",
    [
        [],
        {},
        ["list"],
        ["list", ["list"]],
        ["nonsense", 1],
        [["list"], 1],
        ["dict", 1],
        ["dict", [1]],
        ["dict", [["list", ["set"]], 1]],
        ["int", "zz"],
        ["int", 1],
        ["float", []],
        {"list": 1},
        ["set", {"a": 1}],
    ],
)
def test_forged_data_equal_nothing(forged: Any) -> None:
    for expected in (1, 1.0, "a", None, [1], {1}, {"a": 1}, (1, 2), b"a"):
        wire = encode(expected)
        assert not same_value(forged, wire, tolerance=1e-9, strict_tuples=False)


def test_members_whose_hashes_collide_take_no_longer() -> None:
    modulus = 2**61 - 1
    expected = encode(set(range(20_000)))
    colliding = ["set", *(i * modulus for i in range(20_000))]  # all hash to 0
    start = time.monotonic()
    assert not same_value(colliding, expected, tolerance=0, strict_tuples=True)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("found", "expected", "is_same"),
    [
        ("1 2\n", "1 2", True),
        ("1  2 \r\n\n", "1 2\n", True),
        ("\n1\n2", "1\n2\n", True),
        ("1 2", "1\n2", False),
        ("1\n\n2", "1\n2", False),
        ("1 2 3", "1 2", False),
        ("", "", True),
        ("", "0", False),
        ("Yes", "YES", False),
        ("0.30000000000000004", "0.3", True),
        ("3e-1", "0.3", True),
        ("1", "1.0", True),
        ("1000000000001", "1000000000000", False),
        ("1_0.0", "10.0", False),
        ("nan", "1.0", False),
        ("inf", "1e999", False),
        ("0.31", "0.3", False),
    ],
)
def test_outputs_are_compared_word_by_word(found: str, expected: str, is_same: bool) -> None:
    assert same_output(found, expected, tolerance=1e-9) is is_same
