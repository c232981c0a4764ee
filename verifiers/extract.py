"""`extract`: the answer that a reply gives, by boxes, tags, `####`, "the answer is" or position."""

from __future__ import annotations

import re
from dataclasses import dataclass

from palestra.verifiers.extract_value import (
    MAX_ANSWER_CHARS,
    MAX_TAIL_CHARS,
    first_sentence,
    trimmed,
    unmarked,
)

MAX_BOXES = 40
MAX_STATED = 100


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
        marked = [find(reply) for find in (boxed, tagged, after_hashes)]
    except Cut:
        return None
    found = [mark for mark in marked if mark is not None]
    # What is stated before another mark cannot be the last one.
    phrase = stated(reply, max((mark.end for mark in found), default=0))
    if phrase is not None:
        found.append(phrase)
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


_ANSWER_WORDS = ("answer", "Answer", "ANSWER", "答案")
_STATED = re.compile(
    r"(?:答案|answers?)(?:\s*\*\*)?"
    r"(?:\s+(?:to|for|of)\s+(?:the|this|your)\s+(?:question|problem)| here)?"
    r"\s*(?:\*\*)?\s*(?:(?:is|are|would be|will be|must be|should be|equals)\b|[:=：是为])"
    r"(?:\s+therefore|\s+thus|\s+that|\s+then|\s+simply|\s+just)?\s*[:：]?\s*(?:\*\*(?=\s))?\s*",
    re.IGNORECASE,
)
_REJECTING = re.compile(r"(?:not|isn't|never)\b|n't\b", re.IGNORECASE)


def stated(reply: str, start: int = 0) -> Extracted | None:
    """What follows the last "the answer is" or "Answer:" after a position, in its sentence."""
    tail = reply[max(start, len(reply) - MAX_TAIL_CHARS) :]
    offset = len(reply) - len(tail)
    position = len(tail)
    words = _ANSWER_WORDS[: 3 if tail.isascii() else None]
    for _ in range(MAX_STATED):
        position = max([tail.rfind(word, 0, position) for word in words])
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


_REASON = re.compile(r",?\s(?:because|since)\s.*", re.DOTALL)


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


def _is_valued(text: str) -> bool:
    """Whether a text holds a digit, a formula, or just a word or two that could be an answer."""
    if re.search(r"[\d$\\]", text):
        return True
    words = text.split()
    vague = {"correct", "right", "above", "given", "boxed", "wrong", "verified", "clear", "unique"}
    return 0 < len(words) <= 3 and not vague & {word.strip(".,").lower() for word in words}
