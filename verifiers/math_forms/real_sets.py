"""Sets of real numbers: intervals, unions, inequalities and finite sets, brought to one form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from palestra.verifiers.math_forms.families import substitute
from palestra.verifiers.math_forms.numeric import approximate
from palestra.verifiers.math_forms.tree import (
    Call,
    Node,
    Symbol,
    TooLarge,
    Undefined,
    is_value,
    letters,
    negative,
    number,
)
from palestra.verifiers.math_forms.values import expand_signs, same_value

_INFINITY = Symbol("oo")
_MINUS_INFINITY = negative(_INFINITY)
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
ZERO = number(0)
MAX_PIECES = 60


class NotReal(Exception):
    """The tree is no set of real numbers that can be brought to pieces."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """An interval; a point is one with equal, closed ends. `low` and `high` order the pieces."""

    left: Node
    right: Node
    closed_left: bool
    closed_right: bool
    low: float
    high: float


Pieces = tuple[Piece, ...]


def is_real_set(node: Node) -> bool:
    """Whether a tree is written as a set of reals: an interval, a union, inequalities."""
    match node:
        case Symbol("R"):
            return True
        case Call(name, args):
            if name.startswith("interval") or name in ("cup", "cap", "minus"):
                return True
            if name.startswith("rel:"):
                operators = name.removeprefix("rel:").split()
                return any(operator in ("<", ">", "<=", ">=", "!=", "in") for operator in operators)
            if name == "such":
                return True
            if name in ("list", "and"):
                return any(is_real_set(part) for part in args)
    return False


def same_real_set(first: Node, second: Node) -> bool:
    """Whether two trees are the same set of reals. Raises NotReal where one cannot be read so."""
    one, two = merged(pieces(first)), merged(pieces(second))
    return len(one) == len(two) and all(
        a.closed_left == b.closed_left
        and a.closed_right == b.closed_right
        and _same_end(a.left, b.left)
        and _same_end(a.right, b.right)
        for a, b in zip(one, two, strict=True)
    )


def pieces(node: Node) -> Pieces:
    """The intervals and points that a tree stands for, not yet merged."""
    match node:
        case Symbol("R"):
            return (_piece(_MINUS_INFINITY, _INFINITY, False, False),)
        case Call("tuple", (left, right)):
            return (_piece(left, right, False, False),)
        case Call("set", args):
            return _points(args)
        case Call("cup", (left, right)):
            return (*pieces(left), *pieces(right))
        case Call("cap", (left, right)):
            return _intersect(pieces(left), pieces(right))
        case Call("minus", (left, right)) | Call("+", (left, Call("neg", (right,)))):
            return _intersect(pieces(left), _complement(pieces(right)))
        case Call("such", (variable, condition)):
            return _builder(variable, condition)
        case Call("and", args):
            return _conjunction(args)
        case Call("list", args):
            return _listed(args)
    if isinstance(node, Call) and node.name.startswith("interval"):
        brackets = node.name.removeprefix("interval")
        return (_piece(*node.args, brackets[0] == "[", brackets[1] == "]"),)
    if isinstance(node, Call) and node.name.startswith("rel:"):
        return _relation(node)
    raise NotReal


def _piece(left: Node, right: Node, closed_left: bool, closed_right: bool) -> Piece:
    if not (is_value(left) and is_value(right)):
        raise NotReal
    try:
        low, high = approximate(left), approximate(right)
    except (Undefined, TooLarge):
        if not letters(left) | letters(right):
            raise NotReal from None
        low, high = -math.inf, math.inf  # of unknown ends: cannot be merged with others
    return Piece(
        left=left, right=right, closed_left=closed_left and math.isfinite(low),
        closed_right=closed_right and math.isfinite(high), low=low, high=high,
    )  # fmt: skip


def _points(values: tuple[Node, ...]) -> Pieces:
    expanded: list[Node] = []
    for value in values:
        expanded += expand_signs(value) or (value,)
    return tuple(_piece(value, value, True, True) for value in expanded)


def _builder(variable: Node, condition: Node) -> Pieces:
    if isinstance(variable, Call) and variable.name == "rel:in":
        name, domain = variable.args
        if domain != Symbol("R"):
            raise NotReal
        variable = name
    if not isinstance(variable, Symbol):
        raise NotReal
    return _conjunction(condition.args if _is_list(condition) else (condition,))


def _is_list(node: Node) -> bool:
    return isinstance(node, Call) and node.name in ("list", "and")


def _conjunction(conditions: tuple[Node, ...]) -> Pieces:
    """All of the conditions: x > 1 and x < 3."""
    if len({_unknown(part) for part in conditions}) > 1:
        raise NotReal
    found = pieces(conditions[0])
    for condition in conditions[1:]:
        found = _intersect(found, pieces(condition))
    return found


def _listed(parts: tuple[Node, ...]) -> Pieces:
    """Any of the parts: x < 1 or x > 3; but x ≠ 2 restricts what stands before it."""
    found: Pieces = ()
    names = {_unknown(part) for part in parts}
    if len(names - {""}) > 1:
        raise NotReal
    for part in parts:
        if isinstance(part, Call) and part.name == "rel:!=" and found:
            found = _intersect(found, pieces(part))
        elif isinstance(part, Call) and part.name == "rel:!=" and part is not parts[0]:
            raise NotReal
        elif found and all(_excludes(p) for p in parts):
            found = _intersect(found, pieces(part))
        else:
            found = (*found, *pieces(part))
    return found


def _excludes(node: Node) -> bool:
    return isinstance(node, Call) and node.name == "rel:!="


def _unknown(node: Node) -> str:
    if isinstance(node, Call) and node.name.startswith("rel:"):
        for side in node.args:
            if isinstance(side, Symbol) and letters(side):
                return side.name
    return ""


def _relation(node: Call) -> Pieces:
    """x < 3, 3 > x, 1 < x ≤ 5, x ∈ S, x ≠ 2, x = 4."""
    operators = node.name.removeprefix("rel:").split()
    if operators == ["in"]:
        if not isinstance(node.args[0], Symbol):
            raise NotReal
        return pieces(node.args[1])
    if any(operator not in _MIRRORED for operator in operators) or len(operators) > 2:
        raise NotReal
    if len(operators) == 1 and isinstance(node.args[0], Call) and node.args[0].name == "abs":
        return _within(node.args[0].args[0], operators[0], node.args[1])
    spots = [i for i, side in enumerate(node.args) if isinstance(side, Symbol) and letters(side)]
    if len(spots) != 1:
        raise NotReal
    spot, unknown = spots[0], node.args[spots[0]]
    bounds = [(_MIRRORED[operators[i]], node.args[i]) for i in range(spot)][-1:]
    bounds += [(operators[i], node.args[i + 1]) for i in range(spot, len(operators))][:1]
    if len(bounds) != len(operators):
        raise NotReal
    found: Pieces = pieces(Symbol("R"))
    for operator, bound in bounds:
        if letters(bound) & letters(unknown):
            raise NotReal
        found = _bounded(found, operator, bound)
    return found


def _within(inner: Node, operator: str, bound: Node) -> Pieces:
    """|x| < 3 and |x - 1| ≥ 2."""
    names = letters(inner)
    if len(names) != 1 or letters(bound) or not is_value(inner):
        raise NotReal
    (name,) = names
    at_zero = substitute(inner, name, ZERO)
    if not same_value(inner, Call("+", (Symbol(name), at_zero))):
        raise NotReal
    low = Call("+", (negative(bound), negative(at_zero)))
    high = Call("+", (bound, negative(at_zero)))
    if operator in ("<", "<="):
        return (_piece(low, high, operator == "<=", operator == "<="),)
    if operator in (">", ">="):
        closed = operator == ">="
        return (
            _piece(_MINUS_INFINITY, low, False, closed),
            _piece(high, _INFINITY, closed, False),
        )
    raise NotReal


def _bounded(found: Pieces, operator: str, bound: Node) -> Pieces:
    match operator:
        case "=":
            return _points((bound,))
        case "!=":
            return _intersect(found, _complement(_points((bound,))))
        case "<" | "<=":
            half = _piece(_MINUS_INFINITY, bound, False, operator == "<=")
        case _:
            half = _piece(bound, _INFINITY, operator == ">=", False)
    if len(found) == 1 and letters(bound):
        # With unknown ends 1 < x < a is taken as it stands.
        (whole,) = found
        if operator in ("<", "<="):
            return (_piece(whole.left, bound, whole.closed_left, operator == "<="),)
        return (_piece(bound, whole.right, operator == ">=", whole.closed_right),)
    if any(letters(piece.left) | letters(piece.right) for piece in found):
        (whole,) = found
        if operator in ("<", "<="):
            return (_piece(whole.left, bound, whole.closed_left, operator == "<="),)
        return (_piece(bound, whole.right, operator == ">=", whole.closed_right),)
    return _intersect(found, (half,))


def merged(found: Pieces) -> Pieces:
    """Disjoint pieces in order, joined where they touch."""
    if len(found) > MAX_PIECES:
        raise NotReal
    kept = [p for p in found if not _is_empty(p)]
    if any(letters(p.left) | letters(p.right) for p in kept):
        if len(kept) > 1:
            raise NotReal
        return tuple(kept)
    kept.sort(key=lambda piece: (piece.low, not piece.closed_left))
    result: list[Piece] = []
    for piece in kept:
        last = result[-1] if result else None
        if last is None or not _touch(last, piece):
            result.append(piece)
            continue
        further = _order(piece.right, last.right)
        end = piece if further > 0 else last
        closed = piece.closed_right or last.closed_right if further == 0 else end.closed_right
        first = last.closed_left or (_order(last.left, piece.left) == 0 and piece.closed_left)
        result[-1] = Piece(
            left=last.left, right=end.right, closed_left=first, closed_right=closed,
            low=last.low, high=end.high,
        )  # fmt: skip
    return tuple(result)


def _is_empty(piece: Piece) -> bool:
    if letters(piece.left) | letters(piece.right):
        return False
    order = _order(piece.left, piece.right)
    return order > 0 or (order == 0 and not (piece.closed_left and piece.closed_right))


def _touch(first: Piece, second: Piece) -> bool:
    order = _order(first.right, second.left)
    return order > 0 or (order == 0 and (first.closed_right or second.closed_left))


def _order(first: Node, second: Node) -> int:
    """-1, 0 or 1 as the first real number is less, equal or greater."""
    one, two = approximate(first), approximate(second)
    close = abs(one - two) <= 1e-9 * max(1, abs(one)) if math.isfinite(one - two) else one == two
    if close and _same_end(first, second):
        return 0
    return -1 if one < two else 1


def _same_end(first: Node, second: Node) -> bool:
    return first == second or same_value(first, second)


def _intersect(first: Pieces, second: Pieces) -> Pieces:
    found = []
    if len(first) * len(second) > MAX_PIECES**2:
        raise NotReal
    for a in first:
        for b in second:
            if any(letters(end) for end in (a.left, a.right, b.left, b.right)):
                raise NotReal
            low, high = _order(a.left, b.left), _order(a.right, b.right)
            start, stop = (a if low > 0 else b), (a if high < 0 else b)
            piece = Piece(
                left=start.left, right=stop.right,
                closed_left=a.closed_left and b.closed_left if low == 0 else start.closed_left,
                closed_right=a.closed_right and b.closed_right if high == 0 else stop.closed_right,
                low=start.low, high=stop.high,
            )  # fmt: skip
            if not _is_empty(piece):
                found.append(piece)
    return tuple(found)


def _complement(found: Pieces) -> Pieces:
    rest: list[Piece] = []
    left, closed = _MINUS_INFINITY, False
    for piece in merged(found):
        if piece.low != -math.inf:
            rest.append(_piece(left, piece.left, closed, not piece.closed_left))
        left, closed = piece.right, not piece.closed_right
    if left != _INFINITY:
        rest.append(_piece(left, _INFINITY, closed, False))
    return tuple(rest)
