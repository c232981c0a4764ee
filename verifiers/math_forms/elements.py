"""Lists, sets, tuples, vectors and matrices: element by element, in order or not."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from palestra.verifiers.math_forms.exact import NotRational, rational
from palestra.verifiers.math_forms.families import substitute
from palestra.verifiers.math_forms.relations import stated_value
from palestra.verifiers.math_forms.tree import (
    Call,
    Node,
    Symbol,
    TooLarge,
    Undefined,
    is_value,
    letters,
    mentions,
    number,
)
from palestra.verifiers.math_forms.values import expand_signs, same_value

Same = Callable[[Node, Node], bool]
# Elements of a set are compared each with each.
MAX_COMPARISONS = 2_500


def same_collection(first: Node, second: Node, same: Same) -> bool:
    """Whether two trees, at least one of which is no single value, have the same elements."""
    grids = _grid(first), _grid(second)
    if grids[0] is not None and grids[1] is not None:
        return _same_grid(grids[0], grids[1], same)
    ordered = _ordered(first), _ordered(second)
    if ordered[0] is not None and ordered[1] is not None:
        return len(ordered[0]) == len(ordered[1]) and all(
            same(a, b) for a, b in zip(ordered[0], ordered[1], strict=True)
        )
    for one, two in ((ordered[0], second), (ordered[1], first)):
        if one is not None and is_value(two) and len(one) in (2, 3):
            return _same_vector(one, two)
    loose = _unordered(first), _unordered(second)
    if loose[0] is None or loose[1] is None:
        return False
    if loose[0] == [first] and loose[1] == [second]:
        return False  # two single things of different kinds
    signs = [{sign for sign in ("pm", "mp") if mentions(side, sign)} for side in (first, second)]
    if signs[0] != signs[1] and signs[0] and signs[1] and len(loose[0]) == len(loose[1]) == 2:
        # Where one has ± and the other ∓ the upper signs belong together.
        return same(loose[0][0], loose[1][0]) and same(loose[0][1], loose[1][1])
    return _same_elements(loose[0], loose[1], same)


def _grid(node: Node) -> list[tuple[Node, ...]] | None:
    """A matrix as rows; also [[1, 2], [3, 4]]."""
    match node:
        case Call("matrix", rows):
            return [row.args for row in rows if isinstance(row, Call)]
        case Call("*", (scale, Call("matrix") as matrix)) if is_value(scale):
            cells = _grid(matrix) or []
            return [tuple(Call("*", (scale, cell)) for cell in row) for row in cells]
        case Call("bracketed" | "interval[]" | "tuple", rows) if len(rows) > 1:
            if all(isinstance(r, Call) and r.name in ("bracketed", "interval[]") for r in rows):
                return [row.args for row in rows if isinstance(row, Call)]
    return None


def _same_grid(first: list[tuple[Node, ...]], second: list[tuple[Node, ...]], same: Same) -> bool:
    return [len(row) for row in first] == [len(row) for row in second] and all(
        same(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )


def _ordered(node: Node) -> tuple[Node, ...] | None:
    """The elements of a tuple, a vector or a column."""
    match node:
        case Call("tuple" | "vector" | "bracketed" | "interval[]", args):
            return args
        case Call("*", (Symbol(name), Call("tuple", args))) if name.isupper():
            return args  # a point with its name
        case Call("matrix", rows) if all(isinstance(r, Call) and len(r.args) == 1 for r in rows):
            return tuple(row.args[0] for row in rows if isinstance(row, Call))
    return None


def _same_vector(components: tuple[Node, ...], combination: Node) -> bool:
    """(3, 4) and 3i + 4j."""
    units = ("i", "j", "k")[: len(components)]
    if not letters(combination) <= {"j", "k"} or not any(mentions(combination, u) for u in units):
        return False
    total: Node = number(0)
    for unit, component in zip(units, components, strict=True):
        if not is_value(component):
            return False
        total = Call("+", (total, Call("*", (component, Symbol(f"unit {unit}")))))
    for unit in ("i", "j", "k"):
        combination = substitute(combination, unit, Symbol(f"unit {unit}"))
    return same_value(combination, total)


def _unordered(node: Node) -> list[Node] | None:
    """The elements of a list or set, each once; a single value is a list of one."""
    if isinstance(node, Call) and node.name in ("list", "and", "set", "bracketed"):
        found: list[Node] = []
        for part in node.args:
            element = stated_value(part) or part
            inner = None if _is_set(element) else _unordered(element)
            found += inner if inner is not None else [element]
        return found
    if isinstance(node, Call) and node.name.startswith("rel:"):
        value = stated_value(node)
        return None if value is None else _unordered(value)
    signs = expand_signs(node)
    return list(signs) if signs is not None else [node]


def _same_elements(first: list[Node], second: list[Node], compare: Same) -> bool:
    def same(one: Node, two: Node) -> bool:
        # {1} in a set is not 1.
        return _is_set(one) == _is_set(two) and compare(one, two)

    if not first or not second:
        return not first and not second
    exact = _rationals(first), _rationals(second)
    if exact[0] is not None and exact[1] is not None and exact[0] == exact[1]:
        return True
    if len(first) * len(second) > MAX_COMPARISONS:
        raise TooLarge
    return all(any(same(a, b) for b in second) for a in first) and all(
        any(same(a, b) for a in first) for b in second
    )


def _is_set(node: Node) -> bool:
    return isinstance(node, Call) and node.name == "set"


def _rationals(values: list[Node]) -> frozenset[Fraction] | None:
    try:
        return frozenset(rational(value) for value in values)
    except (NotRational, Undefined, TooLarge):
        return None
