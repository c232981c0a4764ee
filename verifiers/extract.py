"""Find the answer in a reply: boxes, tags, `####`, "the answer is", JSON, code, last value."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

# An answer is short; what precedes it may be megabytes, of which only the end is read for phrases.
MAX_ANSWER_CHARS = 6_000
MAX_TAIL_CHARS = 20_000
MAX_BOXES = 40
MAX_STATED = 100
MAX_JSON_CHARS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Extracted:
    """An answer and how it was marked: box, tag, hashes, stated, bold, or guessed."""

    text: str
    how: str
    end: int = 0  # where in the reply it ends


class Cut(Exception):
    """The last answer is empty or has no end: the reply gives none, whatever came before."""


def extract(reply: str, *, strict: bool = False) -> Extracted | None:
    """The answer that a reply gives last; None if it gives none.

    Marked are boxes, <answer> tags, #### and "the answer is"; the last mark wins. Boxes joined by
    commas, "and" or "or" are one list, so that naming many candidates gains nothing. Where nothing
    is marked the last sentence's value is taken, but not in strict mode. Thinking does not count.
    Time is linear in the reply's length.
    """
    reply = without_thinking(reply)
    try:
        marked = [find(reply) for find in (boxed, tagged, after_hashes, stated)]
    except Cut:
        return None
    found = [mark for mark in marked if mark is not None]
    if found:
        best = max(found, key=lambda mark: mark.end)
        box = next((mark for mark in found if mark.how == "box"), None)
        # "The answer above is correct." after a box is no answer.
        if box is not None and best.how == "stated" and not _is_valued(best.text):
            return box
        return best
    return None if strict else guessed(reply)


def without_thinking(reply: str) -> str:
    """The reply after its thinking; an unclosed thought hides all that follows."""
    end = reply.rfind("</think>")
    if end >= 0:
        reply = reply[end + len("</think>") :]
    start = reply.find("<think>")
    return reply if start < 0 else reply[:start]


def boxed(reply: str) -> Extracted | None:
    """The content of the last \\boxed{...}, or of several that only commas or words join.

    Raises Cut if the last box is empty or does not close.
    """
    end = _last_box(reply, len(reply))
    if end < 0:
        return None
    content, stop = _box_content(reply, end)
    if not content:
        raise Cut
    parts, first, last_stop = [content], end, stop
    while len(parts) < MAX_BOXES:
        before = _last_box(reply, first)
        if before < 0 or first - before > MAX_ANSWER_CHARS:
            break
        content, stop = _box_content(reply, before)
        if not content or not _JOINT.fullmatch(reply[stop:first][:80]) or first - stop > 80:
            break
        parts.append(content)
        first = before
    unique = list(dict.fromkeys(reversed(parts)))
    text = ", ".join(unique)
    unit = _UNIT_AFTER_BOX.match(reply[last_stop : last_stop + 60])
    if unit is not None and len(unique) == 1:
        text = f"{text} {unit[0].strip()}"
    return Extracted(text=text, how="box", end=last_stop)


# What may stand between boxes that are one list.
_JOINT = re.compile(
    r"(?:[\s,;$&]|\\\\|\\quad|\\qquad|\\[,;]|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*"
)
_UNIT_AFTER_BOX = re.compile(r"\s*(?:\\%|%|\\text\{[^{}]{1,40}\}|\^\s*\{?\\circ\}?)")


def _last_box(reply: str, end: int) -> int:
    return max(reply.rfind("\\boxed", 0, end), reply.rfind("\\fbox", 0, end))


def _box_content(reply: str, start: int) -> tuple[str, int]:
    """The content and the end of the box at a position; "" if it is cut off."""
    position = start + (6 if reply.startswith("\\boxed", start) else 5)
    while position < len(reply) and reply[position] in " \t":
        position += 1
    if position >= len(reply):
        return "", position
    if reply[position] != "{":
        word = re.compile(r"\\?[^\s$\\{}]{1,80}").match(reply, position)
        return ("", position) if word is None else (word[0].rstrip(".,"), word.end())
    stop = matching_brace(reply, position)
    return ("", len(reply)) if stop < 0 else (reply[position + 1 : stop].strip(), stop + 1)


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def matching_brace(text: str, start: int) -> int:
    """Where the brace that opens at a position closes; -1 if it does not within an answer."""
    depth = 0
    for brace in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARS):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return brace.start()
    return -1


def tagged(reply: str) -> Extracted | None:
    """What stands between the last <answer> and </answer>. Raises Cut if that is empty."""
    start = reply.rfind("<answer>")
    if start < 0:
        return None
    start += len("<answer>")
    stop = reply.find("</answer>", start)
    if stop < 0:
        raise Cut
    content = reply[start:stop].strip()
    if not content:
        raise Cut
    if len(content) > MAX_ANSWER_CHARS:
        return Extracted(text="", how="tag", end=stop)
    inner = boxed(content)
    return Extracted(text=inner.text if inner else content, how="tag", end=stop)


def after_hashes(reply: str) -> Extracted | None:
    """The rest of the line after the last ####, if it is no heading that text follows."""
    start = reply.rfind("####")
    if start < 0 or reply[:start].rfind("\n") != start - 1 - len(_indent(reply, start)):
        return None
    stop = reply.find("\n", start)
    stop = len(reply) if stop < 0 else stop
    line = reply[start + 4 : min(stop, start + MAX_ANSWER_CHARS)].strip()
    if line.startswith("#") or not line:
        return None
    if reply[stop : stop + MAX_TAIL_CHARS].strip() and not _is_valued(line):
        return None
    return Extracted(text=line, how="hashes", end=stop)


