"""`calculator`: exact arithmetic, one operation per call."""

from __future__ import annotations

from typing import Literal

from palestra.tools.tool import tool
from palestra.types import ToolError

# Arithmetic on hostile arguments must stay cheap, and its results short.
MAX_DIGITS = 100

Number = int | float


# `async`, so that it runs on the event loop: a thread would cost more than the operation.
@tool
async def calculator(a: Number, operator: Literal["+", "-", "*", "/"], b: Number) -> Number:
    """Apply one arithmetic operation to two numbers.

    Integers stay exact; a division that leaves a remainder gives a decimal number.
    """
    _refuse_large(a, b)
    match operator:
        case "+":
            result = a + b
        case "-":
            result = a - b
        case "*":
            result = a * b
        case _:
            result = _divide(a, b)
    _refuse_large(result)
    return result


def _divide(a: Number, b: Number) -> Number:
    if b == 0:
        raise ToolError("division by zero")
    if isinstance(a, int) and isinstance(b, int) and a % b == 0:
        return a // b
    return a / b


def _refuse_large(*numbers: Number) -> None:
    for number in numbers:
        if abs(number) >= 10**MAX_DIGITS:
            raise ToolError(f"too large: numbers have at most {MAX_DIGITS} digits")
