"""Equations, inequalities and `name = value`: what they say, and whether two say the same."""

from __future__ import annotations

import random

from palestra.verifiers.math_forms.exact import NotRational, rational
from palestra.verifiers.math_forms.families import substitute
from palestra.verifiers.math_forms.numeric import approximate
from palestra.verifiers.math_forms.tree import (
    Call,
    Node,
    Number,
    Symbol,
    TooLarge,
    Undefined,
    is_value,
    letters,
    negative,
    number,
    walk,
)
from palestra.verifiers.math_forms.values import same_value

_source = random.SystemRandom()


def operators(node: Node) -> list[str]:
    """The relation signs between a tree's sides; none if it is no relation."""
    if isinstance(node, Call) and node.name.startswith("rel:"):
        return node.name.removeprefix("rel:").split()
    return []


def stated_value(node: Node) -> Node | None:
    """The value in `name = value`, `2 + 3 = 5` or a chain of equations; None if it states none."""
    signs = operators(node)
    if not signs or not isinstance(node, Call):
        return None
    first, last = node.args[0], node.args[-1]
    if signs == ["in"]:
        return last if _is_name(first) else None
    if set(signs) != {"="}:
        return None
    if _is_name(first):
        return last
    if not is_value(first) or isinstance(first, Number):
        return None
    if not letters(first):
        try:
            return last if is_value(last) and first != last and same_value(first, last) else None
        except TooLarge:
            return None
    # x + y = 5 names what is asked for; 2x = 10 leaves it to be solved.
    bare = not any(isinstance(part, Number) for part in walk(first))
    return last if bare and not letters(first) & letters(last) else None


def assignments(node: Node) -> dict[str, Node] | None:
    """x = 2, y = 3 as a dictionary; None if it is anything else, or one name has two values."""
    if not (isinstance(node, Call) and node.name in ("list", "and", "tuple")):
        return None
    found: dict[str, Node] = {}
    for part in node.args:
        match part:
            case Call("rel:=", (Symbol(name), value)) if name not in found:
                found[name] = value
            case _:
                return None
    return found


def _is_name(node: Node) -> bool:
    if isinstance(node, Symbol):
        return bool(letters(node))
    if isinstance(node, Call) and node.name in ("tuple", "*", "set"):
        return all(isinstance(part, Symbol) and letters(part) for part in node.args)
    return False


def same_relation(first: Call, second: Call) -> bool:
    """Whether two single equations or inequalities hold at the same points. Raises TooLarge."""
    one, two = _difference(first), _difference(second)
    if one is None or two is None or one[1] != two[1]:
        return False
    names = letters(one[0]) | letters(two[0])
    if not names:
        return False
    point = {name: number(_source.randrange(3, 10**9)) for name in names}
    scales = []
    for side in (one[0], two[0]):
        for name, value in point.items():
            side = substitute(side, name, value)
        scales.append(side)
    if _is_zero(scales[0]) or _is_zero(scales[1]):
        return False  # it holds everywhere, or at this point by a rare chance
    if one[1] != "=":
        try:
            if approximate(scales[0]) * approximate(scales[1]) <= 0:
                return False
        except Undefined:
            return False
    return same_value(Call("*", (one[0], scales[1])), Call("*", (two[0], scales[0])))


def _difference(node: Call) -> tuple[Node, str] | None:
    """Left minus right, and the sign among =, >, >=, != that it has to zero."""
    signs = operators(node)
    if len(signs) != 1 or not all(is_value(side) for side in node.args):
        return None
    left, right = node.args
    sign = signs[0]
    if sign == "=":
        # y = 1/x is xy = 1.
        for below in dict.fromkeys((*_denominators(left), *_denominators(right))):
            left, right = Call("*", (left, below)), Call("*", (right, below))
    if sign in ("<", "<="):
        left, right, sign = right, left, sign.replace("<", ">")
    if sign not in ("=", ">", ">=", "!="):
        return None
    return Call("+", (left, negative(right))), sign


def _denominators(node: Node) -> list[Node]:
    """What terms of a side are divided by, where it has unknowns."""
    match node:
        case Call("/", (top, bottom)):
            return [*_denominators(top), *([bottom] if letters(bottom) else [])]
        case Call("+" | "neg" | "*", args):
            return [below for part in args for below in _denominators(part)]
    return []


def _is_zero(node: Node) -> bool:
    try:
        return rational(node) == 0
    except (NotRational, TooLarge):
        return same_value(node, number(0))
    except Undefined:
        return True
