"""`Reading`: an answer's text read once, for any number of comparisons."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from palestra.verifiers.math_forms.cleaning import clean
from palestra.verifiers.math_forms.statements import parse
from palestra.verifiers.math_forms.tree import (
    MAX_CHARS,
    Call,
    Node,
    Number,
    Symbol,
    Unreadable,
    number,
)
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
_PLAIN = re.compile(
    r"\s*(-?)(\\?\$)?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,40})(?:\.([0-9]{1,40}))?(\$)?\s*",
    re.ASCII,
)
_INFINITIES = {"negative infinity": "-\\infty", "minus infinity": "-\\infty"}
_INFINITIES |= {"positive infinity": "\\infty", "plus infinity": "\\infty"}
# 2A_{16}: digits beyond 9, which would else be unknowns.
_BASE = re.compile(
    r"(?:\\text\w*\{|\\mathrm\{)?([0-9A-Fa-f]*[A-Fa-f][0-9A-Fa-f]*)\}?_\{?(\d{2})\}?"
)
_EXCEPT = re.compile(
    r"(?:all |any |the )?(?:real numbers?|reals?|real values)(?: \w)?"
    r" (?:except|other than)(?: for)?\s*(?:\w\s*=\s*)?(.+)",
    re.IGNORECASE,
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
    """Never raises: what cannot be read says so. Time and memory are bounded."""
    plain = _PLAIN.fullmatch(text)
    if plain is not None:
        return _plain_number(text, plain)
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


def _plain_number(text: str, match: re.Match[str]) -> Reading:
    """The common case, without a parser: -1,234.50, $5 or $7$ in dollars as LaTeX has them."""
    sign, currency, whole, fraction, closing = match.groups(default="")
    whole = whole.replace(",", "")
    value = Fraction(int(whole + fraction), 10 ** len(fraction))
    digits = len((whole + fraction).lstrip("0")) if fraction else 0
    tree: Node = Number(-value if sign else value, digits, len(fraction))
    if bool(currency) != bool(closing):
        tree = Call("unit", (tree, Symbol("dollar")))
    return Reading(text=text.strip(), tree=tree, words=text.strip(), choice=None, advanced=False)


def _tree(cleaned: str, words: str) -> tuple[Node | None, str]:
    if words in NOTHING:
        return Call("set", ()), ""
    if words in EVERYTHING:
        return Symbol("R"), ""
    if not cleaned:
        return None, "empty"
    spelled = number_words(cleaned) if words[:1].isalpha() or words[-1:].isalpha() else None
    if words in _INFINITIES:
        spelled = _INFINITIES[words]
    base = _BASE.fullmatch(cleaned)
    if base is not None:
        return Call("base", (Symbol(base[1].lower()), number(int(base[2])))), ""
    exception = _EXCEPT.fullmatch(cleaned)
    if exception is not None:
        spelled = f"\\mathbb{{R}} \\setminus \\{{{exception[1]}\\}}"
    try:
        return parse(spelled or _last_side(cleaned)), ""
    except Unreadable as error:
        return None, str(error)
    except RecursionError:  # the caller's own stack is deep
        return None, "nested too deeply"


def _last_side(text: str) -> str:
    """The last member of a chain whose others only sympy knows: \\sum ... = n(n+1)/2."""
    if "=" not in text or not _ADVANCED.search(text):
        return text
    depth, cut = 0, -1
    for i, char in enumerate(text):
        depth += (char in "{([") - (char in "})]")
        if char == "=" and depth == 0:
            cut = i
    return text[cut + 1 :]


def has_content(reading: Reading) -> bool:
    """Whether there is a letter or digit in it at all."""
    if reading.tree is not None:
        return reading.tree != Symbol("...")
    return _LETTER_OR_DIGIT.search(reading.words) is not None
