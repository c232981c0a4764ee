"""`close_to`: the last number of the reply is near enough to the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from numbers import Number
from typing import Any

from palestra.types import Score, Unscorable
from palestra.verifiers.number import last_number
from palestra.verifiers.verifier import verifier

_MAX_DIGITS = 50


def close_to(
    *, absolute: float = 0.0, relative: float = 0.0, digits: int | None = None
) -> Callable[..., Score]:
    """A verifier: 1 if the last number of the reply is within the tolerance of the reference.

    Within `absolute`, or within the share `relative` of the reference, or off by at most half a
    unit in the reference's significant digit number `digits` (3: 3.14159 accepts 3.14 and 3.138);
    whichever of them is widest. Bounds belong to it, and everything is computed exactly. The wider
    the tolerance, the more a guess is worth: 5% of a percentage is five tries in a hundred.

    Raises:
        ValueError: no tolerance at all, a negative or infinite one, or digits not from 1 to 50.
    """
    for name, number in {"absolute": absolute, "relative": relative}.items():
        if not 0 <= number < float("inf"):
            raise ValueError(f"{name} must be at least 0 and finite, got {number}")
    if digits is not None and not 1 <= digits <= _MAX_DIGITS:
        raise ValueError(f"digits must be from 1 to {_MAX_DIGITS}, got {digits}")
    if not absolute and not relative and digits is None:
        raise ValueError("close_to needs a tolerance: use number for exact equality")

    @verifier(name="close_to")
    def is_close(reply: str, answer: Any) -> Score:
        """1 if it is close enough. Raises Unscorable for a reference that is no number."""
        expected = _reference(answer)
        found = last_number(reply)
        if found is None:
            return Score(value=0.0, explanation="the reply has no number that can be read")
        tolerance = max(Fraction(absolute), Fraction(relative) * abs(expected))
        if digits is not None and expected != 0:
            tolerance = max(tolerance, Fraction(10) ** (_exponent(expected) - digits + 1) / 2)
        if abs(found - expected) <= tolerance:
            return Score(value=1.0)
        return Score(value=0.0, explanation="the last number is not close enough")

    return is_close


def _exponent(value: Fraction) -> int:
    """The power of ten of a number's first digit: 2 for 123, -2 for 0.0123."""
    value = abs(value)
    exponent = round(math.log10(value.numerator) - math.log10(value.denominator))
    while value < Fraction(10) ** exponent:
        exponent -= 1
    while value >= Fraction(10) ** (exponent + 1):
        exponent += 1
    return exponent


def _reference(answer: Any) -> Fraction:
    value = None
    if isinstance(answer, str | Number) and answer is not True and answer is not False:
        try:
            text = str(answer).strip()
        except ValueError:  # an integer of too many digits to print
            text = ""
        if text[-1:].isdigit() and " " not in text:
            value = last_number(text)
    if value is None:
        shown = answer if isinstance(answer, str) else type(answer).__name__
        raise Unscorable(f"close_to needs a number as the task's answer, got {shown!r:.80}")
    return value
