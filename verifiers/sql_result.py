"""Whether two query results are the same: as bags or in order, floats within a tolerance."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from palestra.verifiers.sql_rows import Rows

# Rows that differ by rounding only and in several columns are paired off one by one.
_MAX_PAIRED = 300


def difference(
    found: Rows, expected: Rows, *, ordered: bool, by_name: bool, relative: float
) -> str:
    """What tells two results apart; "" if nothing does.

    Numbers are equal within the share `relative`, whether SQLite calls them integers or floats;
    text equals text only, NULL only NULL. Duplicates count. With `by_name` columns are matched by
    their names, whatever their order and case; otherwise by position, whatever their names.
    """
    if len(found.columns) != len(expected.columns):
        return f"{len(found.columns)} columns instead of {len(expected.columns)}"
    if len(found.rows) != len(expected.rows):
        return f"{len(found.rows)} rows instead of {len(expected.rows)}"
    rows = found.rows
    if by_name:
        names, wanted = _names(found), _names(expected)
        if sorted(names) != sorted(wanted):
            return f"columns {', '.join(names)[:100]} instead of {', '.join(wanted)[:100]}"
        order = [names.index(name) for name in wanted]
        rows = tuple(tuple(row[i] for i in order) for row in rows)
    if ordered:
        same = all(_same_row(a, b, relative) for a, b in zip(rows, expected.rows, strict=True))
        return "" if same else "other rows, or another order"
    return "" if _same_bag(rows, expected.rows, relative) else "other rows"


def _same_bag(
    found: Sequence[tuple[Any, ...]], expected: Sequence[tuple[Any, ...]], relative: float
) -> bool:
    if Counter(map(_key, found)) == Counter(map(_key, expected)):
        return True
    if relative == 0:
        return False
    groups: defaultdict[Any, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((found, expected)):
        for row in rows:
            # What is no number has to be equal: only rows alike in that can be the same.
            alike = tuple(None if _is_number(v) else _key((v,)) for v in row)
            groups[alike][side].append(tuple(v for v in row if _is_number(v)))
    return all(_same_numbers(a, b, relative) for a, b in groups.values())


def _same_numbers(
    found: list[tuple[float, ...]], expected: list[tuple[float, ...]], relative: float
) -> bool:
    if len(found) != len(expected):
        return False
    found, expected = sorted(found), sorted(expected)
    if all(_same_row(a, b, relative) for a, b in zip(found, expected, strict=True)):
        return True
    if len(found) > _MAX_PAIRED:
        return False
    left = list(found)
    for row in expected:
        match = next((i for i, other in enumerate(left) if _same_row(other, row, relative)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_row(left: Sequence[Any], right: Sequence[Any], relative: float) -> bool:
    return all(_same_cell(a, b, relative) for a, b in zip(left, right, strict=True))


def _same_cell(left: Any, right: Any, relative: float) -> bool:
    if _is_number(left) and _is_number(right):
        if left == right:
            return True
        # Integers are exact: only a float can be off by rounding.
        is_rounded = isinstance(left, float) or isinstance(right, float)
        return is_rounded and math.isclose(left, right, rel_tol=relative)
    return type(left) is type(right) and bool(left == right)


def _key(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Equal and hashed alike for rows of the same cells: 1 is 1.0, and not "1"."""
    return tuple(("", v) if _is_number(v) else (type(v).__name__, v) for v in row)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _names(rows: Rows) -> list[str]:
    return [name.lower() for name in rows.columns]
