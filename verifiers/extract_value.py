"""Find the value in a sentence: without reasons and markup, or the last formula or number in it."""

from __future__ import annotations

import re

# An answer is short; what precedes it may be megabytes, of which only the end is read for phrases.
MAX_ANSWER_CHARS = 6_000
MAX_TAIL_CHARS = 20_000

_SENTENCE_END = re.compile(r"(?<!\b[A-Za-z])(?<!\d)[.!?](?=\s|$)|(?<=\d)[.!?](?=\s|$)|\n\s*\n")


def first_sentence(text: str) -> str:
    """Up to the first full stop outside of formulas, or the end of the line or formula."""
    text = text.lstrip()
    position = 0
    for opener, closer in (("$$", "$$"), ("\\[", "\\]"), ("$", "$"), ("\\(", "\\)")):
        if text.startswith(opener):
            stop = text.find(closer, len(opener))
            if stop > 0:
                position = stop + len(closer)
            break
    end = _SENTENCE_END.search(text, position)
    line = text.find("\n", position)
    stops = [len(text)] + ([end.start()] if end else []) + ([line] if line >= 0 else [])
    return text[: min(stops)]


_BECAUSE = re.compile(
    r"(?:,?\s+(?:because|since|so that|which|as (?:we|the|it)|where|when|given|after|from)\b"
    r"|,\s+(?:so|and so|not)\b|\s+\((?:since|because|i\.e)|\s+not\s+[A-Z(\d]).*",
    re.DOTALL,
)
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$([^$]+?)(?<!\\)\$", re.DOTALL
)


def trimmed(sentence: str) -> str:
    """An answer's sentence without its reasons, markup and final stop."""
    text = sentence.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return ""
    return unmarked(_BECAUSE.sub("", text))


_BOLD = re.compile(r"\*\*([^*]+)\*\*([^*]*)")


def unmarked(text: str) -> str:
    """A text without bold type and its full stop."""
    text = text.strip()
    bold = _BOLD.fullmatch(text)
    if bold is not None:
        text = bold[1] + (bold[2] if not bold[2].strip(" .") else " " + bold[2])
    text = text.replace("**", "").strip()
    return text if text.endswith("...") else text.rstrip(".").strip()


_VALUE = re.compile(
    r"(?<![A-Za-z0-9_.])[-−]?\s?\\?[$€£]?\s?\d(?:[\d,]*\d)?(?:\.\d+)?(?:\s?/\s?\d+)?(?:[eE][-+]?\d+)?\s?(?:\\?%)?"
)


_AND = re.compile(r"\s*(?:,\s*and|,\s*or|,|and|or|&)\s*", re.IGNORECASE)


def last_value(text: str) -> str | None:
    """The last formula of a sentence, or its last number with the words that follow it."""
    text = text[-MAX_ANSWER_CHARS:]
    formulas = list(_FORMULA.finditer(text))
    numbers = list(_VALUE.finditer(text))
    last_number = numbers[-1] if numbers else None
    if formulas and (last_number is None or formulas[-1].end() >= last_number.end()):
        formula = formulas[-1]
        return next(group for group in formula.groups() if group is not None).strip()
    if last_number is None:
        return None
    first = len(numbers) - 1
    while first > 0 and _AND.fullmatch(text[numbers[first - 1].end() : numbers[first].start()]):
        first -= 1
    if first < len(numbers) - 1:
        return text[numbers[first].start() : last_number.end()]  # several are one list
    before = text[: last_number.start()].rstrip()
    if before.endswith("=") or before.lower().endswith((" is", " are", ":")):
        return text[last_number.start() :].strip()
    return last_number[0].strip()


def last_number(reply: str) -> str | None:
    """The last number in a text, as written, without thousands separators."""
    numbers = _VALUE.findall(reply[-MAX_TAIL_CHARS:])
    return numbers[-1].strip().replace(",", "") if numbers else None
