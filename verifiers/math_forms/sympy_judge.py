"""Compare integrals, sums and limits by sympy, in a worker process that can be killed.

Importing this module imports sympy, so only the worker does.
"""

from __future__ import annotations

import random
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy

EQUAL, UNEQUAL = "equal", "unequal"
BAD_REFERENCE, BAD_ANSWER = "bad reference", "bad answer"

_DIGITS = 30


def judge(reference: str, answer: str) -> str:
    """Whether two LaTeX texts are equal, or which of them cannot be read; UNEQUAL if in doubt."""
    expected = _read(reference)
    if expected is None:
        return BAD_REFERENCE
    given = expected if answer == reference else _read(answer)
    if given is None:
        return BAD_ANSWER
    return EQUAL if _same(expected, given) else UNEQUAL


def _read(text: str) -> Any:
    try:
        # latex2sympy builds the tree from a grammar: no text is evaluated as Python.
        parsed = latex2sympy(text)
        return parsed.doit() if hasattr(parsed, "doit") else parsed
    except (MemoryError, RecursionError):
        raise
    except Exception:  # the grammar's, sympy's and antlr's own, of many kinds
        return None


def _same(first: Any, second: Any) -> bool:
    try:
        if first == second:
            return True
        if isinstance(first, sympy.MatrixBase) or isinstance(second, sympy.MatrixBase):
            return first.shape == second.shape and all(
                _same(a, b) for a, b in zip(first, second, strict=True)
            )
        if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
            return False
        difference = first - second
        return _vanishes(difference) and (
            sympy.simplify(difference) == 0 or _vanishes(difference, points=8)
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False


def _vanishes(difference: Any, points: int = 3) -> bool:
    """Whether it is 0 to 30 digits at random points."""
    symbols = sorted(difference.free_symbols, key=str)
    source = random.SystemRandom()
    for _ in range(points if symbols else 1):
        values = {symbol: sympy.Rational(source.randrange(2, 12)) for symbol in symbols}
        value = sympy.N(difference.subs(values).doit(), _DIGITS)
        if not value.is_number or abs(value) > sympy.Float(10) ** (-_DIGITS // 2):
            return False
    return True