def _indent(reply: str, start: int) -> str:
    line = reply.rfind("\n", 0, start) + 1
    before = reply[line:start] if start - line < 80 else "x"
    return "" if before.strip() else before


_STATED = re.compile(
    r"(?:答案|answers?)(?:\s*\*\*)?"
    r"(?:\s+(?:to|for|of)\s+(?:the|this|your)\s+(?:question|problem)| here)?"
    r"\s*(?:\*\*)?\s*(?:(?:is|are|would be|will be|must be|should be|equals)\b|[:=：是为])"
    r"(?:\s+therefore|\s+thus|\s+that|\s+then|\s+simply|\s+just)?\s*[:：]?\s*(?:\*\*(?=\s))?\s*",
    re.IGNORECASE,
)
_REJECTING = re.compile(r"(?:not|isn't|never)\b|n't\b", re.IGNORECASE)


def stated(reply: str) -> Extracted | None:
    """What follows the last "the answer is" or "Answer:", to the end of its sentence."""
    tail = reply[-MAX_TAIL_CHARS:]
    offset = len(reply) - len(tail)
    position = len(tail)
    for _ in range(MAX_STATED):
        position = max(
            tail.rfind(word, 0, position) for word in ("answer", "Answer", "ANSWER", "答案")
        )
        if position < 0:
            return None
        match = _STATED.match(tail, position)
        if match is None:
            continue
        rest = tail[match.end() : match.end() + MAX_ANSWER_CHARS]
        if _REJECTING.match(rest):
            continue
        sentence = first_sentence(rest)
        text = trimmed(sentence)
        if text:
            stop = offset + match.end() + len(sentence)
            return Extracted(text=text, how="stated", end=stop)
    return None


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
_REASON = re.compile(r",?\s(?:because|since)\s.*", re.DOTALL)


def unmarked(text: str) -> str:
    """A text without bold type and its full stop."""
    text = text.strip()
    bold = _BOLD.fullmatch(text)
    if bold is not None:
        text = bold[1] + (bold[2] if not bold[2].strip(" .") else " " + bold[2])
    text = text.replace("**", "").strip()
    return text if text.endswith("...") else text.rstrip(".").strip()


def guessed(reply: str) -> Extracted | None:
    """The whole of a short reply, else the last value of its last sentence."""
    tail = reply[-MAX_TAIL_CHARS:].strip()
    if not tail:
        return None
    if "\n" not in tail and len(tail) <= MAX_ANSWER_CHARS and len(reply) <= MAX_ANSWER_CHARS:
        return Extracted(text=_REASON.sub("", unmarked(tail)), how="guessed", end=len(reply))
    paragraph = tail.rsplit("\n\n", 1)[-1]
    line = paragraph.strip().rsplit("\n", 1)[-1]
    if line.strip() in ("\\]", "$$", "```"):
        line = paragraph
    return Extracted(text=unmarked(line), how="guessed", end=len(reply))


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


def last_code_block(reply: str, language: str | None = None) -> str | None:
    """The content of the last fenced block, of a language if one is named."""
    found = None
    lines = reply.split("\n")
    start: int | None = None
    for i, line in enumerate(lines):
        mark = line.strip()
        if not mark.startswith("```"):
            continue
        if start is None:
            start = i
        elif mark == "```":
            name = lines[start].strip().removeprefix("```").strip().lower()
            if language is None or name == language.lower():
                found = "\n".join(lines[start + 1 : i])
            start = None
    return found


def json_field(reply: str, field: str) -> Any:
    """A field of the last JSON object in a reply that has it; None if there is none."""
    tail = reply[-MAX_JSON_CHARS:]
    decoder = json.JSONDecoder()
    position, tries = len(tail), 0
    while tries < 50:
        position = tail.rfind("{", 0, position)
        if position < 0:
            return None
        tries += 1
        try:
            value, _ = decoder.raw_decode(tail, position)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and field in value:
            return value[field]
    return None


def _is_valued(text: str) -> bool:
    """Whether a text holds a digit, a formula, or just a word or two that could be an answer."""
    if re.search(r"[\d$\\]", text):
        return True
    words = text.split()
    vague = {"correct", "right", "above", "given", "boxed", "wrong", "verified", "clear", "unique"}
    return 0 < len(words) <= 3 and not vague & {word.strip(".,").lower() for word in words}
