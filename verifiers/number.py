"""`number`: the last number of the reply is the reference, exactly."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from palestra.types import Score, Unscorable

# A hostile reply may hold megabytes of digits: only this much before its last digit is looked at.
MAX_CHARS = 4_000
MAX_EXPONENT = 1_000

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)(?:[eE][-+−]?[0-9]+)?"
# A digit inside a word is no number ("H2O"), nor one after a version's second dot ("1.2.3"); a sign
# after a number or a bracket is an operator ("10-3" ends with 3).
_NUMBER = re.compile(
    r"(?<![A-Za-z_0-9])(?<![0-9]\.)(?:(?<![)\]}%])(?P<sign>[-+−]))?\$?"
    rf"(?P<numerator>{_UNSIGNED})(?:/(?P<denominator>{_UNSIGNED}))?"
)


def number(reply: str, answer: Any) -> Score:
    """1 if the last number in the reply equals the reference, exactly (0.333 is not 1/3).

    Read are integers, decimals, thousands commas, fractions like 3/4, exponents and signs; what
    follows the number ("42 apples.") does not matter.

    Raises:
        Unscorable: the reference is not a number.
    """
    expected = _reference(answer)
    found = last_number(reply)
    if found is None:
        return Score(value=0.0, explanation="the reply has no number that can be read")
    if found == expected:
        return Score(value=1.0)
    return Score(value=0.0, explanation=f"the last number is {_shown(found)}, not {_shown(answer)}")


def last_number(text: str) -> Fraction | None:
    """The last number in a text; None if there is none, or it is too long or large to be meant."""
    end = max(text.rfind(digit) for digit in "0123456789") + 1
    start = max(0, end - MAX_CHARS)
    last = max(_NUMBER.finditer(text[start:end]), key=re.Match.start, default=None)
    # A number at the edge of the window may begin before it.
    if last is None or (start > 0 and last.start() < 2):
        return None
    return _value(last)


def _reference(answer: Any) -> Fraction:
    try:
        match = _NUMBER.fullmatch(str(answer).strip()[: MAX_CHARS + 1])
    except ValueError:  # an integer of too many digits to print
        match = None
    value = None if match is None or match.end() > MAX_CHARS else _value(match)
    if value is None:
        raise Unscorable(f"number needs a number as the task's answer, got {_shown(answer)}")
    return value


def _value(match: re.Match[str]) -> Fraction | None:
    numerator = _fraction(match["numerator"])
    denominator = _fraction(match["denominator"] or "1")
    if numerator is None or not denominator:
        return None
    value = numerator / denominator
    return -value if match["sign"] in ("-", "−") else value


def _fraction(unsigned: str) -> Fraction | None:
    digits, _, exponent = unsigned.replace(",", "").replace("−", "-").lower().partition("e")
    # 10**exponent is computed in full: 1e999999999 would take the memory of the machine.
    if abs(int(exponent or "0")) > MAX_EXPONENT:
        return None
    return Fraction(digits) * Fraction(10) ** int(exponent or "0")


def _shown(value: Any) -> str:
    try:
        text = str(value)
    except ValueError:
        return "a huge one"
    return text if len(text) <= 80 else text[:79] + "…"
