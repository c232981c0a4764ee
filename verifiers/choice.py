"""`choice`: the letter of a multiple-choice answer, in whatever dress it comes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from palestra.types import Score, Task, Unscorable

# A final answer stands at the end: no more of a reply is looked at.
_TAIL_CHARS = 10_000
_MAX_STATEMENT_CHARS = 300

_BOX = "\\boxed{"
_TAG = re.compile(r"<answer>(.{0,300}?)</answer>", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(
    r"\banswers?(?: choices?| options?| letters?)?[ *_]{0,4}"
    r"(?:(?:is|are|should be|would be|must be)\b|[:=]|(?=\([A-Z]\)))[ *_:]{0,4}"
    r"|\b(?:option|choice)s?[ *_]{0,4}(?:(?:is|are|should be|must be)\b|:)[ *_:]{0,4}",
    re.IGNORECASE,
)
_DRESS = re.compile(r"\\(?:text|math)(?:bf|rm|it|sf)?|[*_`$\"'{}\\]")
_LETTER = r"[(\[]?(?P<letter>[A-Za-z])[)\]]?"
_ALONE = re.compile(rf"{_LETTER}[ .:,;!]*")
# "B. Paris", "(B) Paris", "B because": not "A good plan", whose letter is an article.
_WITH_TEXT = re.compile(
    r"(?:[(\[](?P<bracketed>[A-Za-z])[)\]]|(?P<dotted>[A-Z])(?:[).:,;]|[ ]?[-–—]|(?=\s+(?:because"
    r"|since|as|is (?:the )?(?:correct|right|answer))\b)))\s*\S.*",
    re.DOTALL,
)
_SEVERAL = re.compile(
    r"[(\[]?[A-Z][)\]]?[).]?(?:\s{0,3}(?:,|/|&|\band\b|\bor\b){1,2}\s{0,3}(?:and |or )?"
    r"[(\[]?[A-Z][)\]]?(?![A-Za-z]))+"
)
_NAMED = re.compile(r"(?:option|choice|letter)s?\s{0,3}", re.IGNORECASE)
_CAPITAL = re.compile(r"(?<![A-Za-z])[A-Z](?![A-Za-z])")
_DENIAL = re.compile(r"(?:not|neither|none)\b|n't", re.IGNORECASE)
_SHOTGUN_LETTERS = 3


def choice(reply: str, answer: Any, task: Task) -> Score:
    """1 if the reply settles on the letter of the reference, or exactly the letters if several.

    What counts is the last `\\boxed{}`, else the last `<answer>`, else the last "the answer is",
    else the last line: a letter, bare or in brackets, bold or with the option's text behind it.
    Several letters at once ("B or C") are wrong unless they are the reference, and so is a reply
    that has stated three or more different ones. If `task.info["choices"]` lists the options, a
    letter beyond them is none.

    Raises:
        Unscorable: the reference is no letter, nor a list of letters, of the options.
    """
    options = task.info.get("choices")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options) if options else None]
    expected = _reference(answer, letters)
    statements = list(_statements(reply[-_TAIL_CHARS:]))
    if not statements:
        return Score(value=0.0, explanation="the reply settles on no letter")
    stated = frozenset().union(*statements)
    if len(stated | expected) > len(expected) and len(stated) >= _SHOTGUN_LETTERS:
        return Score(value=0.0, explanation=f"the reply states {', '.join(sorted(stated))}")
    if statements[-1] == expected:
        return Score(value=1.0)
    chosen = ", ".join(sorted(statements[-1])) or "none"
    return Score(value=0.0, explanation=f"the reply chooses {chosen}")


def _reference(answer: Any, letters: str) -> frozenset[str]:
    parts = (
        answer if isinstance(answer, list | tuple) else re.split(r"[\s,;]+", str(answer).strip())
    )
    found = [str(part).strip("()[]. ").upper() for part in parts]
    if len(found) == 1 and len(found[0]) > 1 and list(found[0]) == sorted(set(found[0])):
        found = list(found[0])  # "ACD"
    if not found or not all(len(letter) == 1 and letter in letters for letter in found):
        raise Unscorable(
            f"choice needs a letter from A to {letters[-1:]} as the task's answer, "
            f"got {answer!r:.80}"
        )
    return frozenset(found)


def _statements(text: str) -> Iterator[frozenset[str]]:
    """What the reply states in the strongest way it uses, in order; an empty set is a denial."""
    for statements in (_boxes(text), _tags(text), _phrases(text), _last_line(text)):
        read = [letters for letters in map(_read, statements) if letters is not None]
        if read:
            yield from read
            return


def _boxes(text: str) -> list[str]:
    starts = [match.end() for match in re.finditer(re.escape(_BOX), text)]
    return [_braced(text[start : start + _MAX_STATEMENT_CHARS]) for start in starts]


def _tags(text: str) -> list[str]:
    return [match[1] for match in _TAG.finditer(text)]


def _phrases(text: str) -> list[str]:
    found = []
    for match in _PHRASE.finditer(text):
        rest = text[match.end() : match.end() + _MAX_STATEMENT_CHARS]
        found.append(
            re.split(r"\n|(?<=[a-z)\]])\.\s|(?<=\b[A-Z])\.\s(?=[A-Z])", rest, maxsplit=1)[0]
        )
    return found


def _last_line(text: str) -> list[str]:
    lines = text.strip().splitlines()[-1:]
    return [line for line in lines if len(line) <= _MAX_STATEMENT_CHARS]


def _braced(text: str) -> str:
    """What stands before the brace that closes one opened earlier; "" if nothing closes it."""
    depth = 1
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:position]
    return ""


def _read(statement: str) -> frozenset[str] | None:
    """The letters that a statement chooses, none for a denial; None if it speaks of no letter."""
    text = _NAMED.sub("", " ".join(_DRESS.sub("", statement).split()), count=1)
    if _DENIAL.match(text):
        return frozenset()
    if alone := _ALONE.fullmatch(text):
        return frozenset(alone["letter"].upper())
    if several := _SEVERAL.match(text):
        return frozenset(_CAPITAL.findall(several[0]))
    if with_text := _WITH_TEXT.fullmatch(text):
        return frozenset((with_text["bracketed"] or with_text["dotted"]).upper())
    return None
