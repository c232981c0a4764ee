"""Whether two expressions have the same value wherever both are defined over the reals."""

from __future__ import annotations

import random
from fractions import Fraction

from palestra.verifiers.math_forms.exact import (
    NotRational,
    modular,
    prime,
    random_residue,
    rational,
)
from palestra.verifiers.math_forms.numeric import agree_in_floats, agree_precisely, digits_of
from palestra.verifiers.math_forms.tree import (
    Call,
    Node,
    Number,
    Symbol,
    TooLarge,
    Undefined,
    letters,
    mentions,
    walk,
)

# A program prints an exact value with at least so many digits; a person who rounds, with fewer.
FLOAT_DIGITS = 12
_PRECISE_POINTS = 3
_WHOLE = frozenset({"binom", "!", "!!", "gcd", "lcm"})
_MAX_LETTERS = 12
# Where the unknowns are tried: near 0, ordinary and large, on both sides.
_RANGES: tuple[tuple[float, float], ...] = (
    (0.1, 0.9),
    (1.1, 3.9),
    (-0.9, -0.1),
    (-3.9, -1.1),
    (4, 12),
    (-12, -4),
)
_RANGES += ((0.1, 0.9), (1.1, 3.9), (12, 90), (0.01, 0.1), (-90, -12), (90, 900))

# Points that are new in each process: no answer can be built to agree at just these.
_source = random.SystemRandom()


def same_value(first: Node, second: Node) -> bool:
    """Whether two arithmetic expressions are equal. Raises TooLarge.

    Rational constants are compared exactly, rational functions modulo a large random prime,
    everything else at random points: first in floats, which refute, then to 60 digits or more.
    """
    if first == second:
        return True
    try:
        one = first.value if isinstance(first, Number) else rational(first)
        two = second.value if isinstance(second, Number) else rational(second)
    except (NotRational, TooLarge):
        pass
    except Undefined:
        return False
    else:
        return one == two or _is_float_of(first, second) or _is_float_of(second, first)
    names = sorted(letters(first) | letters(second))
    if (
        "oo" in (getattr(first, "name", ""), getattr(second, "name", ""))
        or len(names) > _MAX_LETTERS
    ):
        return False
    if not names:
        return _same_constant(first, second)
    if mentions(first, "oo") or mentions(second, "oo"):
        return False
    try:
        point = {name: random_residue() for name in names}
        return modular(first, point, prime()) == modular(second, point, prime())
    except NotRational:
        pass
    except Undefined:
        return False
    return _same_function(first, second, names)


def _same_constant(first: Node, second: Node) -> bool:
    if mentions(first, "oo") or mentions(second, "oo"):
        return False
    real = not (mentions(first, "i") or mentions(second, "i"))
    for reading in (real, False) if real else (False,):
        try:
            if agree_in_floats(first, second, {}, real=reading) is False:
                break
            if agree_precisely(first, second, {}, real=reading):
                return True
            break
        except Undefined:
            continue
    return _is_float_of(first, second) or _is_float_of(second, first)


def _same_function(first: Node, second: Node, names: list[str]) -> bool:
    real = not (mentions(first, "i") or mentions(second, "i"))
    readings = (True, False) if real else (False,)
    points = _points(first, second, names)
    for reading in readings:
        valid: list[dict[str, Fraction]] = []
        for point in points:
            try:
                agreed = agree_in_floats(first, second, point, real=reading)
            except Undefined:
                continue
            if agreed is False:
                return False
            valid.append(point)
        if len(valid) >= 2:
            return _agree_at(first, second, valid, real=reading)
    return False


def _points(first: Node, second: Node, names: list[str]) -> list[dict[str, Fraction]]:
    """Where to compare two functions of these unknowns."""
    calls = [part for side in (first, second) for part in walk(side) if isinstance(part, Call)]
    if any(part.name in _WHOLE and letters(part) for part in calls):
        # n! and binomials are meant for integers.
        return [{name: Fraction(_source.randrange(4, 40)) for name in names} for _ in range(8)]
    points = [
        {
            name: _random_fraction(_RANGES[(start + 5 * offset) % len(_RANGES)])
            for offset, name in enumerate(names)
        }
        for start in range(len(_RANGES))
    ]
    # A piecewise function must also agree where its pieces meet.
    conditions = [part for call in calls if call.name == "cases" for part in call.args[1::2]]
    ends = {p.value for c in conditions for p in walk(c) if isinstance(p, Number)}
    for end in sorted(ends)[:8]:
        points += [dict.fromkeys(names, end), dict.fromkeys(names, -end)]
    return points


def _agree_at(first: Node, second: Node, points: list[dict[str, Fraction]], *, real: bool) -> bool:
    checked = 0
    for point in _source.sample(points, len(points)):
        try:
            if not agree_precisely(first, second, point, real=real):
                return False
        except Undefined:
            continue
        except TooLarge:
            continue
        checked += 1
        if checked == _PRECISE_POINTS:
            return True
    return checked >= 2


def _random_fraction(interval: tuple[float, float]) -> Fraction:
    return Fraction(int(_source.uniform(*interval) * 2**20), 2**20) + Fraction(1, 3_000_017)


def _is_float_of(decimal: Node, exact: Node) -> bool:
    """Whether the first is a decimal of 12 digits or more, all right, of the second's value."""
    sign = 1
    if isinstance(decimal, Call) and decimal.name == "neg":
        decimal, sign = decimal.args[0], -1
    if not isinstance(decimal, Number) or decimal.digits < FLOAT_DIGITS:
        return False
    return rounds_to(Number(sign * decimal.value, decimal.digits, decimal.places), exact, cut=True)


def rounds_to(decimal: Number, exact: Node, *, cut: bool = False) -> bool:
    """Whether a value rounds (or, with `cut`, is cut off) to a decimal at its own precision."""
    try:
        value = rational(exact)
        error = Fraction(0)
    except (NotRational, TooLarge):
        try:
            value, error = digits_of(exact, decimal.places)
        except (Undefined, TooLarge):
            return False
    except Undefined:
        return False
    step = Fraction(1, 10**decimal.places) if decimal.places >= 0 else Fraction(10**-decimal.places)
    gap = value - decimal.value
    if abs(gap) <= step / 2 + error:
        return True
    towards_zero = gap >= 0 if decimal.value >= 0 else gap <= 0
    return cut and towards_zero and abs(gap) < step - error


def logarithm_readings(node: Node) -> list[Node]:
    """The tree with each `log` that has no base as natural, and as decimal."""
    bare = [p for p in walk(node) if isinstance(p, Call) and p.name == "log" and len(p.args) == 1]
    if not bare:
        return [node]
    return [_with_base(node, Symbol("e")), _with_base(node, Number(Fraction(10)))]


def _with_base(node: Node, base: Node) -> Node:
    if not isinstance(node, Call):
        return node
    args = tuple(_with_base(part, base) for part in node.args)
    if node.name == "log" and len(args) == 1:
        return Call("log", (args[0], base))
    return Call(node.name, args)


def expand_signs(node: Node) -> tuple[Node, Node] | None:
    """Both values of an expression with ± and ∓; None if it has none."""
    if not (mentions(node, "pm") or mentions(node, "mp")):
        return None
    return _signed(node, plus=True), _signed(node, plus=False)


def _signed(node: Node, *, plus: bool) -> Node:
    if not isinstance(node, Call):
        return node
    args = tuple(_signed(part, plus=plus) for part in node.args)
    if node.name in ("pm", "mp"):
        added = plus == (node.name == "pm")
        return Call("+", (args[0], args[1] if added else Call("neg", (args[1],))))
    return Call(node.name, args)
