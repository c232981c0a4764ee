"""`math`: the reply's answer is the reference, as mathematics."""

from __future__ import annotations

import contextlib
import re
import time
from collections import OrderedDict
from fractions import Fraction
from functools import lru_cache
from typing import Any

from palestra.types import Failure, Score, Unscorable
from palestra.verifiers.extract import Cut, after_hashes, boxed, extract
from palestra.verifiers.extract_value import last_value
from palestra.verifiers.math_forms.comparison import same_reading
from palestra.verifiers.math_forms.reading import Reading, has_content, read
from palestra.verifiers.math_forms.relations import stated_value
from palestra.verifiers.math_forms.tree import MAX_CHARS, Call, Node, TooLarge, is_value
from palestra.verifiers.math_forms.words import calendar_date, time_of_day
from palestra.verifiers.math_forms.workers import Exhausted, is_costly, judge_by_sympy

# Waiting for a worker included; most comparisons need none and take a millisecond.
TIMEOUT_S = 10.0

_MATHEMATICAL = re.compile(r"\\(?!text|mathrm|mbox|textbf|textit|operatorname)[A-Za-z]+|[\d=<>^]")
_HEDGE = re.compile(
    r"\b(?:or|either|maybe|perhaps|possibly|probably|(?:could|might|may) be)\b", re.IGNORECASE
)
_NEGATION = re.compile(r"\b(?:not|never|wrong|incorrect|except)\b|n't\b", re.IGNORECASE)
_NEGATED = re.compile(r"(?:\bnot|\bnever|n't)\s+(?:\w+\s+){0,2}\W*$", re.IGNORECASE)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_NAMED_CHOICE = re.compile(
    r"\(([A-J])\)|\b(?:option|choice|answer|answer is|is)\s*:?\s*\(?([A-J])\b(?!')|^\W*([A-J])[).:]"
)
_COPULA = re.compile(r"\b(?:is|are|was|were|be)\b|[:=]")


def math(reply: str, answer: Any, *, timeout_s: float = TIMEOUT_S) -> Score:
    """1 if the answer that the reply gives last equals the reference mathematically.

    The answer is found by `extract`; `equal` says what counts as equal. Exact values must be exact:
    a rounded decimal is right only where the reference says that it is approximate (\\approx 3.14).
    That is the one thing that depends on the side: a reply's own \\approx excuses nothing.

    Raises:
        Unscorable: the reference cannot be read, or it alone takes too much time or memory.
        Failure: no worker process was ready within timeout_s.
    """
    reference = _reference(answer)
    found = extract(reply)
    if found is None:
        return Score(value=0.0, explanation="the reply gives no answer that can be found")
    if len(found.text) > MAX_CHARS:
        return Score(value=0.0, explanation="the answer is too long to be read")
    try:
        if _verdict(reference, found.text, timeout_s):
            return Score(value=1.0)
    except Failure:
        # Where the reference needs no worker, the answer brought the wait about.
        if read(reference).advanced:
            raise
    return Score(value=0.0, explanation=f"the answer {found.text!r:.80} is not {reference!r:.80}")


