"""`Node`: what an answer means, as a tree of numbers, symbols and operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

# What a person would write fits easily; what exceeds it is not read.
MAX_CHARS = 6_000
MAX_TOKENS = 1_500
MAX_DEPTH = 100
MAX_TREE_DEPTH = 80
MAX_DIGITS = 5_000
MAX_EXPONENT = 5_000


class Unreadable(Exception):
    """The text is not mathematics that this parser knows."""


class Undefined(Exception):
    """The expression has no value here, e.g. a division by zero or a logarithm of 0."""


class TooLarge(Exception):
    """Computing the expression exactly would take too much time or memory."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written; `digits` counts the significant ones of a decimal, else 0."""

    value: Fraction
    digits: int = 0
    # Digits after the decimal point, so that a rounded value's precision is known.
    places: int = 0


@dataclass(frozen=True, slots=True)
class Symbol:
    """A letter, a named constant ("pi", "oo", "i", "e") or a set's name ("R", "Z")."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """An operation on nodes: arithmetic ("+", "sqrt", ...) or a structure ("set", "tuple", ...)."""

    name: str
    args: tuple[Node, ...]


Node: TypeAlias = "Number | Symbol | Call"

CONSTANTS = frozenset({"pi", "e", "i", "oo"})

# Operations that make a value of values; everything else is a structure.
ARITHMETIC = frozenset(
    {
        "cases",
        "+",
        "*",
        "/",
        "^",
        "neg",
        "sqrt",
        "root",
        "abs",
        "!",
        "!!",
        "binom",
        "floor",
        "ceil",
        "deg",
    }
    | {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc"}
    | {"sinh", "cosh", "tanh", "coth", "asinh", "acosh", "atanh"}
    | {"ln", "log", "exp", "max", "min", "gcd", "lcm", "conj", "re", "im"}
)


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    pending = [node]
    while pending:
        current = pending.pop()
        yield current
        if isinstance(current, Call):
            pending.extend(current.args)


def depth_of(node: Node) -> int:
    """How deep the tree is, counted without recursion."""
    depth, level = 0, [node]
    while level:
        depth += 1
        level = [part for above in level if isinstance(above, Call) for part in above.args]
    return depth


def letters(node: Node) -> frozenset[str]:
    """The names of the unknowns in a tree."""
    return frozenset(
        part.name for part in walk(node) if isinstance(part, Symbol) and part.name not in CONSTANTS
    )


def is_value(node: Node) -> bool:
    """Whether the tree is arithmetic all through: no list, relation, unit or set."""
    pending = [node]
    while pending:
        current = pending.pop()
        if isinstance(current, Call):
            if current.name not in ARITHMETIC:
                return False
            # The conditions of a piecewise function are relations.
            pending.extend(current.args[::2] if current.name == "cases" else current.args)
    return True


def mentions(node: Node, name: str) -> bool:
    """Whether a call or symbol of this name is in the tree."""
    return any(not isinstance(part, Number) and part.name == name for part in walk(node))


def number(value: int | Fraction) -> Number:
    return Number(Fraction(value))


def negative(node: Node) -> Node:
    if isinstance(node, Number):
        return Number(-node.value, node.digits, node.places)
    return Call("neg", (node,))
