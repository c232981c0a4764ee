"""Compare expressions numerically: in floats, and to hundreds of digits, within bounds."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from palestra.verifiers.math_forms.evaluation import MAX_RANGE_BITS, Evaluation
from palestra.verifiers.math_forms.tree import (
    Call,
    Node,
    Number,
    Symbol,
    TooLarge,
    Undefined,
    is_value,
    letters,
    walk,
)

START_BITS = 200
# Nodes times precision (in units of the starting one): some tens of milliseconds.
MAX_WORK = 800

# mpmath's precision is a setting of the context, so one evaluation at a time.
_lock = threading.Lock()


@functools.cache
def _float_context() -> Any:
    import mpmath  # type: ignore[import-untyped]

    return mpmath.fp


@functools.cache
def _precise_context() -> Any:
    import mpmath

    context = mpmath.MPContext()
    # mpmath keeps π, e and logarithms at the highest precision asked for so far, without a lock.
    # Asked for the highest at once, they never change under another thread that uses mpmath.
    context.prec = 3 * MAX_RANGE_BITS
    for constant in (context.pi, context.e, context.ln2, context.ln10):
        context.mpf(constant)
    return context


def agree_in_floats(
    first: Node, second: Node, point: Mapping[str, Fraction], *, real: bool
) -> bool | None:
    """Whether two expressions have nearly the same value; None if floats cannot tell.

    Raises Undefined if one of them has no value at the point.
    """
    try:
        evaluation = Evaluation(_float_context(), point, real=real)
        gap = abs(evaluation.value(first) - evaluation.value(second))
    except Undefined:
        raise
    except (TooLarge, ArithmeticError, ValueError, TypeError):
        return None
    return bool(gap <= 1e-9 * evaluation.largest) if gap < 1e250 else None


def agree_precisely(
    first: Node, second: Node, point: Mapping[str, Fraction], *, real: bool
) -> bool:
    """Whether two expressions agree to far more digits than any of their parts has.

    Raises Undefined if one of them has no value at the point, TooLarge beyond the bounds.
    """
    bits = START_BITS
    nodes = sum(1 for side in (first, second) for _ in walk(side))
    with _lock:
        context = _precise_context()
        while True:
            if nodes * (bits / START_BITS) ** 1.2 > MAX_WORK:
                raise TooLarge
            context.prec = bits
            evaluation = Evaluation(context, point, real=real)
            try:
                one, two = evaluation.value(first), evaluation.value(second)
            except (ArithmeticError, ValueError, TypeError):
                raise Undefined from None
            # A tiny or huge part, or one of many digits, must not drown: 1 and 1 + 10**-99 differ.
            needed = START_BITS + 2 * evaluation.range_bits
            if needed <= bits or bits > START_BITS or evaluation.range_bits <= START_BITS // 3:
                scale = max(abs(one), abs(two), 1)
                return bool(abs(one - two) <= scale * context.ldexp(1, -bits // 2))
            if abs(one - two) > max(abs(one), abs(two)) * context.ldexp(1, -40) and (
                evaluation.range_bits < START_BITS // 2
            ):
                return False
            bits = needed


def approximate(node: Node) -> float:
    """A real constant's value as a float, for ordering. Raises Undefined or TooLarge."""
    if isinstance(node, Symbol) and node.name == "oo":
        return math.inf
    if isinstance(node, Call) and node == Call("neg", (Symbol("oo"),)):
        return -math.inf
    try:
        return float(Evaluation(_float_context(), {}, real=True).value(node))
    except (ArithmeticError, ValueError, TypeError):
        raise Undefined from None


def digits_of(node: Node, places: int) -> tuple[Fraction, Fraction]:
    """A real constant's value to well beyond so many decimal places, with its error's bound."""
    with _lock:
        context = _precise_context()
        context.prec = min(MAX_RANGE_BITS, START_BITS + 4 * max(0, places))
        try:
            value = Evaluation(context, {}, real=True).value(node)
            sign, mantissa, exponent, _ = value._mpf_
        except (ArithmeticError, ValueError, TypeError, AttributeError):
            raise Undefined from None
        exact = Fraction(int(mantissa)) * Fraction(2) ** exponent
        return (-exact if sign else exact), Fraction(1, 2 ** (context.prec // 2))


def computable(node: Node) -> bool:
    """Whether an expression's value can be computed within the bounds, at least at some point."""
    if not is_value(node):
        return True
    point = {name: Fraction(29, 17) for name in letters(node)}
    try:
        agree_precisely(node, Number(Fraction(0)), point, real=False)
    except TooLarge:
        return False
    except Undefined:
        return True
    return True
