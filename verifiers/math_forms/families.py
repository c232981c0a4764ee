"""Families of numbers with an integer parameter: π/4 + kπ, x ≡ 3 (mod 5), and lists of such."""

from __future__ import annotations

import math
from fractions import Fraction

from palestra.verifiers.math_forms.exact import NotRational, rational
from palestra.verifiers.math_forms.tree import (
    Call,
    Node,
    Symbol,
    TooLarge,
    Undefined,
    is_value,
    letters,
    number,
)
from palestra.verifiers.math_forms.values import expand_signs, same_value

_PARAMETERS = frozenset("knmljtNK")
MAX_CLASSES = 360

# A family is offset + k * period; offset and period are trees.
Family = tuple[Node, Node]


def has_parameter(node: Node) -> bool:
    """Whether a tree says that a letter is an integer, or is a congruence."""
    match node:
        case Call("mod", _):
            return True
        case Call("rel:in", (Symbol(), Symbol(domain))):
            return domain in ("Z", "N")
        case Call(name, args):
            structural = name in ("list", "and", "set", "such") or name.startswith("rel:")
            return structural and any(has_parameter(part) for part in args)
    return False


def families(node: Node) -> list[Family] | None:
    """The families that a tree lists; None if it is not of this kind."""
    members = _members(node)
    if members is None:
        return None
    found: list[Family] = []
    for member in members:
        for value in expand_signs(member) or (member,):
            family = _congruence(value) or _linear(value)
            if family is None:
                return None
            found.append(family)
    return found or None


def _members(node: Node) -> list[Node] | None:
    match node:
        case Call("list" | "and" | "set", args):
            parts = [part for part in args if not _declares(part)]
            nested = [_members(part) for part in parts]
            return [m for group in nested if group for m in group]
        case Call("such", (inner, condition)) if _declares(condition):
            return _members(inner)
        case Call("rel:=", (Symbol(), value)):
            return _members(value)
        case Call("rel:equiv", (_, Call("mod", _) as value)):
            return [value]
        case Call(name, _) if name.startswith("rel:"):
            return None
    return [node]


def _declares(node: Node) -> bool:
    match node:
        case Call("rel:in", (Symbol(), Symbol("Z" | "N"))):
            return True
        case Call("unit", (Symbol(), _)):  # "n an integer"
            return True
    return False


def _congruence(node: Node) -> Family | None:
    match node:
        case Call("mod", (value, modulus)) if not letters(value) | letters(modulus):
            return value, modulus
        case Call("mod", (Call("rel:equiv", (_, value)), modulus)):
            return value, modulus
    return None


def _linear(node: Node) -> Family | None:
    """offset and period of an expression that is linear in its one integer parameter."""
    names = letters(node)
    if not is_value(node) or len(names) != 1 or not names <= _PARAMETERS:
        return None
    (name,) = names
    at = [substitute(node, name, number(k)) for k in (0, 1, 2)]
    step = Call("+", (at[1], Call("neg", (at[0],))))
    again = Call("+", (at[2], Call("neg", (at[1],))))
    try:
        if not same_value(step, again):
            return None
    except TooLarge:
        return None
    return at[0], step


def substitute(node: Node, name: str, value: Node) -> Node:
    """The tree with a letter replaced."""
    if isinstance(node, Symbol):
        return value if node.name == name else node
    if isinstance(node, Call):
        return Call(node.name, tuple(substitute(part, name, value) for part in node.args))
    return node


def same_families(first: list[Family], second: list[Family]) -> bool:
    """Whether two lists of families hold the same numbers."""
    unit = first[0][1]
    try:
        one = [_in_units(family, unit, first[0][0]) for family in first]
        two = [_in_units(family, unit, first[0][0]) for family in second]
    except (NotRational, Undefined, TooLarge):
        return False
    period = _common_period([p for _, p in one + two])
    if period is None:
        return False
    return _residues(one, period) == _residues(two, period)


def _in_units(family: Family, unit: Node, origin: Node) -> tuple[Fraction, Fraction]:
    """A family's offset from the origin and its period, as rational multiples of a unit."""
    offset, period = family
    shift = Call("+", (offset, Call("neg", (origin,))))
    return _ratio(shift, unit), abs(_ratio(period, unit))


def _ratio(value: Node, unit: Node) -> Fraction:
    try:
        return rational(Call("/", (value, unit)))
    except NotRational:
        pass
    from palestra.verifiers.math_forms.numeric import approximate

    if approximate(unit) == 0:
        raise Undefined
    guess = Fraction(approximate(value) / approximate(unit)).limit_denominator(5_000)
    scaled = Call("*", (number(guess), unit))
    if not same_value(scaled, value):
        raise NotRational
    return guess


def _common_period(periods: list[Fraction]) -> Fraction | None:
    if any(period == 0 for period in periods):
        return None
    common = periods[0]
    for period in periods[1:]:
        top = math.lcm(common.numerator * period.denominator, period.numerator * common.denominator)
        common = Fraction(top, common.denominator * period.denominator)
    if any(common / period > MAX_CLASSES for period in periods):
        return None
    return common


def _residues(found: list[tuple[Fraction, Fraction]], common: Fraction) -> frozenset[Fraction]:
    return frozenset(
        (offset + k * period) % common
        for offset, period in found
        for k in range(int(common / period))
    )
