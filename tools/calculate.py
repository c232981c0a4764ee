"""`calculate`: an arithmetic expression, read as a syntax tree and never run as code."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

from palestra.tools.tool import tool
from palestra.types import ToolError

MAX_CHARS = 1000
MAX_DEPTH = 50
# Of whole numbers. With so few, every operation takes microseconds.
MAX_DIGITS = 1000
_MAX_BITS = int(MAX_DIGITS * math.log2(10))

Number = int | float

_CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e, "tau": math.tau}


# `async`, so that it runs on the event loop: a thread would cost more than the evaluation.
@tool
async def calculate(expression: str) -> Number:
    """Evaluate an arithmetic expression such as `2 * (3 + 4) ** 2 / sqrt(49)`.

    Knows + - * / // % ** (or ^), parentheses, pi, e, and the functions sqrt, exp, log, log2, log10,
    sin, cos, tan, asin, acos, atan, radians, degrees, abs, round, floor, ceil, min, max, gcd, lcm,
    comb and factorial. Whole numbers stay exact.
    """
    if len(expression) > MAX_CHARS:
        raise ToolError(f"too long: an expression has at most {MAX_CHARS} characters")
    text = expression.strip().replace("^", "**").replace("×", "*").replace("÷", "/")
    try:
        tree = ast.parse(text.replace("−", "-"), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        hint = "; write 80000, not 80,000" if re.search(r"\d,\d", text) else ""
        raise ToolError(
            f"this is no arithmetic expression: use numbers and + - * / ** ( ){hint}"
        ) from None
    try:
        return _evaluate(tree.body, MAX_DEPTH)
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (ValueError, TypeError) as error:  # e.g. sqrt(-1), round(1, 2.5)
        raise ToolError(str(error)) from None
    except OverflowError:
        raise ToolError("the result is too large") from None


def _evaluate(node: ast.expr, depth: int) -> Number:
    if depth == 0:
        raise ToolError(f"nested too deeply: at most {MAX_DEPTH} levels")
    match node:
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            return _checked(value)
        case ast.Name(name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(ast.USub(), operand):
            return -_evaluate(operand, depth - 1)
        case ast.UnaryOp(ast.UAdd(), operand):
            return _evaluate(operand, depth - 1)
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            a, b = _evaluate(left, depth - 1), _evaluate(right, depth - 1)
            return _checked(_OPERATORS[type(op)](a, b))
        case ast.Call(ast.Name(name), arguments, []) if name in _FUNCTIONS:
            values = [_evaluate(argument, depth - 1) for argument in arguments]
            return _checked(_FUNCTIONS[name](*values))
        case ast.Name(name) | ast.Call(ast.Name(name), _, []):
            raise ToolError(f"unknown name {name[:40]!r}")
        case ast.Tuple():
            raise ToolError("commas only between a function's arguments: write 80000, not 80,000")
    raise ToolError(f"not allowed in an expression: {ast.unparse(node)[:80]}")


def _checked(number: Number) -> Number:
    if isinstance(number, int):
        if number.bit_length() > _MAX_BITS:
            raise ToolError(f"too large: whole numbers have at most {MAX_DIGITS} digits")
    elif not math.isfinite(number):
        raise ToolError("the result is too large")
    return number


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
        return a // b
    return a / b


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        if base.bit_length() * exponent > _MAX_BITS + exponent:
            raise ToolError(f"too large: whole numbers have at most {MAX_DIGITS} digits")
        return int(base**exponent)
    result = base**exponent
    if isinstance(result, complex):
        raise ToolError("a root of a negative number is not real")
    return float(result)


def _factorial(number: Number) -> int:
    if not isinstance(number, int):
        raise ToolError(f"factorial needs a whole number, got {number}")
    if number >= 450:  # 450! has 1001 digits
        raise ToolError(f"too large: whole numbers have at most {MAX_DIGITS} digits")
    return math.factorial(number)


def _combinations(n: Number, k: Number) -> int:
    if not (isinstance(n, int) and isinstance(k, int)):
        raise ToolError(f"comb needs whole numbers, got {n} and {k}")
    # comb(n, k) >= (n / k) ** k: what passes is at most a few times as long as MAX_DIGITS.
    fewer = min(k, n - k)
    if fewer > 0 and fewer * (math.log2(n) - math.log2(fewer)) > _MAX_BITS:
        raise ToolError(f"too large: whole numbers have at most {MAX_DIGITS} digits")
    return math.comb(n, k)


_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs,
    "acos": math.acos,
    "asin": math.asin,
    "atan": math.atan,
    "ceil": math.ceil,
    "comb": _combinations,
    "cos": math.cos,
    "degrees": math.degrees,
    "exp": math.exp,
    "factorial": _factorial,
    "floor": math.floor,
    "gcd": math.gcd,
    "lcm": math.lcm,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "max": max,
    "min": min,
    "radians": math.radians,
    "round": round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
