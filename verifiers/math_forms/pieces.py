"""Intervals and points of the real line: put in order, merged, intersected, complemented."""

from __future__ import annotations

import math
from dataclasses import dataclass

from palestra.verifiers.math_forms.numeric import approximate
from palestra.verifiers.math_forms.tree import (
    Node,
    Symbol,
    TooLarge,
    Undefined,
    is_value,
    letters,
    negative,
)
from palestra.verifiers.math_forms.values import same_value

INFINITY = Symbol("oo")
MINUS_INFINITY = negative(INFINITY)
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


def interval(left: Node, right: Node, closed_left: bool, closed_right: bool) -> Piece:
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


def merged(found: Pieces) -> Pieces:
    """Disjoint pieces in order, joined where they touch."""
    if len(found) > MAX_PIECES:
        raise NotReal
    kept = [p for p in found if not _is_empty(p)]
    if any(letters(p.left) | letters(p.right) for p in kept):
        if len(kept) > 1:
            raise NotReal
        return tuple(kept)
    kept.sort(key=lambda part: (part.low, not part.closed_left))
    result: list[Piece] = []
    for part in kept:
        last = result[-1] if result else None
        if last is None or not _touch(last, part):
            result.append(part)
            continue
        further = _order(part.right, last.right)
        end = part if further > 0 else last
        closed = part.closed_right or last.closed_right if further == 0 else end.closed_right
        first = last.closed_left or (_order(last.left, part.left) == 0 and part.closed_left)
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
    if close and same_end(first, second):
        return 0
    return -1 if one < two else 1


def same_end(first: Node, second: Node) -> bool:
    return first == second or same_value(first, second)


def intersect(first: Pieces, second: Pieces) -> Pieces:
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


def complement(found: Pieces) -> Pieces:
    rest: list[Piece] = []
    left, closed = MINUS_INFINITY, False
    for piece in merged(found):
        if piece.low != -math.inf:
            rest.append(interval(left, piece.left, closed, not piece.closed_left))
        left, closed = piece.right, not piece.closed_right
    if left != INFINITY:
        rest.append(interval(left, INFINITY, closed, False))
    return tuple(rest)
