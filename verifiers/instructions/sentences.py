"""Where sentences end: punctuation, abbreviations, quotations, emoji, lists; in linear time."""

from __future__ import annotations

import re

EMOJI = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u23cf"
    "\u23e9-\u23fa\u25aa\u25ab\u25b6\u25c0\u25fb-\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c"
    "\u2b50\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
# With what modifies them: skin tones are above; joiners, variation selectors, keycaps, tags.
_EMOJI_RUN = f"[{EMOJI}][{EMOJI}\u200d\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]*+"

_TERMINATORS = ".!?…‽"
_CLOSERS = "\"'”’»)\\]*_`"
_SENTENCE_END = re.compile(
    rf"(?<![{_TERMINATORS}])[{_TERMINATORS}]++[{_CLOSERS}]*+(?:[^\S\n]*+{_EMOJI_RUN}|(?=\s|\Z))"
    rf"|[。！？｡।॥؟۔]++[{_CLOSERS}」』）]*+"
    # A blank line, or a line that begins a list item, a quotation or a heading.
    r"|\n[^\S\n]*+\n\s*+|\n(?=[^\S\n]*+(?:[-*+•>]\s|\d{1,3}[.)]\s|\#{1,6}\s))"
)

# Abbreviations that never end a sentence, that go before numbers, that end one before a capital.
_NEVER_LAST, _BEFORE_NUMBERS, _SELDOM_LAST = (
    frozenset(words.split())
    for words in (
        "mr mrs ms dr prof rev hon st sra srta sr mme mlle hr fr e.g i.e cf vs viz al gen col sgt "
        "capt lt gov sen rep",
        "no nos fig figs eq vol pp ch sec",
        "etc inc ltd co corp jr approx dept est u.s u.k u.n a.m p.m ph.d",
    )
)
_ABBREVIATION_ENDS = frozenset(word[-2:] for word in _NEVER_LAST | _BEFORE_NUMBERS | _SELDOM_LAST)
_MAX_ABBREVIATION = 12
_HAS_WORD = re.compile(r"[^\W_]")
_IS_EMOJI = re.compile(f"[{EMOJI}]")
_NEXT = re.compile(r"\s*+(\S?)")
_LAST_WORD = re.compile(r"[^\s(\"“*_]+\Z")
_LIST_NUMBER = re.compile(r"[^\S\n]*+[*_(]*+\d{1,3}")


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, in order, as `Reply` says; each holds a letter or a digit."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        mark = end[0]
        if mark == ".":
            position = end.start()
            before = text[position - 2 : position] if position > 1 else text[:position]
            # Most words are no abbreviation: this saves half of the time.
            last = before[-1:]
            if (
                before.lower() in _ABBREVIATION_ENDS or last.isdigit() or last.isupper()
            ) and _is_abbreviation(text, start, end):
                continue
        elif len(mark) > 1 and mark[0] in _TERMINATORS and _goes_on(text, end):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    found.append(text[start:].strip())
    sentences: list[str] = []
    for piece in found:
        if _HAS_WORD.search(piece):
            sentences.append(piece)
        elif sentences and _IS_EMOJI.match(piece):
            sentences[-1] = f"{sentences[-1]} {piece}"
    return sentences


def _goes_on(text: str, end: re.Match[str]) -> bool:
    """Whether the sentence goes on after several marks: an ellipsis, or a quotation that ends."""
    mark = end[0]
    if mark[0] == "." and mark[1] != ".":
        return mark[-1] in _CLOSERS and _is_list_number(text, end)
    is_open = mark[0] == "." or mark[-1] in _CLOSERS or "…" in mark
    return is_open and _next(text, end).islower()


def _is_abbreviation(text: str, start: int, end: re.Match[str]) -> bool:
    """Whether the full stop belongs to an abbreviation, an initial or the number of an item."""
    before = text[max(start, end.start() - _MAX_ABBREVIATION) : end.start()]
    if before[-1:].isdigit():
        return _is_list_number(text, end)
    if before[-1:].isupper() and not before[-2:-1].isalnum() and before[-2:-1] != ".":
        return before[-1] != "I" and _next(text, end).isupper()
    found = _LAST_WORD.search(before)
    word = found[0].lower() if found else ""
    if word in _NEVER_LAST:
        return bool(_next(text, end))
    if word in _BEFORE_NUMBERS:
        return _next(text, end).isdigit()
    return word in _SELDOM_LAST and _next(text, end).islower()


def _is_list_number(text: str, end: re.Match[str]) -> bool:
    line = text.rfind("\n", max(0, end.start() - 20), end.start()) + 1
    if line == 0 and end.start() > 20:
        return False
    return bool(_LIST_NUMBER.fullmatch(text, line, end.start()) and _next(text, end))


def _next(text: str, end: re.Match[str]) -> str:
    """The next character that is no space; "" at the end."""
    after = text[end.end() : end.end() + 2].strip()
    if after:
        return after[0]
    found = _NEXT.match(text, end.end())
    return found[1] if found else ""
