"""Compares what a program gave with what was expected: encoded values, and text output."""

from __future__ import annotations

import json
import math
from typing import Any

_ORDERED = ("list", "tuple")
_UNORDERED = ("set", "frozenset")


def same_value(found: Any, expected: Any, *, tolerance: float, strict_tuples: bool) -> bool:
    """Whether two values, encoded as in guest/plain.py, are the same.

    Numbers are the same by value, floats within `tolerance` (relative and absolute), NaN and NaN;
    a bool is no number, a set is no list. A tuple is a list unless `strict_tuples`. Members of sets
    and keys are compared without tolerance. `found` may be anything: it takes no longer than
    `expected` is large.
    """
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return type(found) is type(expected) and bool(found == expected)
    if (number := _number(expected)) is not None:
        other = _number(found)
        return other is not None and _close(other, number, tolerance)
    if type(found) is not list or not found or len(found) != len(expected):
        return False
    tag, expected_tag = found[0], expected[0]
    if expected_tag in _ORDERED:
        if tag != expected_tag and (strict_tuples or tag not in _ORDERED):
            return False
        return all(
            same_value(a, b, tolerance=tolerance, strict_tuples=strict_tuples)
            for a, b in zip(found[1:], expected[1:], strict=True)
        )
    if expected_tag in _UNORDERED:
        if tag not in _UNORDERED:
            return False
        return {_key(item, strict_tuples) for item in expected[1:]} == {
            _key(item, strict_tuples) for item in found[1:]
        }
    if expected_tag == "dict":
        return tag == "dict" and _same_pairs(found[1:], expected[1:], tolerance, strict_tuples)
    return bool(found == expected)  # bytes, complex


def _same_pairs(
    found: list[Any], expected: list[Any], tolerance: float, strict_tuples: bool
) -> bool:
    values = {}
    for pair in found:
        if type(pair) is not list or len(pair) != 2:
            return False
        values[_key(pair[0], strict_tuples)] = pair[1]
    if len(values) != len(expected):
        return False
    missing = object()
    return all(
        same_value(
            values.get(_key(key, strict_tuples), missing),
            value,
            tolerance=tolerance,
            strict_tuples=strict_tuples,
        )
        for key, value in expected
    )


def _key(item: Any, strict_tuples: bool) -> str:
    """The same text for the same hashable value."""
    # A text, because the hashes of numbers can be made to collide.
    if (number := _number(item)) is not None:
        whole = math.isfinite(number) and number == int(number)
        return str(hex(int(number)) if whole else float(number))
    if type(item) is list and item:
        tag, items = item[0], [_key(member, strict_tuples) for member in item[1:]]
        if tag in _UNORDERED:
            tag, items = "set", sorted(items)
        return json.dumps([tag, *items])
    return json.dumps(item, default=repr)


def _number(data: Any) -> int | float | None:
    if type(data) in (int, float):
        value: int | float = data
        return value
    if type(data) is list and len(data) == 2 and type(data[1]) is str:
        try:
            if data[0] == "int":
                return int(data[1], 16)
            if data[0] == "float":
                return float(data[1])
        except ValueError:
            return None
    return None


def _close(found: int | float, expected: int | float, tolerance: float) -> bool:
    if found == expected:
        return True
    if isinstance(found, int) and isinstance(expected, int):
        return False
    try:
        if math.isnan(expected) or math.isnan(found):
            return math.isnan(expected) and math.isnan(found)
        return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an int that is no float
        return False


def same_output(found: str, expected: str, *, tolerance: float) -> bool:
    """Whether two outputs agree line by line.

    How much white space stands between words, at the ends of lines and at the end of the whole
    does not matter, nor do blank lines at the beginning. Words that are both numbers, one of them
    with a point or an exponent, may differ by `tolerance` (relative and absolute).
    """
    found_lines, expected_lines = found.strip().split("\n"), expected.strip().split("\n")
    if len(found_lines) != len(expected_lines):
        return False
    return all(
        ours == theirs or _same_words(ours.split(), theirs.split(), tolerance)
        for ours, theirs in zip(found_lines, expected_lines, strict=True)
    )


def _same_words(found: list[str], expected: list[str], tolerance: float) -> bool:
    return len(found) == len(expected) and all(
        a == b or (tolerance > 0 and _same_number(a, b, tolerance))
        for a, b in zip(found, expected, strict=True)
    )


def _same_number(found: str, expected: str, tolerance: float) -> bool:
    both = found + expected
    if len(both) > 800 or "_" in both or not any(sign in both for sign in ".eE"):
        return False
    try:
        a, b = float(found), float(expected)
    except ValueError:
        return False
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
