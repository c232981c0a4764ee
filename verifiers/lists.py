"""`list_f1`: the reply lists what the reference lists, with partial credit."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from palestra.types import Score, Unscorable
from palestra.verifiers.fenced import last_block
from palestra.verifiers.json_answer import NotJson, read_json
from palestra.verifiers.normalized import f1, normalize
from palestra.verifiers.verifier import verifier

_MAX_ITEMS = 10_000
_BULLET = re.compile(r"(?:[-*•–+]|\(?\d{1,5}[.):])\s")
_INTRODUCTION = re.compile(r"[^:\n]{0,200}:(?=\s)")
_SEPARATORS = (";", ",", " and ", " or ")
_NUMBER = re.compile(r"[-+]?[0-9]{0,100}\.?[0-9]{1,100}")


def list_f1(
    *, exact: bool = False, ordered: bool = False, duplicates: bool = True
) -> Callable[..., Score]:
    """A verifier: the F1 of the reply's items against the reference's; 1 or 0 with `exact`.

    The reply is a JSON list (or its last fenced block is), bullets or numbers one to a line, or
    items between lines, commas, semicolons, "and" or "or", but for those that stand inside of an
    item of the reference; "The answer is:" in front of them does not count. Items are compared as
    `normalized` does, numbers by value. With `duplicates` both sides are bags, otherwise sets; with
    `ordered` (which asks for `exact`) lists.

    F1 pays for guesses: half of the items right earns two thirds. Use `exact` where that is no use.

    Raises:
        ValueError: `ordered` without `exact`, or without `duplicates`.
    """
    if ordered and not (exact and duplicates):
        raise ValueError("ordered lists are equal or not: pass exact=True, and duplicates as it is")

    @verifier(name="list_f1")
    def compare(reply: str, answer: Any) -> Score:
        """How far the items agree. Raises Unscorable for a reference that is no list."""
        wanted = _reference(answer)
        expected = [_item(item) for item in wanted]
        whole = " ".join(str(item).strip() for item in wanted)
        separators = tuple(mark for mark in _SEPARATORS if mark not in whole)
        found = [item for item in map(_item, items_of(reply, separators)) if item]
        if len(found) > _MAX_ITEMS:
            return Score(value=0.0, explanation=f"more than {_MAX_ITEMS:,} items")
        if not duplicates:
            found, expected = sorted(set(found)), sorted(set(expected))
        if not ordered:
            found, expected = sorted(found), sorted(expected)
        value = float(found == expected) if exact else f1(found, expected)
        missing = set(expected).difference(found)
        why = f"{len(found)} items, {len(missing)} of {len(set(expected))} missing"
        return Score(value=value, explanation="" if value == 1.0 else why)

    return compare


def items_of(reply: str, separators: tuple[str, ...] = _SEPARATORS) -> list[Any]:
    """The items that a reply lists: values where it is JSON, else text."""
    block = last_block(reply, ("json", "text"))
    text = (reply if block is None else block).strip()
    try:
        value = read_json(text)
    except NotJson:
        value = None
    if isinstance(value, list):
        return value
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    bullets = [line for line in lines if _BULLET.match(line)]
    if bullets:
        return [_BULLET.sub("", line, count=1).strip() for line in bullets]
    introduction = _INTRODUCTION.match(text)
    rest = text[introduction.end() :] if introduction else text
    marks = "|".join(map(re.escape, ("\n", *separators)))
    return [item.strip() for item in re.split(marks, rest) if item.strip()]


def _item(value: Any) -> str:
    """What an item is compared by: "" for one that is no text or number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = str(value).strip().rstrip(".")
    # Normalization would take away its sign and its point.
    return str(Fraction(text)) if _NUMBER.fullmatch(text) else normalize(text)


def _reference(answer: Any) -> list[Any]:
    if isinstance(answer, str):
        try:
            answer = read_json(answer)
        except NotJson:
            answer = None
    if isinstance(answer, set | frozenset | tuple):
        answer = list(answer)
    items = answer if isinstance(answer, list) else []
    if not items or not all(map(_item, items)):
        raise Unscorable(
            f"list_f1 needs a list of texts or numbers as the task's answer, got {answer!r:.80}"
        )
    return items
