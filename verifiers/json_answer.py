"""Read JSON from a reply, and compare JSON values by JSON's own notion of equality."""

from __future__ import annotations

import json
from typing import Any

from palestra.verifiers.fenced import last_block

MAX_CHARS = 1_000_000
_MAX_DEPTH = 64


class NotJson(ValueError):
    """A text that is no JSON document; the message says why."""


def read_answer(reply: str) -> Any:
    """The JSON value that a reply is, or that its last fenced block is.

    Raises NotJson for everything else; see `read_json`.
    """
    try:
        return read_json(reply)
    except NotJson as problem:
        block = last_block(reply, ("json",))
        if block is None:
            raise problem from None
    return read_json(block)


def read_json(text: str) -> Any:
    """A JSON document. Raises NotJson for one that says different things to different readers.

    Refused are names that occur twice in an object, NaN and infinities, numbers too large for a
    float or of more than 4,300 digits, more than 64 levels, more than 1,000,000 characters.
    """
    if len(text) > MAX_CHARS:
        raise NotJson(f"more than {MAX_CHARS:,} characters")
    if not text.strip():
        raise NotJson("there is no JSON")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except NotJson:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJson(f"not JSON: {error}"[:200]) from None
    _check(value, 1)
    return value


def same_json(left: Any, right: Any, *, unordered: bool = False) -> bool:
    """Whether two JSON values are equal, by type and value: 1 is 1.0, and neither true nor "1".

    With `unordered`, lists are bags: order does not matter at any level, duplicates do.
    """
    return canonical(left, unordered=unordered) == canonical(right, unordered=unordered)


def canonical(value: Any, *, unordered: bool = False) -> str:
    """The same text for equal JSON values, and for no others."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, dict):
        pairs = sorted(
            f"{json.dumps(name)}:{canonical(item, unordered=unordered)}"
            for name, item in value.items()
        )
        return f"{{{','.join(pairs)}}}"
    items = [canonical(item, unordered=unordered) for item in value]
    return f"[{','.join(sorted(items) if unordered else items)}]"


def count_nodes(value: Any) -> int:
    """How many values there are in a JSON value, itself included."""
    if isinstance(value, dict):
        return 1 + sum(map(count_nodes, value.values()))
    return 1 + sum(map(count_nodes, value)) if isinstance(value, list) else 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotJson("a name occurs twice in an object")
    return found


def _refuse(constant: str) -> Any:
    raise NotJson(f"{constant} is no JSON number")


def _check(value: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise NotJson(f"more than {_MAX_DEPTH} levels")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise NotJson("a number too large for a float")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
