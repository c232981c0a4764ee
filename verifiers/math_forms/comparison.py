"""Whether two answers are the same: trees by what they are, words by what they say."""

from __future__ import annotations

import re
from fractions import Fraction

from palestra.verifiers.math_forms.elements import same_collection
from palestra.verifiers.math_forms.families import (
    families,
    has_parameter,
    same_families,
    substitute,
)
from palestra.verifiers.math_forms.pieces import NotReal
from palestra.verifiers.math_forms.reading import Reading, read
from palestra.verifiers.math_forms.real_sets import is_real_set, same_real_set
from palestra.verifiers.math_forms.relations import (
    assignments,
    operators,
    same_relation,
    stated_value,
)
from palestra.verifiers.math_forms.tree import (
    Call,
    Node,
    Number,
    Symbol,
    Undefined,
    is_value,
    letters,
)
from palestra.verifiers.math_forms.units import read_unit, same_kind
from palestra.verifiers.math_forms.values import logarithm_readings, rounds_to, same_value
from palestra.verifiers.math_forms.words import calendar_date, time_of_day

_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d{1,2})")
_DECIMAL_POINT = re.compile(r"-?\d*\.\d+")


def same_reading(first: Reading, second: Reading) -> bool:
    """Whether two texts are the same answer; the order does not matter. Raises TooLarge."""
    if isinstance(first.tree, Number) and isinstance(second.tree, Number):
        return same_value(first.tree, second.tree)
    if first.choice and second.choice:
        return first.choice == second.choice
    times = time_of_day(first.text), time_of_day(second.text)
    if times[0] and times[1] and (times[0][2] or times[1][2]):
        return times[0][:2] == times[1][:2]
    if first.tree is None or second.tree is None:
        if not first.words:
            return False
        if first.words == second.words:
            return True
        if first.words.replace(" ", "") == second.words.replace(" ", ""):
            return True
        date = calendar_date(first.words)
        return date is not None and date == calendar_date(second.words)
    for one, two in ((first, second), (second, first)):
        comma = _DECIMAL_COMMA.fullmatch(one.text)
        if comma and _DECIMAL_POINT.fullmatch(two.text):
            return read(f"{comma[1]}.{comma[2]}").tree == two.tree or (
                two.tree is not None and same_tree(_tree_of(f"{comma[1]}.{comma[2]}"), two.tree)
            )
    readings = logarithm_readings(first.tree), logarithm_readings(second.tree)
    return any(
        same_tree(
            readings[0][min(k, len(readings[0]) - 1)], readings[1][min(k, len(readings[1]) - 1)]
        )
        for k in range(max(map(len, readings)))
    )


def _tree_of(text: str) -> Node:
    tree = read(text).tree
    assert tree is not None
    return tree


def same_tree(first: Node, second: Node) -> bool:
    """Whether two trees mean the same; symmetric. Raises TooLarge."""
    if first == second:
        # 1 = 1 says nothing.
        return not (operators(first) and first.args[0] == first.args[-1])  # type: ignore[union-attr]
    for one, two in ((first, second), (second, first)):
        if isinstance(one, Call) and one.name == "approx":
            return _same_approximately(one, two)
    for one, two in ((first, second), (second, first)):
        if isinstance(one, Call) and one.name in ("unit", "percent"):
            return _same_quantity(one, two)
    if is_value(first) and is_value(second):
        if "C" in letters(first) ^ letters(second) and "c" in letters(first) ^ letters(second):
            # The constant of an integral may be written small.
            first, second = (substitute(side, "c", Symbol("C")) for side in (first, second))
        return same_value(first, second) or _same_parametric(first, second)
    for one, two in ((first, second), (second, first)):
        chosen = _combinations(one)
        if chosen is not None and is_value(two):
            return same_value(chosen, two)
    return _same_structure(first, second)


def _same_structure(first: Node, second: Node) -> bool:
    if has_parameter(first) or has_parameter(second):
        return _same_family(first, second)
    if is_real_set(first) or is_real_set(second):
        try:
            return same_real_set(first, second)
        except (NotReal, Undefined):
            pass
    if operators(first) and operators(second):
        return _same_statement(first, second)
    for one, two in ((first, second), (second, first)):
        value = stated_value(one)
        if value is not None:
            return same_tree(value, two)
    named = assignments(first), assignments(second)
    if named[0] is not None and named[1] is not None:
        return named[0].keys() == named[1].keys() and all(
            same_tree(value, named[1][name]) for name, value in named[0].items()
        )
    for one, values in ((second, named[0]), (first, named[1])):
        if values is not None and isinstance(one, Call) and one.name in ("tuple", "vector"):
            ordered = tuple(values[name] for name in sorted(values))
            return same_tree(Call("tuple", ordered), one)
    for one, two in ((first, second), (second, first)):
        if isinstance(one, Call) and one.name == "ratio":
            return _same_ratio(one, two)
        if isinstance(one, Call) and one.name == "base":
            return _same_digits(one, two)
    return same_collection(first, second, same_tree)


