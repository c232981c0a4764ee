"""Sets of real numbers: intervals, unions, inequalities and finite sets, brought to one form."""

from __future__ import annotations

from palestra.verifiers.math_forms.families import substitute
from palestra.verifiers.math_forms.pieces import (
    INFINITY,
    MINUS_INFINITY,
    NotReal,
    Pieces,
    complement,
    intersect,
    interval,
    merged,
    same_end,
)
from palestra.verifiers.math_forms.tree import (
    Call,
    Node,
    Symbol,
    is_value,
    letters,
    negative,
    number,
)
from palestra.verifiers.math_forms.values import expand_signs, same_value

_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
ZERO = number(0)


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
        and same_end(a.left, b.left)
        and same_end(a.right, b.right)
        for a, b in zip(one, two, strict=True)
    )


def pieces(node: Node) -> Pieces:
    """The intervals and points that a tree stands for, not yet merged."""
    match node:
        case Symbol("R"):
            return (interval(MINUS_INFINITY, INFINITY, False, False),)
        case Call("tuple", (left, right)):
            return (interval(left, right, False, False),)
        case Call("set", args):
            return _points(args)
        case Call("cup", (left, right)):
            return (*pieces(left), *pieces(right))
        case Call("cap", (left, right)):
            return intersect(pieces(left), pieces(right))
        case Call("minus", (left, right)) | Call("+", (left, Call("neg", (right,)))):
            return intersect(pieces(left), complement(pieces(right)))
        case Call("such", (variable, condition)):
            return _builder(variable, condition)
        case Call("and", args):
            return _conjunction(args)
        case Call("list", args):
            return _listed(args)
    if isinstance(node, Call) and node.name.startswith("interval"):
        brackets = node.name.removeprefix("interval")
        left, right = node.args
        return (interval(left, right, brackets[0] == "[", brackets[1] == "]"),)
    if isinstance(node, Call) and node.name.startswith("rel:"):
        return _relation(node)
    raise NotReal


def _points(values: tuple[Node, ...]) -> Pieces:
    expanded: list[Node] = []
    for value in values:
        expanded += expand_signs(value) or (value,)
    return tuple(interval(value, value, True, True) for value in expanded)


def _builder(variable: Node, condition: Node) -> Pieces:
    if isinstance(variable, Call) and variable.name == "rel:in":
        name, domain = variable.args
        if domain != Symbol("R"):
            raise NotReal
        variable = name
    if not isinstance(variable, Symbol):
        raise NotReal
    if isinstance(condition, Call) and condition.name in ("list", "and"):
        return _conjunction(condition.args)
    return _conjunction((condition,))


def _conjunction(conditions: tuple[Node, ...]) -> Pieces:
    """All of the conditions: x > 1 and x < 3."""
    if len({_unknown(part) for part in conditions}) > 1:
        raise NotReal
    found = pieces(conditions[0])
    for condition in conditions[1:]:
        found = intersect(found, pieces(condition))
    return found


def _listed(parts: tuple[Node, ...]) -> Pieces:
    """Any of the parts: x < 1 or x > 3; but x ≠ 2 restricts what stands before it."""
    found: Pieces = ()
    names = {_unknown(part) for part in parts}
    if len(names - {""}) > 1:
        raise NotReal
    for part in parts:
        if isinstance(part, Call) and part.name == "rel:!=" and found:
            found = intersect(found, pieces(part))
        elif isinstance(part, Call) and part.name == "rel:!=" and part is not parts[0]:
            raise NotReal
        elif found and all(_excludes(p) for p in parts):
            found = intersect(found, pieces(part))
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
    match node.args:
        case (Call("abs", (inner,)), bound) if len(operators) == 1:
            return _within(inner, operators[0], bound)
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
        return (interval(low, high, operator == "<=", operator == "<="),)
    if operator in (">", ">="):
        closed = operator == ">="
        return (
            interval(MINUS_INFINITY, low, False, closed),
            interval(high, INFINITY, closed, False),
        )
    raise NotReal


def _bounded(found: Pieces, operator: str, bound: Node) -> Pieces:
    match operator:
        case "=":
            return _points((bound,))
        case "!=":
            return intersect(found, complement(_points((bound,))))
        case "<" | "<=":
            half = interval(MINUS_INFINITY, bound, False, operator == "<=")
        case _:
            half = interval(bound, INFINITY, operator == ">=", False)
    if len(found) == 1 and letters(bound):
        # With unknown ends 1 < x < a is taken as it stands.
        (whole,) = found
        if operator in ("<", "<="):
            return (interval(whole.left, bound, whole.closed_left, operator == "<="),)
        return (interval(bound, whole.right, operator == ">=", whole.closed_right),)
    if any(letters(part.left) | letters(part.right) for part in found):
        (whole,) = found
        if operator in ("<", "<="):
            return (interval(whole.left, bound, whole.closed_left, operator == "<="),)
        return (interval(bound, whole.right, operator == ">=", whole.closed_right),)
    return intersect(found, (half,))
