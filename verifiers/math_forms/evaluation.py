"""`Evaluation`: an expression's value at a point, in floats or many digits, within bounds."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from palestra.verifiers.math_forms.tree import (
    MAX_EXPONENT,
    Call,
    Node,
    Number,
    Symbol,
    TooLarge,
    Undefined,
)

# Beyond this many bits an intermediate value is not computed.
MAX_RANGE_BITS = 6_000


class Evaluation:
    """One evaluation of expressions at a point; remembers the largest and least magnitudes met."""

    def __init__(self, context: Any, point: Mapping[str, Fraction], *, real: bool) -> None:
        self.context = context
        self.is_float = context.mpf is float
        self.point = point
        self.real = real
        self.largest = 1.0
        self.range_bits = 0

    def value(self, node: Node) -> Any:
        """Raises Undefined, TooLarge, or an ArithmeticError or ValueError of the context."""
        value = self._value(node)
        if self.real and isinstance(value, self.context.mpc):
            if value.imag != 0:
                raise Undefined
            value = value.real
        if self.is_float:
            size = abs(value)
            if not size < 1e250:
                raise TooLarge
            self.largest = max(self.largest, size)
        elif value != 0:
            bits = abs(self.context.mag(value))
            # mag may be infinite or no number
            if not bits <= MAX_RANGE_BITS:
                raise TooLarge
            self.range_bits = max(self.range_bits, int(bits))
        return value

    def _value(self, node: Node) -> Any:
        context = self.context
        if isinstance(node, Number):
            return self._fraction(node.value)
        if isinstance(node, Symbol):
            return self._symbol(node.name)
        if node.name == "cases":
            return self._cases(node.args)
        if node.name == "^":
            return self._power(node.args[0], node.args[1])
        args = [self.value(part) for part in node.args]
        match node.name:
            case "+":
                return sum(args[1:], args[0])
            case "*":
                return functools.reduce(lambda one, two: one * two, args)
            case "/":
                if args[1] == 0:
                    raise Undefined
                return args[0] / args[1]
            case "neg":
                return -args[0]
            case "sqrt":
                return context.sqrt(args[0])
            case "abs":
                return abs(args[0])
            case "root":
                return self._root(args[0], args[1])
            case "!" | "!!" | "binom" | "gcd" | "lcm":
                return self._combinatorial(node.name, args)
            case "floor" | "ceil":
                return self._rounded(node.name, args[0])
            case "max" | "min":
                return (max if node.name == "max" else min)(args)
            case "deg":
                return args[0] * context.pi / 180
            case "conj" | "re" | "im":
                return getattr(context, node.name)(args[0])
            case "ln":
                return self._logarithm(args[0])
            case "log":
                base = self._logarithm(args[1]) if len(args) > 1 else 1
                if base == 0:
                    raise Undefined
                return self._logarithm(args[0]) / base
            case "tanh" | "coth" | "sech":
                # What is left to 1 is noted, so that tanh(100) is told from 1.
                self.value(Call("exp", (Call("*", (Number(Fraction(-2)), node.args[0])),)))
        return self._function(node.name, args[0])

    def _fraction(self, value: Fraction) -> Any:
        if self.is_float:
            return float(value)
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        self.range_bits = max(self.range_bits, bits)
        return self.context.mpf(value.numerator) / value.denominator

    def _symbol(self, name: str) -> Any:
        if name in self.point:
            return self._fraction(self.point[name])
        match name:
            case "pi":
                return +self.context.pi
            case "e":
                return +self.context.e
            case "i" if not self.real:
                return self.context.mpc(0, 1)
        raise Undefined(name)

    def _power(self, base_node: Node, exponent_node: Node) -> Any:
        base, exponent = self.value(base_node), self.value(exponent_node)
        if base == 0:
            if not (isinstance(exponent, complex) or exponent > 0):
                raise Undefined
            return base
        whole = exponent == int(exponent.real) if abs(exponent) < 2**40 else False
        if whole:
            n = int(exponent.real)
            self._bound_power(base, n)
            return base**n
        self._bound_power(base, abs(exponent))
        if self.real and base < 0:
            odd = _odd_root(exponent_node)
            if odd is None:
                raise Undefined
            size = (-base) ** exponent
            return -size if odd.numerator % 2 else size
        return self.context.power(base, exponent)

    def _cases(self, parts: tuple[Node, ...]) -> Any:
        for value, condition in zip(parts[::2], parts[1::2], strict=True):
            if self._holds(condition):
                return self.value(value)
        raise Undefined

    def _holds(self, condition: Node) -> bool:
        if condition == Symbol("true"):
            return True
        if not (isinstance(condition, Call) and condition.name.startswith("rel:")):
            raise Undefined
        sides = [self.value(side) for side in condition.args]
        for sign, left, right in zip(condition.name[4:].split(), sides, sides[1:], strict=False):
            if sign not in _COMPARE:
                raise Undefined
            if not _COMPARE[sign](left, right):
                return False
        return True

    def _bound_power(self, base: Any, exponent: Any) -> None:
        size = abs(base)
        magnitude = abs(self.context.log(size)) if size else 0
        if magnitude * abs(exponent) > MAX_RANGE_BITS * math.log(2):
            raise TooLarge

    def _root(self, value: Any, index: Any) -> Any:
        n = _small_integer(index)
        if n < 1:
            raise Undefined
        if self.real and value < 0 and n % 2:
            return -self._root(-value, index)
        if self.real and value < 0:
            raise Undefined
        return self.context.power(value, self._fraction(Fraction(1, n)))

    def _logarithm(self, value: Any) -> Any:
        if value == 0 or (self.real and value < 0):
            raise Undefined
        return self.context.log(value)

    def _combinatorial(self, name: str, args: list[Any]) -> Any:
        numbers = [_small_integer(value) for value in args]
        if any(n < 0 for n in numbers):
            raise Undefined
        match name:
            case "!":
                value = math.factorial(numbers[0])
            case "!!":
                value = math.prod(range(numbers[0], 0, -2))
            case "binom":
                value = math.comb(*numbers)
            case "gcd":
                value = math.gcd(*numbers)
            case _:
                value = math.lcm(*numbers)
        return self._fraction(Fraction(value))

    def _rounded(self, name: str, value: Any) -> Any:
        if isinstance(value, self.context.mpc):
            raise Undefined
        near = self.context.nint(value) if not self.is_float else round(value)
        if abs(value - near) < 1e-12:
            return near
        return getattr(self.context, name)(value)

    def _function(self, name: str, value: Any) -> Any:
        context = self.context
        if name in ("csc", "sec", "cot", "coth"):
            inverse = {"csc": "sin", "sec": "cos", "cot": "tan", "coth": "tanh"}[name]
            below = getattr(context, inverse)(value)
            if below == 0:
                raise Undefined
            return 1 / below
        if name in ("asec", "acsc", "acot"):
            if value == 0:
                raise Undefined
            return self._function({"asec": "acos", "acsc": "asin", "acot": "atan"}[name], 1 / value)
        if name not in _FUNCTIONS:
            raise Undefined(name)
        return getattr(context, name)(value)


_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARE |= {"=": operator.eq, "!=": operator.ne}
_FUNCTIONS = frozenset({"sin", "cos", "tan", "asin", "acos", "atan", "exp"})
_FUNCTIONS |= {"sinh", "cosh", "tanh", "asinh", "acosh", "atanh"}


def _small_integer(value: Any) -> int:
    if not abs(value) <= MAX_EXPONENT or value != int(value.real):
        raise Undefined
    return int(value.real)


def _odd_root(exponent: Node) -> Fraction | None:
    """p/q with q odd, as in (-8)^(1/3), which over the reals is -2."""
    match exponent:
        case Number():
            value = exponent.value
        case Call("/", (Number() as top, Number() as bottom)) if bottom.value:
            value = top.value / bottom.value
        case Call("neg", (Call() as inner,)):
            return _odd_root(inner)
        case _:
            return None
    return value if value.denominator % 2 else None
