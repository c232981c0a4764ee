from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from palestra.types import Score, Unscorable
from palestra.verifiers import close_to

Judge = Callable[..., Score]


@pytest.mark.parametrize(
    ("options", "answer", "right", "wrong"),
    [
        ({"absolute": 0.5}, "10", ["10", "9.5", "10.5", "it is 10.2."], ["9.49", "10.51", "-10"]),
        ({"relative": 0.01}, 200, ["200", "198", "202", "201.9"], ["197.9", "202.1", "2"]),
        ({"relative": 0.01}, -200, ["-198", "-202"], ["-197.9", "200"]),
        ({"digits": 3}, "3.14159", ["3.14", "3.1366", "3.1465"], ["3.13", "3.1", "3.15"]),
        ({"digits": 2}, "0.00123", ["0.0012", "1.25e-3"], ["0.0013", "0.001", "0.012"]),
        ({"digits": 1}, "1000", ["1000", "1500", "500"], ["1501", "499"]),
        ({"digits": 3}, "999.9", ["1000", "999.4"], ["1001", "999.3"]),
        ({"absolute": 1, "relative": 0.1}, 100, ["90", "110"], ["89", "111"]),
        ({"absolute": 1, "relative": 0.1}, 1, ["0", "2"], ["2.1"]),
        ({"relative": 0.1}, 0, ["0"], ["0.0001"]),
        ({"digits": 3}, 0, ["0", "0.0"], ["1e-9"]),
        ({"absolute": 0.1}, Fraction(1, 3), ["0.4", "1/3"], ["0.44"]),
        ({"absolute": 0.1}, Decimal("0.5"), ["0.6"], ["0.61"]),
        ({"absolute": 1}, np.int64(3), ["4"], ["5"]),
        ({"absolute": 1}, np.float32(0.5), ["1.5"], ["1.6"]),
    ],
)
def test_what_is_near_enough_is_right(
    judge: Judge, options: dict[str, Any], answer: Any, right: list[str], wrong: list[str]
) -> None:
    for reply in right:
        assert judge(close_to(**options), reply, answer).value == 1.0, reply
    for reply in [*wrong, "", "none", "nan", "inf", "1e999999999"]:
        assert judge(close_to(**options), reply, answer).value == 0.0, reply


@pytest.mark.parametrize("answer", [None, "", "ten", True, [1], "1 2", float("nan"), float("inf")])
def test_a_reference_that_is_no_number_is_unscorable(judge: Judge, answer: Any) -> None:
    for reply in ("", "10"):
        with pytest.raises(Unscorable, match="close_to needs a number as the task's answer, got"):
            judge(close_to(absolute=1), reply, answer)


def test_huge_numbers_are_no_trouble(judge: Judge) -> None:
    assert judge(close_to(digits=3), "9" * 3_900, "9" * 3_900).value == 1.0
    assert judge(close_to(digits=3), "1", "9" * 3_900).value == 0.0
    assert judge(close_to(digits=3), "9" * 1_000_000, "9").value == 0.0
    with pytest.raises(Unscorable):
        judge(close_to(digits=3), "1", 10**5_000)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "close_to needs a tolerance"),
        ({"absolute": -1}, "absolute must be at least 0 and finite, got -1"),
        ({"relative": float("inf")}, "relative must be at least 0 and finite, got inf"),
        ({"absolute": float("nan")}, "absolute must be at least 0 and finite, got nan"),
        ({"digits": 0}, "digits must be from 1 to 50, got 0"),
    ],
)
def test_a_tolerance_that_makes_no_sense_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        close_to(**options)
