"""Exact values: rational constants, and identities of rational functions modulo random primes."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping
from fractions import Fraction

from palestra.verifiers.math_forms.tree import (
    MAX_EXPONENT,
    Node,
    Number,
    Symbol,
    TooLarge,
    Undefined,
)

MAX_BITS = 200_000


class NotRational(Exception):
    """The expression leaves the rational numbers (or this evaluator does not know)."""


def rational(node: Node) -> Fraction:
    """The exact value of a constant. Raises NotRational, Undefined or TooLarge."""
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Symbol):
        raise NotRational
    name = node.name
    if name not in _FOLDS:
        raise NotRational
    return _checked(_FOLDS[name](*[rational(part) for part in node.args]))


def _checked(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise TooLarge
    return value


def _sum(*parts: Fraction) -> Fraction:
    return sum(parts, Fraction(0))


def _product(*parts: Fraction) -> Fraction:
    value = Fraction(1)
    for part in parts:
        value = _checked(value * part)
    return value


def _divide(top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise Undefined
    return top / bottom


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if exponent.denominator > 64 or base < 0:
            raise NotRational
        base = _root(base, Fraction(exponent.denominator))
    n = exponent.numerator
    if base == 0 and n <= 0:
        raise Undefined
    if abs(base) == 1 or base == 0:
        return base if n % 2 else abs(base)
    if abs(n) * (base.numerator.bit_length() + base.denominator.bit_length()) > MAX_BITS:
        raise TooLarge
    return base**n


def _sqrt(value: Fraction) -> Fraction:
    return _root(value, Fraction(2))


def _root(value: Fraction, index: Fraction) -> Fraction:
    n = index.numerator
    if index.denominator != 1 or not 2 <= n <= 64 or (value < 0 and n % 2 == 0):
        raise NotRational
    top, bottom = _integer_root(abs(value.numerator), n), _integer_root(value.denominator, n)
    root = Fraction(top, bottom)
    return -root if value < 0 else root


def _integer_root(value: int, n: int) -> int:
    root = math.isqrt(value)
    if n > 2:
        low, high = 0, 1 << (value.bit_length() // n + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**n <= value else (low, middle - 1)
        root = low
    if root**n != value:
        raise NotRational
    return root


def _integer(value: Fraction) -> int:
    if value.denominator != 1 or value.numerator < 0:
        raise NotRational
    if value.numerator > MAX_EXPONENT:
        raise TooLarge
    return value.numerator


def _factorial(value: Fraction) -> Fraction:
    return Fraction(math.factorial(_integer(value)))


def _double_factorial(value: Fraction) -> Fraction:
    return Fraction(math.prod(range(_integer(value), 0, -2)))


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    return Fraction(math.comb(_integer(n), _integer(k)))


def _absolute(value: Fraction) -> Fraction:
    return abs(value)


def _gcd(*values: Fraction) -> Fraction:
    return Fraction(math.gcd(*[_integer(value) for value in values]))


def _lcm(*values: Fraction) -> Fraction:
    return Fraction(math.lcm(*[_integer(value) for value in values]))


def _logarithm(value: Fraction, base: Fraction) -> Fraction:
    """log_2 8: only where it is a small integer."""
    if value <= 0 or base <= 0 or base == 1:
        raise Undefined
    for n in range(65):
        if base**n == value:
            return Fraction(n)
        if base**-n == value:
            return Fraction(-n)
        if base.numerator.bit_length() * n > MAX_EXPONENT:
            break
    raise NotRational


_FOLDS: dict[str, Callable[..., Fraction]] = {
    "+": _sum,
    "*": _product,
    "/": _divide,
    "^": _power,
    "neg": lambda value: -value,
    "sqrt": _sqrt,
    "root": _root,
    "abs": _absolute,
    "!": _factorial,
    "!!": _double_factorial,
    "binom": _binomial,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "gcd": _gcd,
    "lcm": _lcm,
    "log": lambda value, base=None: _logarithm(value, base) if base else _not_rational(),
}


def _not_rational() -> Fraction:
    raise NotRational


def modular(node: Node, point: Mapping[str, int], modulus: int) -> int:
    """A rational function's value modulo a prime. Raises NotRational or Undefined.

    Two that agree modulo a random prime of 120 bits at a random point are equal, but for a chance
    of about degree / 2**120 (Schwartz 1980, Zippel 1979).
    """
    if isinstance(node, Number):
        return node.value.numerator * _inverse(node.value.denominator, modulus) % modulus
    if isinstance(node, Symbol):
        if node.name not in point:
            raise NotRational
        return point[node.name]
    if node.name == "^":
        base, exponent = node.args
        try:
            power = rational(exponent)
        except TooLarge:
            raise NotRational from None
        if power.denominator != 1:
            raise NotRational
        value = modular(base, point, modulus)
        if power < 0:
            value = _inverse(value, modulus)
        return pow(value, abs(power.numerator), modulus)
    values = [modular(part, point, modulus) for part in node.args]
    match node.name:
        case "+":
            return sum(values) % modulus
        case "*":
            product = 1
            for value in values:
                product = product * value % modulus
            return product
        case "/":
            return values[0] * _inverse(values[1], modulus) % modulus
        case "neg":
            return -values[0] % modulus
    raise NotRational


def _inverse(value: int, modulus: int) -> int:
    if value % modulus == 0:
        raise Undefined
    return pow(value, -1, modulus)


def _random_prime(source: random.Random) -> int:
    while True:
        candidate = source.getrandbits(120) | (1 << 119) | 1
        if all(candidate % small for small in (3, 5, 7, 11, 13)) and all(
            _probably_prime(candidate, source.randrange(2, candidate - 1)) for _ in range(24)
        ):
            return candidate


def _probably_prime(candidate: int, witness: int) -> bool:
    odd, twos = candidate - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    value = pow(witness, odd, candidate)
    if value in (1, candidate - 1):
        return True
    for _ in range(twos - 1):
        value = value * value % candidate
        if value == candidate - 1:
            return True
    return False


# Nobody can construct an answer that is wrong and equal modulo a prime that is new in each process.
_source = random.SystemRandom()


@functools.cache
def prime() -> int:
    return _random_prime(_source)


def random_residue() -> int:
    return _source.randrange(2, prime())
