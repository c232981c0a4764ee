"""`Reply`: a reply taken apart once: words, sentences, paragraphs, lines; deterministic, linear."""

from __future__ import annotations

import functools
import re
import unicodedata
from functools import cached_property

from palestra.verifiers.instructions.sentences import EMOJI, sentences_of

# A longer reply meets no constraint.
MAX_CHARS = 200_000

# Invisible characters that would hide a word from a search: zero-width space, soft hyphen and such.
# The joiners U+200C and U+200D stay: scripts and emoji are written with them.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)

# Scripts without spaces, in which every character counts as a word: kana and Han.
_SPACELESS = (
    "\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
)
_JOINERS = "'’‐‑-"


class Reply:
    """A reply, its invisible characters removed and composed (NFC) where that is safe.

    A word is a run of letters, digits and their marks, joined by apostrophes, hyphens, or points
    and commas between digits ("don't", "well-known", "3.14"); "U.S." is one. Each Han or kana
    character is a word; Thai and other scripts without spaces are runs.

    A sentence ends at ". ! ? …" (and closing quotes, and emoji) before space, at "。！？।؟", at a
    blank line and before a list item, heading or quotation; not after "Dr.", an initial, a list
    number, nor at "?" in a quotation that goes on in lower case. It holds at least one word.

    A paragraph ends at a blank line. Lines are those with something on them.
    """

    def __init__(self, text: str) -> None:
        self.is_too_long = len(text) > MAX_CHARS
        text = text[:MAX_CHARS].replace("\r\n", "\n").replace("\r", "\n")
        self.raw = text
        self.text = composed(_INVISIBLE.sub("", text)).strip()

    @cached_property
    def says_nothing(self) -> bool:
        """Whether there is no letter, digit or symbol in it."""
        return not _SAYING.search(self.text)

    @cached_property
    def words(self) -> list[str]:
        """The words in order, as written."""
        return words_of(self.text)

    @cached_property
    def folded(self) -> list[str]:
        """The words in order, without regard to case."""
        return words_of(self.folded_text)

    @cached_property
    def folded_text(self) -> str:
        """The text without regard to case, curly apostrophes and joiners, space collapsed."""
        return folded(self.text)

    @cached_property
    def tokens(self) -> list[str]:
        """What stands between spaces."""
        return self.text.split()

    @cached_property
    def sentences(self) -> list[str]:
        """The sentences in order, each with its final punctuation and emoji."""
        return sentences_of(self.text)

    @cached_property
    def paragraphs(self) -> list[str]:
        """The paragraphs in order."""
        return [part.strip() for part in _BLANK_LINE.split(self.text) if part.strip()]

    @cached_property
    def divided(self) -> list[str]:
        """What stands between markdown dividers `***`, with the empty parts inside."""
        parts = [part.strip() for part in _DIVIDER.split(self.text)]
        return parts[not parts[0] : len(parts) - (len(parts) > 1 and not parts[-1])]

    @cached_property
    def lines(self) -> list[str]:
        """The lines with something on them, indented as they were."""
        return [line.rstrip() for line in self.text.split("\n") if line.strip()]


_SAYING = re.compile(rf"[^\W_]|[{EMOJI}$€£¥+=<>|~^%°§]")
_BLANK_LINE = re.compile(r"\n[^\S\n]*+\n\s*+")
_DIVIDER = re.compile(r"(?<!\*)\*\*\*(?!\*)|(?<=\n)[^\S\n]*+\* \* \*(?=[^\S\n]*+(?:\n|\Z))")
_LONG_MARKS = re.compile("[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u1dc0-\u1dff\u20d0-\u20f0]{31}")


def composed(text: str) -> str:
    """The text in NFC, unless it has more combining marks in a row than any language writes.

    Python's normalisation takes quadratic time on long runs of marks (Unicode's stream-safe format
    allows 30).
    """
    if text.isascii() or _LONG_MARKS.search(text):
        return text
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """A text for comparison: case folded, apostrophes straight, no joiners, space collapsed."""
    text = text.casefold()
    if not text.isascii():
        text = text.translate(_STRAIGHT)
    return " ".join(text.split())


_STRAIGHT = {ord("’"): "'", ord("‘"): "'", ord("ʼ"): "'", 0x200C: None, 0x200D: None}


def words_of(text: str) -> list[str]:
    """The words of any text, as `Reply` counts them."""
    found: list[str] = _word_pattern(text.isascii()).findall(text)
    return found


@functools.cache
def _word_pattern(is_ascii: bool) -> re.Pattern[str]:
    if is_ascii:
        piece, alone = r"[^\W_]++", ""
    else:
        piece = rf"(?:[^\W_{_SPACELESS}][{marks()}\u200c\u200d]*+)++"
        alone = rf"|[{_SPACELESS}]"
    joint = rf"(?:[{_JOINERS}]|(?<=\d)[.,:](?=\d))"
    return re.compile(rf"\b(?:[^\W\d_]\.){{2,}}+|{piece}(?:{joint}{piece})*+{alone}")


@functools.cache
def marks() -> str:
    """The combining marks as the inside of a character class: `\\w` does not have them."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x1F000):
        if unicodedata.category(chr(code))[0] == "M":
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
