"""Fewer points for long runs: a page with a million numbers opens slowly and shows no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palestra.view.run_files import Row, finite

MAX_POINTS = 800


def thin(rows: Sequence[Row], max_points: int = MAX_POINTS) -> Sequence[Row]:
    """At most `max_points` rows, each the mean of equally many successive ones.

    The merged row carries the last step. Keys ending in `_max` take the largest value; counts by
    kind are means per step.
    """
    if len(rows) <= max_points:
        return rows
    size = -(-len(rows) // max_points)
    return [_merge(rows[start : start + size]) for start in range(0, len(rows), size)]


def _merge(rows: Sequence[Row]) -> Row:
    merged = {key: _combine(key, rows) for key in {key for row in rows for key in row}}
    return {**merged, "step": rows[-1]["step"]}


def _combine(key: str, rows: Sequence[Row]) -> Any:
    dicts = [value for row in rows if isinstance(value := row.get(key), dict)]
    if dicts:
        kinds = {kind for counts in dicts for kind in counts}
        return {k: sum(finite(counts.get(k)) or 0.0 for counts in dicts) / len(rows) for k in kinds}
    numbers = [number for row in rows if (number := finite(row.get(key))) is not None]
    if not numbers:
        return None
    return max(numbers) if key.endswith("_max") else sum(numbers) / len(numbers)
