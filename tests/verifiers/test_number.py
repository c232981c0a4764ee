import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palestra.types import Unscorable
from palestra.verifiers import number


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("42", "42"),
        ("42", 42),
        ("The answer is 42.", "42"),
        ("6 * 7 = 42", "42"),
        ("**42**", "42"),
        ("\\boxed{42}", "42"),
        ("-5", -5),
        ("It is −5", "-5"),
        ("+5", "5"),
        ("x=-5", "-5"),
        ("10-3", "3"),
        ("(2)-3", "3"),
        ("1,234,567", "1234567"),
        ("1234567", "1,234,567"),
        ("$1,000.50", "1000.5"),
        ("-$3", "-3"),
        ("0.50", "0.5"),
        (".5", "1/2"),
        ("3/4 of it", "0.75"),
        ("-3/4", Fraction(-3, 4)),
        ("6/8", "3/4"),
        ("1.5/3", "0.5"),
        ("1e3", "1000"),
        ("2.5E-1", "0.25"),
        ("0.1", 0.1),
        ("0.1", Decimal("0.10")),
        ("3", np.int64(3)),
        ("0.5", np.float32(0.5)),
        ("one, 2, 3", "3"),
        ("wait...7", "7"),
        ("42 apples and H2O", "42"),
        ("50%", "50"),
        ("5\n", " 5 "),
        ("9" * 3_000, "9" * 3_000),
        ("42" + " and so on" * 10_000, "42"),
    ],
)
def test_the_last_number_of_the_reply_is_read_exactly(reply: str, answer: Any) -> None:
    assert number(reply, answer).value == 1.0


@pytest.mark.parametrize(
    ("reply", "answer", "why"),
    [
        ("", "42", "no number"),
        ("forty-two", "42", "no number"),
        ("42 or 43", "42", "the last number is 43, not 42"),
        ("0.333", "1/3", "the last number is 333/1000, not 1/3"),
        ("42.000000000000000000001", "42", "the last number is 420"),
        ("5/0", "5", "no number"),
        ("nan", "42", "no number"),
        ("version 1.2.3", "3", "the last number is 6/5, not 3"),
        ("inf", "42", "no number"),
        ("10**5 x5y7", "7", "the last number is 5"),
        ("1e999999999", "42", "no number"),
        ("1e-999999999", "0", "no number"),
        ("1e" + "9" * 3_000, "42", "no number"),
        ("9" * 1_000_000, "9", "no number"),
        ("４２", "42", "no number"),
    ],
)
def test_any_other_reply_is_wrong_and_told_why(reply: str, answer: str, why: str) -> None:
    score = number(reply, answer)
    assert score.value == 0.0
    assert why in score.explanation
    assert len(score.explanation) < 250


@pytest.mark.parametrize(
    "answer",
    [None, True, "", "forty-two", "42 apples", "#### 42", [42], {"answer": 42}, float("nan"),
     float("inf"), "1/0", "1e999999999", "9" * 5_000, "1 2"],
)  # fmt: skip
def test_a_reference_that_is_no_number_is_unscorable(answer: Any) -> None:
    with pytest.raises(Unscorable, match="number needs a number as the task's answer, got"):
        number("42", answer)


def test_a_reference_too_long_to_print_is_unscorable() -> None:
    with pytest.raises(Unscorable, match="got a huge one"):
        number("42", 10**5_000)


@settings(deadline=None)  # the machine is shared
@given(st.integers(), st.text(alphabet="abc xyz:=\n", max_size=10))
def test_every_integer_is_recognised_in_each_way_of_writing_it(value: int, before: str) -> None:
    for written in (f"{value}", f"{value:,}", f"{value}.0", f"{value}/1", f"{value}e0"):
        assert number(f"{before} {written}.", value).value == 1.0
        assert number(f"{before} {written}.", value + 1).value == 0.0


@settings(deadline=None)  # the machine is shared
@given(st.fractions())
def test_every_fraction_is_recognised(value: Fraction) -> None:
    assert number(f"so {value}", str(value)).value == 1.0


@settings(deadline=None)  # the machine is shared
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_recognised_as_python_prints_it(value: float) -> None:
    assert number(f"{value}", value).value == 1.0


@settings(deadline=None)  # the machine is shared
@given(st.text(alphabet="0123456789.,/-−+eE $%)x", max_size=60))
def test_any_reply_is_judged(reply: str) -> None:
    assert number(reply, "42").value in (0.0, 1.0)


@pytest.mark.parametrize(
    "piece", ["1", "1,", "1,234", "123,", "1.", "1/", "-", "1e", "1e9", "x1", "."]
)
def test_hostile_repetition_is_judged_in_bounded_time(piece: str) -> None:
    start = time.perf_counter()
    number(piece * (1_000_000 // len(piece)) + "1", "42")
    assert time.perf_counter() - start < 1
