"""`Reading`: an answer's text read once, for any number of comparisons."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from palestra.verifiers.math_forms.cleaning import clean
from palestra.verifiers.math_forms.statements import parse
from palestra.verifiers.math_forms.tree import MAX_CHARS, Call, Node, Symbol, Unreadable
from palestra.verifiers.math_forms.words import (
    EVERYTHING,
    NOTHING,
    choice_letter,
    number_words,
    plain_text,
)

# What this parser does not know and sympy does.
_ADVANCED = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim|det|vmatrix|partial|nabla|bigcup|bigcap|begin\s*\{vmatrix\}"
    r"|begin\s*\{array\})(?![A-Za-z])|\bd/d[a-z]\b|\\frac\s*\{\s*d\s*\}"
)
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """`tree` is None where the text is no mathematics that the parser knows."""

    text: str
    tree: Node | None
    words: str
    choice: str | None
    advanced: bool
    problem: str = ""


@lru_cache(maxsize=4096)
def read(text: str) -> Reading:
    """Never raises: what cannot be read says so. Bounded in time and memory by the text's length."""
    if len(text) > MAX_CHARS:
        return Reading(
            text=text[:80], tree=None, words="", choice=None, advanced=False, problem="too long"
        )
    cleaned = clean(text)
    words = plain_text(cleaned)
    tree, problem = _tree(cleaned, words)
    return Reading(
        text=cleaned,
        tree=tree,
        words=words,
        choice=choice_letter(cleaned),
        advanced=tree is None and _ADVANCED.search(cleaned) is not None,
        problem=problem,
    )


def _tree(cleaned: str, words: str) -> tuple[Node | None, str]:
    if words in NOTHING:
        return Call("set", ()), ""
    if words in EVERYTHING:
        return Symbol("R"), ""
    if not cleaned:
        return None, "empty"
    spelled = number_words(words) if words[:1].isalpha() or words[-1:].isalpha() else None
    try:
        return parse(spelled or cleaned), ""
    except Unreadable as error:
        return None, str(error)


def has_content(reading: Reading) -> bool:
    """Whether there is a letter or digit in it at all."""
    return reading.tree is not None or _LETTER_OR_DIGIT.search(reading.words) is not None
