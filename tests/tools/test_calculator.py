import asyncio
from typing import Any

import pytest

from palestra.tools import calculator, run_call
from palestra.types import ToolResult


def compute(a: Any, operator: Any, b: Any) -> ToolResult:
    arguments = {"a": a, "operator": operator, "b": b}
    call = {"id": "call_0", "function": {"name": "calculator", "arguments": arguments}}
    return asyncio.run(run_call(call, {"calculator": calculator}, {}))


@pytest.mark.parametrize(
    ("a", "operator", "b", "expected"),
    [
        (12, "+", 7, "19"),
        (12, "-", 17, "-5"),
        (10**40, "*", 10**40, "1" + "0" * 80),
        (84, "/", 2, "42"),
        (-84, "/", 2, "-42"),
        (7, "/", 2, "3.5"),
        (1.5, "*", 3, "4.5"),
        (0, "/", 5, "0"),
    ],
)
def test_integers_stay_exact_and_other_numbers_are_decimal(
    a: float, operator: str, b: float, expected: str
) -> None:
    assert compute(a, operator, b).content == expected


@pytest.mark.parametrize(
    ("a", "operator", "b", "expected"),
    [
        (1, "/", 0, "division by zero"),
        (1, "/", 0.0, "division by zero"),
        (10**60, "*", 10**60, "too large: numbers have at most 100 digits"),
        (10**4000, "-", 10**4000, "too large: numbers have at most 100 digits"),
        (1e300, "*", 1e300, "too large: numbers have at most 100 digits"),
        (10**99, "/", 1e-300, "too large: numbers have at most 100 digits"),
    ],
)
def test_what_cannot_be_computed_is_an_answer_for_the_model(
    a: float, operator: str, b: float, expected: str
) -> None:
    result = compute(a, operator, b)
    assert (result.error, result.content) == ("tool_error", expected)


def test_other_operators_are_refused_by_the_schema() -> None:
    result = compute(2, "**", 10**9)
    assert result.error == "bad_arguments"
    assert "should be '+', '-', '*' or '/'" in result.content