def equal(first: str, second: str, *, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether two answers are equal; equal(a, b) is equal(b, a).

    Numbers, sets, intervals, matrices, equations and expressions in LaTeX or plain text count by
    their meaning, everything else by its words. What cannot be read or computed is equal to nothing
    but the same text.

    Raises:
        Failure: no worker process was ready within timeout_s.
    """
    one, two = read(first), read(second)
    if not (has_content(one) and has_content(two)):
        return False
    try:
        if same_reading(one, two):
            return True
        if not _needs_sympy(one, two):
            return False
        # In one order, so that the verdict cannot depend on it.
        texts = sorted((one.text, two.text))
        if any(map(is_costly, texts)):
            return False
        deadline = time.monotonic() + timeout_s
        return judge_by_sympy(texts[0], texts[1], deadline=deadline) == "equal"
    except (TooLarge, RecursionError, Exhausted):
        return False


def clear_caches() -> None:
    """Forget what has been read and judged, e.g. before measuring."""
    read.cache_clear()
    _verdict.cache_clear()
    _alone.clear()


def _reference(answer: Any) -> str:
    if type(answer) is not str and (
        isinstance(answer, bool) or not isinstance(answer, str | int | float | Fraction)
    ):
        raise Unscorable(f"math needs text or a number as the task's answer, got {answer!r:.80}")
    try:
        text = str(answer).strip()
    except ValueError:  # an integer of too many digits to print
        raise Unscorable("math's reference has too many digits") from None
    solution = None
    if "\\boxed" in text:
        try:
            solution = boxed(text)
        except Cut:
            raise Unscorable(f"the box in the reference is empty or open: {text!r:.80}") from None
    elif "####" in text:
        solution = after_hashes(text)
    text = text if solution is None else solution.text
    if len(text) > MAX_CHARS:
        raise Unscorable(f"math's reference is longer than {MAX_CHARS} characters: {text!r:.80}")
    return text


@lru_cache(maxsize=8192)
def _verdict(reference: str, given: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    expected = read(reference)
    if not has_content(expected) or expected.text.lower() in ("nan", "+nan", "-nan"):
        raise Unscorable(f"math cannot read the reference {reference!r:.80}")
    candidate = _candidate(expected, given)
    if candidate is None:
        return False
    try:
        if _same_exactly(candidate, expected):
            return True
    except (TooLarge, RecursionError):
        _check_alone(expected)
        return False
    if _needs_sympy(expected, candidate):
        return _judged(expected, candidate, deadline)
    if expected.tree is None and _MATHEMATICAL.search(expected.text):
        _check_readable(expected, deadline)
    return False


def _candidate(expected: Reading, given: str) -> Reading | None:
    """What the reply's answer is compared as; prose is searched for the kind the reference has."""
    reading = read(given)
    if expected.choice and not reading.choice:
        letters = {next(filter(None, found)) for found in _NAMED_CHOICE.findall(given)}
        if _NEGATION.search(given):
            return None
        return read(letters.pop()) if len(letters) == 1 else reading
    if reading.tree is not None or reading.advanced or (expected.choice and reading.choice):
        return reading
    if time_of_day(reading.text) or calendar_date(reading.words):
        return reading
    if expected.tree is None:
        if reading.words != expected.words:
            last = _COPULA.split(reading.words)[-1].strip()
            if last == expected.words:
                return expected
        return reading
    if _HEDGE.search(given):
        return None
    if len(_WORD.findall(given)) < 2:
        return reading  # a formula that cannot be read has no last value
    value = last_value(given)
    if value is not None and _NEGATED.search(given[: given.rfind(value)][-60:]):
        return None
    return reading if value is None else _shortened(value)


def _shortened(value: str) -> Reading:
    """A value with the words after it, if they can be a unit, or else without."""
    reading = read(value)
    if reading.tree is None and not reading.advanced:
        bare = last_value(value)
        return reading if bare is None else read(bare)
    return reading


def _same_exactly(candidate: Reading, expected: Reading) -> bool:
    """As `equal`, but an approximation that the reply adds counts neither for nor against it."""
    tree = candidate.tree
    if isinstance(tree, Call) and tree.name == "approx":
        return any(same_reading(_with_tree(candidate, version), expected) for version in tree.args)
    return same_reading(candidate, expected)


def _with_tree(reading: Reading, tree: Node) -> Reading:
    return Reading(text="", tree=tree, words="", choice=None, advanced=False)


def _needs_sympy(first: Reading, second: Reading) -> bool:
    return (first.advanced and _mathematical(second)) or (second.advanced and _mathematical(first))


def _mathematical(reading: Reading) -> bool:
    """Whether it could be the value of an integral or a sum, or is another."""
    return reading.advanced or (reading.tree is not None and _may_be_value(reading.tree))


def _may_be_value(tree: Node) -> bool:
    return is_value(stated_value(tree) or tree) or (
        isinstance(tree, Call) and tree.name == "matrix"
    )


def _judged(expected: Reading, candidate: Reading, deadline: float) -> bool:
    if is_costly(candidate.text):
        return False
    try:
        verdict = judge_by_sympy(expected.text, candidate.text, deadline=deadline)
    except Exhausted:
        if expected.tree is None:
            _check_readable(expected, deadline)
        return False
    if verdict == "bad reference" and expected.tree is None:
        raise Unscorable(f"math cannot read the reference {expected.text!r:.80}")
    return verdict == "equal"


def _check_readable(expected: Reading, deadline: float) -> None:
    """Raises Unscorable if sympy can make nothing of the reference, either."""
    try:
        verdict = _judged_alone(expected.text, deadline)
    except Exhausted:
        raise Unscorable(f"the reference alone takes too much: {expected.text!r:.80}") from None
    if verdict == "bad reference":
        raise Unscorable(f"math cannot read the reference {expected.text!r:.80}")


# Per reference one of these is enough, however many answers to it are odd.
_alone: OrderedDict[str, str] = OrderedDict()
_MAX_ALONE = 1024


def _judged_alone(reference: str, deadline: float) -> str:
    verdict = _alone.get(reference)
    if verdict is None:
        verdict = judge_by_sympy(reference, reference, deadline=deadline)
        _alone[reference] = verdict
        while len(_alone) > _MAX_ALONE:
            with contextlib.suppress(KeyError):  # another thread was quicker
                _alone.popitem(last=False)
    return verdict


def _check_alone(expected: Reading) -> None:
    """Raises Unscorable if the reference cannot be computed, whatever the answer."""
    from palestra.verifiers.math_forms.numeric import computable

    if expected.tree is not None and not computable(expected.tree):
        raise Unscorable(f"the reference is too large to compute: {expected.text!r:.80}")
