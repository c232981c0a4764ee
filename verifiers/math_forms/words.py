"""Answers in words: choices, number words, "no solution", times, dates, plain text."""

from __future__ import annotations

import re

_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?"
    r"(?:\\text(?:bf|rm|it)?\s*\{|\\mathrm\s*\{|\\mathbf\s*\{|\*\*)?\s*[(\[]?\s*"
    r"(?:\\text(?:bf|rm|it)?\s*\{|\\mathrm\s*\{|\\mathbf\s*\{)?\s*"
    r"(?P<letter>[A-Ja-j])\s*(?P<after>[)\]}.:,*\-]*)\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_SMALL += " fifteen sixteen seventeen eighteen nineteen"
_ONES = {word: value for value, word in enumerate(_SMALL.split())}
_DECADES = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * (i + 2) for i, word in enumerate(_DECADES.split())}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4}
_PARTS |= {"fourth": 4, "fourths": 4, "fifth": 5, "fifths": 5, "sixth": 6, "sixths": 6}
_PARTS |= {"eighth": 8, "eighths": 8, "tenth": 10, "tenths": 10}

NOTHING = frozenset(
    {"no solution", "no solutions", "no real solution", "no real solutions", "empty set", "none"}
    | {"the empty set", "there is no solution", "there are no solutions", "no real roots"}
    | {"no such number exists", "no integer solutions", "no integer solution", "no values"}
)
EVERYTHING = frozenset({"all real numbers", "all reals", "any real number", "the real numbers"})
_MONTH_NAMES = "january february march april may june july august september october november"
_MONTHS = {name: i + 1 for i, name in enumerate(f"{_MONTH_NAMES} december".split())}
_COMMAND = re.compile(r"\\[A-Za-z]+\*?")
_DROPPED = re.compile(r"[\\{}$\"'`*]|\.(?=\s|$)|[,;!?](?=\s|$)")
_HYPHEN = re.compile(r"(?<=[a-z])-(?=[a-z])")
_SAME_WORDS = dict.fromkeys(
    ["dne", "limit does not exist", "it does not exist", "doesnt exist"], "does not exist"
)
_ISO_DATE = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")
_TIME = re.compile(
    r"(\d{1,2})\s*[:.]\s*(\d{2})(?:\s*:\s*\d{2})?\s*([ap])\.?\s*m\.?|(\d{1,2})\s*([ap])\.?\s*m\.?"
    r"|(\d{1,2}):(\d{2})"
)


def choice_letter(text: str) -> str | None:
    """The letter of an answer like "(B)", "b.", "Option B: the sum" or "\\textbf{(B)} 5"."""
    match = _CHOICE.fullmatch(text.strip()[:400])
    if match is None:
        return None
    rest = match["rest"].lstrip(")]}. ")
    dressed = any(sign in match["after"] for sign in ")]}.:") or "option" in text.lower()[:8]
    if rest and not dressed:
        return None
    # (a, b) is a point and A = 5 an equation; a second letter is a second choice.
    if rest and (rest[0] in "=,+^_/&<>" or _another_choice(rest)):
        return None
    if rest and match["after"].startswith((",", "-")):
        return None
    return match["letter"].upper()


def _another_choice(rest: str) -> bool:
    return bool(re.match(r"(?:and|or|,|/|&)?\s*\(?[A-Ja-j][).]*$", rest, re.IGNORECASE)) or bool(
        re.match(r"(?:and|or|,|/|&)\s*\(?[A-Ja-j]\b", rest, re.IGNORECASE)
    )


def plain_text(text: str) -> str:
    """Words in lower case without markup, full stops and hyphens, for comparison."""
    text = _COMMAND.sub(_spoken, text).replace("~", " ")
    text = _DROPPED.sub(" ", _HYPHEN.sub("", text.lower()))
    words = text.split()
    if words and words[0] in ("the", "a", "an") and len(words) > 1:
        words = words[1:]
    joined = " ".join(words)
    return _SAME_WORDS.get(joined, joined)


def _spoken(command: re.Match[str]) -> str:
    name = command[0][1:].rstrip("*")
    formatting = name.startswith(("text", "math", "mbox", "operatorname", "emph", "bf", "rm"))
    return " " if formatting else f" {name} "


def number_words(text: str) -> str | None:
    """ "twenty-one" as "21", "two thirds" as "2/3", "3 million" as "3000000"; else None."""
    words = text.lower().replace("\\text", " ").replace("-", " ").replace(",", " ").split()
    if not 0 < len(words) <= 14:
        return None
    negative = words[0] in ("minus", "negative")
    words = words[1:] if negative else words
    denominator = 1
    if len(words) >= 2 and words[-1] in _PARTS:
        denominator = _PARTS[words[-1]]
        words = ["one"] if words[:-1] in (["a"], ["one"]) else words[:-1]
    value = _whole(words)
    if value is None:
        return None
    sign = "-" if negative else ""
    return f"{sign}{value}" if denominator == 1 else f"{sign}{value}/{denominator}"


def _whole(words: list[str]) -> int | None:
    total, current, seen = 0, 0, False
    for word in words:
        if word == "and" and seen:
            continue
        if word in _ONES or word in _TENS:
            current += _ONES.get(word, 0) + _TENS.get(word, 0)
        elif word == "hundred" and seen:
            current = (current or 1) * 100
        elif word in SCALES and seen:
            total, current = total + (current or 1) * SCALES[word], 0
        elif word.isdigit() and word.isascii() and not seen and len(words) > 1 and len(word) < 10:
            if words[1] not in SCALES and words[1] != "hundred":
                return None
            current = int(word)
        else:
            return None
        seen = True
    return total + current if seen else None


def time_of_day(text: str) -> tuple[int, int, bool] | None:
    """Hour, minute and whether it says which half of the day, of "3:30 pm" or "15:30"."""
    match = _TIME.fullmatch(plain_text(text).replace(" :", ":").strip()) or _TIME.fullmatch(
        text.strip().lower()
    )
    if match is None:
        return None
    hour = int(match[1] or match[4] or match[6])
    minute = int(match[2] or match[7] or 0)
    half = match[3] or match[5]
    if minute > 59 or hour > 23 or (half and not 1 <= hour <= 12):
        return None
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return hour, minute, bool(half)


def calendar_date(text: str) -> tuple[int, ...] | None:
    """(month, day, year) of "March 5, 2020" or "5th of March"; None if it names no month."""
    iso = _ISO_DATE.fullmatch(text.strip())
    if iso is not None:
        return int(iso[2]), int(iso[3]), int(iso[1])
    words = re.findall(r"[a-z]+|\d+", text.lower())
    months = [_month(word) for word in words if _month(word)]
    numbers = [int(word) for word in words if word.isdigit() and len(word) <= 4]
    rest = [w for w in words if not w.isdigit() and not _month(w)]
    if len(months) != 1 or set(rest) - {"st", "nd", "rd", "th", "of", "the"} or not numbers:
        return None
    return (months[0] or 0, *sorted(numbers))


def _month(word: str) -> int | None:
    if word in _MONTHS:
        return _MONTHS[word]
    if len(word) in (3, 4):
        return next((n for name, n in _MONTHS.items() if name.startswith(word)), None)
    return None