def _same_statement(first: Node, second: Node) -> bool:
    """Two relations."""
    assert isinstance(first, Call)
    assert isinstance(second, Call)
    values = stated_value(first), stated_value(second)
    if values[0] is not None and values[1] is not None:
        names = first.args[0], second.args[0]
        if names[0] == names[1] or any(isinstance(n, Symbol) and len(n.name) > 2 for n in names):
            return same_tree(values[0], values[1])
    if len(first.args) == 2 and len(second.args) == 2:
        return same_relation(first, second)
    return first.name == second.name and all(
        same_tree(a, b) for a, b in zip(first.args, second.args, strict=True)
    )


def _same_approximately(approximation: Call, other: Node) -> bool:
    """≈ 3.14 accepts whatever rounds to it at its own precision, and nothing coarser."""
    if isinstance(other, Call) and other.name == "approx":
        return same_tree(approximation.args[0], other.args[0])
    if len(approximation.args) > 1 and same_tree(approximation.args[1], other):
        return True
    value = approximation.args[0]
    if same_tree(value, other):
        return True
    exact = stated_value(other) or other
    if isinstance(value, Call) and value.name in ("unit", "percent"):
        if isinstance(exact, Call) and exact.name == value.name:
            if value.name == "unit" and value.args[1] != exact.args[1]:
                return False
            exact = exact.args[0]
        value = value.args[0]
    elif isinstance(exact, Call) and exact.name in ("unit", "percent"):
        exact = exact.args[0]
    negated = isinstance(value, Call) and value.name == "neg"
    decimal = value.args[0] if negated and isinstance(value, Call) else value
    if not isinstance(decimal, Number) or not is_value(exact) or letters(exact):
        return False
    if isinstance(exact, Number) and exact.digits and exact.places < decimal.places:
        return False
    signed = -decimal.value if negated else decimal.value
    return rounds_to(Number(signed, decimal.digits, decimal.places), exact)


def _same_quantity(quantity: Call, other: Node) -> bool:
    """A value with a unit or percent sign; the other may have a unit, too, or none."""
    value = quantity.args[0]
    stated = stated_value(other)
    if stated is not None:
        other = stated
    if quantity.name == "percent":
        if isinstance(other, Call) and other.name == "percent":
            return same_tree(value, other.args[0])
        if isinstance(other, Call) and other.name == "unit":
            return False
        return same_tree(value, other) or same_tree(
            Call("/", (value, Number(Fraction(100)))), other
        )
    if isinstance(other, Call) and other.name == "percent":
        return False
    if not (isinstance(other, Call) and other.name == "unit"):
        return same_tree(value, other)
    names = quantity.args[1], other.args[1]
    assert isinstance(names[0], Symbol)
    assert isinstance(names[1], Symbol)
    if names[0] == names[1]:
        return same_tree(value, other.args[0])
    first, second = read_unit(names[0].name), read_unit(names[1].name)
    if not same_kind(first, second):
        return False
    scale = Number(first.factor / second.factor)
    scaled = value if scale.value == 1 else Call("*", (value, scale))
    return same_tree(scaled, other.args[0])


def _same_family(first: Node, second: Node) -> bool:
    one, two = families(first), families(second)
    if one is None or two is None:
        return False
    return same_families(one, two)


def _same_parametric(first: Node, second: Node) -> bool:
    """2πk and 2πn: the same family, where only the parameter's name differs."""
    names = letters(first), letters(second)
    if names[0] == names[1] or len(names[0]) != 1 or len(names[1]) != 1:
        return False
    if not (names[0] | names[1]) <= frozenset("knm"):
        return False
    return _same_family(first, second)


def _combinations(node: Node) -> Node | None:
    """C(10, 5) as a binomial coefficient; with another letter it is a point with a name."""
    match node:
        case Call("*", (Symbol("C"), Call("tuple", (n, k)))) if is_value(n) and is_value(k):
            return Call("binom", (n, k))
    return None


def _same_ratio(ratio: Call, other: Node) -> bool:
    """3:4 is 6:8 and 3/4, but not 4:3."""
    if isinstance(other, Call) and other.name == "ratio":
        if len(ratio.args) != len(other.args):
            return False
        if any(part == Number(Fraction(0)) for part in (*ratio.args, *other.args)):
            return False  # 12:00 and 1:00
        return all(
            same_value(Call("*", (a, other.args[0])), Call("*", (b, ratio.args[0])))
            for a, b in zip(ratio.args, other.args, strict=True)
            if is_value(a) and is_value(b)
        )
    if len(ratio.args) == 2 and is_value(other) and all(map(is_value, ratio.args)):
        return same_value(Call("/", ratio.args), other)
    return False


def _same_digits(based: Call, other: Node) -> bool:
    """52_8 is 52 (the question names the base) and 52_{8}, but not 52_6."""
    digits = based.args[0]
    assert isinstance(digits, Symbol)
    if isinstance(other, Call) and other.name == "base":
        return digits == other.args[0] and same_tree(based.args[1], other.args[1])
    if isinstance(other, Number) and other.value.denominator == 1 and digits.name.isdigit():
        return Fraction(int(digits.name)) == other.value
    return False
