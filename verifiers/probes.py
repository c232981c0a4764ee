"""Replies to try a verifier with, made from a task's reference: right ones and tempting ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from palestra.types import Task
from palestra.verifiers.context import text_of

_INTEGER = re.compile(r"[+-]?\d+")
_FRACTION = re.compile(r"([+-]?\d+)/(\d+)")
_DECIMAL = re.compile(r"[+-]?\d+\.\d+")
_RIGHT_TO_LEFT = "\u202e"
_ZERO_WIDTH = "\u200b"
_LOOKALIKES = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")  # Latin to Cyrillic
LONG_REPLY_CHARS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A reply, and whether it deserves the full score. `kind` names how it was made."""

    kind: str
    reply: str
    is_right: bool


def probes_of(task: Task, seed: int = 0) -> list[Probe]:
    """Equivalent forms of the reference, and near misses, empty, echo, constant, … replies.

    Which forms are equivalent depends on what a verifier is for: `exact` is right to refuse most
    of them. No wrong reply states the reference as its only answer.
    """
    reference = _text_of(task.answer)
    rng = random.Random(f"{seed}-{task.id}")
    probes = [Probe(kind="reference", reply=reference, is_right=True)]
    probes += [Probe(kind=kind, reply=text, is_right=True) for kind, text in _same(reference)]
    wrong = [*_near_misses(reference, rng)]
    probes += [Probe(kind=kind, reply=text, is_right=False) for kind, text in wrong]
    probes += [
        Probe(kind=kind, reply=text, is_right=False)
        for kind, text in _tricks(reference, task, [text for _, text in wrong])
    ]
    return list({(probe.kind, probe.reply): probe for probe in probes}.values())


def _text_of(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def _same(reference: str) -> Iterator[tuple[str, str]]:
    """The reference said differently."""
    yield "white space", f"\n  {reference} \n"
    yield "sentence", f"So the answer is {reference}."
    yield "boxed", f"Therefore \\boxed{{{reference}}}"
    yield "bold", f"The answer is **{reference}**"
    yield "after work", f"First I tried 3 and then 8 + 1. The final answer is {reference}"
    value = _number(reference)
    if value is None:
        return
    if value.denominator == 1:
        whole = value.numerator
        yield "decimal point", f"{whole}.0"
        if abs(whole) >= 1000:
            yield "thousands", f"{whole:,}"
        if whole > 0:
            yield "plus sign", f"+{whole}"
        if whole < 0:
            yield "minus sign", f"\N{MINUS SIGN}{-whole}"
    else:
        sign = "-" if value < 0 else ""
        yield "fraction", f"{value.numerator}/{value.denominator}"
        yield "LaTeX fraction", f"${sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}$"
        yield "not reduced", f"{3 * value.numerator}/{3 * value.denominator}"
    decimal = _finite_decimal(value)
    if decimal is not None and "." in decimal:
        yield "decimal", decimal
        yield "trailing zeros", f"{decimal}00"


def _near_misses(reference: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    value = _number(reference)
    if value is not None:
        yield "off by one", str(value + 1)
        if value:
            yield "wrong sign", str(-value)
            yield "off by ten", str(value * 10)
        yield "digit added", f"{reference}7" if "/" not in reference else f"{reference}3"
        yield "cut decimal", f"{float(value + Fraction(1, 1000)):.6f}"
        return
    if len(reference) > 1:
        yield "last character missing", reference[:-1]
        yield "doubled", reference + reference
        place = rng.randrange(len(reference) - 1)
        swapped = [*reference]
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
        if "".join(swapped) != reference:
            yield "characters swapped", "".join(swapped)
    yield "negated", f"not {reference}"


def _tricks(reference: str, task: Task, wrong: list[str]) -> Iterator[tuple[str, str]]:
    """What a policy may find out to be paid for without an answer."""
    yield "empty", ""
    yield "blank", " \n\t "
    prompt = "\n".join(text_of(message) for message in task.messages)
    if reference.strip() and reference not in prompt:
        yield "echo", prompt
    for constant in ("0", "1", "yes", "True", "None", "I do not know."):
        if constant.casefold() != reference.strip().casefold() and _number(constant) != _number(
            reference
        ):
            yield "constant", constant
    if wrong:
        one = wrong[0]
        yield "very long", f"{one} " + "and so on " * (LONG_REPLY_CHARS // 10) + one
        yield "shotgun", "It is one of these: " + ", ".join([*wrong, reference, *reversed(wrong)])
        yield "hedged", f"The answer is {reference} or {one}."
        yield "invisible", _ZERO_WIDTH.join(one)
    backwards = reference[::-1]
    if backwards != reference:
        yield "right to left", _RIGHT_TO_LEFT + backwards
    if (lookalike := reference.translate(_LOOKALIKES)) != reference:
        yield "lookalike letters", lookalike
    yield "control characters", "\0\x1b[2J\x07" + (wrong[0] if wrong else "?")


def _number(text: str) -> Fraction | None:
    text = text.strip()
    if len(text) > 100:
        return None
    if _INTEGER.fullmatch(text) or _DECIMAL.fullmatch(text):
        return Fraction(text)
    match = _FRACTION.fullmatch(text)
    return Fraction(text) if match and int(match[2]) else None


def _finite_decimal(value: Fraction) -> str | None:
    for places in range(1, 13):
        if (10**places) % value.denominator == 0:
            return f"{value.numerator * 10**places // value.denominator / 10**places:.{places}f}"
    return None
