"""`json_fields`: the reply is a JSON object, compared with the reference field by field."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from palestra.types import Score, Unscorable
from palestra.verifiers.json_answer import NotJson, canonical, read_answer, read_json, same_json
from palestra.verifiers.verifier import verifier

_MISSING = object()


def json_fields(
    weights: Mapping[str, float] | None = None,
    *,
    unordered: bool | Collection[str] = False,
    relative: float = 0.0,
    allow_extra: bool = True,
) -> Callable[..., Score]:
    """A verifier: the weighted share of the reference's fields that the reply has right.

    The reference is an object (or its JSON text); `weights` are those of its fields, 1 where none
    is given. A field counts if it is equal by type and value: 1 is 1.0, neither true nor "1", and
    null is not missing. Lists in the fields of `unordered` (True: in all) are bags. Numbers may
    differ by the share `relative` where they are a field's whole value. With `allow_extra=False`
    fields that the reference does not have make the reply wrong.

    Raises:
        ValueError: a weight that is negative or not finite, or a negative `relative`.
    """
    given = dict(weights or {})
    for name, weight in given.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight of field {name} must be at least 0 and finite, got {weight}")
    if not 0 <= relative < math.inf:
        raise ValueError(f"relative must be at least 0 and finite, got {relative}")

    @verifier(name="json_fields")
    def compare(reply: str, answer: Any) -> Score:
        """The share that is right. Raises Unscorable for a reference that is no object."""
        expected = _reference(answer)
        total = math.fsum(given.get(name, 1.0) for name in expected)
        if total == 0:
            raise Unscorable(f"no field of the reference has a weight: {', '.join(expected)}")
        try:
            found = read_answer(reply)
        except NotJson as problem:
            return Score(value=0.0, explanation=str(problem))
        if not isinstance(found, dict):
            return Score(value=0.0, explanation="the reply is no JSON object")
        extra = found.keys() - expected.keys()
        if extra and not allow_extra:
            return Score(value=0.0, explanation=f"unexpected fields: {_shown(sorted(extra))}")
        right = {
            name: _same(
                found.get(name, _MISSING),
                value,
                unordered=unordered if isinstance(unordered, bool) else name in unordered,
                relative=relative,
            )
            for name, value in expected.items()
        }
        wrong = [name for name, is_right in right.items() if not is_right]
        earned = math.fsum(given.get(name, 1.0) for name in right if right[name])
        return Score(
            value=min(1.0, earned / total),
            parts={name: float(is_right) for name, is_right in right.items()},
            explanation=f"wrong or missing: {_shown(wrong)}" if wrong else "",
        )

    return compare


def _same(found: Any, expected: Any, *, unordered: bool, relative: float) -> bool:
    if found is _MISSING:
        return False
    if relative > 0 and _is_number(found) and _is_number(expected):
        return math.isclose(found, expected, rel_tol=relative)
    return same_json(found, expected, unordered=unordered)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reference(answer: Any) -> dict[str, Any]:
    try:
        expected = read_json(answer if isinstance(answer, str) else canonical(answer))
    except (NotJson, TypeError, RecursionError) as error:
        raise Unscorable(f"the task's answer is no JSON: {error}") from None
    if not isinstance(expected, dict) or not expected:
        raise Unscorable(f"json_fields needs an object as the task's answer, got {answer!r:.80}")
    return expected


def _shown(names: list[str]) -> str:
    text = ", ".join(names[:20])
    return text if len(text) <= 200 else text[:199] + "…"
