"""Constraints on lists: bullets, sub-bullets, numbers, items with a mark of their own."""

from __future__ import annotations

import re

from palestra.verifiers.instructions.parameters import Count, Phrase, Relation
from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply

# "*word" is a bullet, too, "*word* and" is emphasis.
_BULLET = re.compile(r"\s*+[-*+•]\s++(?=.*[^\W_])|\s*+[*•](?=[^\W_][^*]*+\Z)")
_STAR = re.compile(r"\s*+\*\s++(?=.*[^\W_])|\s*+\*(?=[^\W_][^*]*+\Z)")
_DASH = re.compile(r"\s*+-\s*+(?=.*[^\W_])")
_NUMBERED = re.compile(r"\s*+(\d{1,6})[.)]\s++(?=.*[^\W_])")


def bullets(reply: Reply, count: Count, relation: Relation = "exactly") -> str:
    """So many bullet points: lines that begin with *, -, + or •, and say something."""
    found = sum(bool(_BULLET.match(line)) for line in reply.lines)
    return unless(found, relation, count, "bullet points")


def numbered(reply: Reply, count: Count, relation: Relation = "exactly") -> str:
    """So many items of a numbered list, "1." to "n.", in order."""
    numbers = [int(found[1]) for line in reply.lines if (found := _NUMBERED.match(line))]
    if numbers != list(range(1, len(numbers) + 1)):
        return "items that are not numbered 1, 2, 3 and so on"
    return unless(len(numbers), relation, count, "numbered items")


def sub_bullets(reply: Reply) -> str:
    """Bullet points with *, each followed by at least one sub-bullet with -."""
    pending, found = False, 0
    for line in reply.lines:
        if _STAR.match(line):
            if pending:
                return f"bullet point {found} has no sub-bullet"
            pending, found = True, found + 1
        elif _DASH.match(line):
            pending = False
    if pending:
        return f"bullet point {found} has no sub-bullet"
    return "" if found else "no bullet points with *"


def sentences_then_bullets(reply: Reply) -> str:
    """Two sentences or more that end in a full stop, then two bullet points with * or more."""
    first = next((i for i, line in enumerate(reply.lines) if _STAR.match(line)), None)
    if first is None:
        return "no bullet points with *"
    before = Reply("\n".join(reply.lines[:first])).sentences
    ended = sum(sentence.rstrip("\"'”’)*_").endswith(".") for sentence in before)
    if ended < 2:
        return f"{ended} sentences before the bullet points, not 2"
    count = sum(bool(_STAR.match(line)) for line in reply.lines[first:])
    return unless(count, "at least", 2, "bullet points with *")


def marked_items(reply: Reply, sep: Phrase) -> str:
    """Two items or more, each a line that begins with this mark, and no other bullets."""
    marked = [line.lstrip()[len(sep) :] for line in reply.lines if line.lstrip().startswith(sep)]
    items = sum(bool(_WORD.search(item)) for item in marked)
    if problem := unless(items, "at least", 2, f'items that begin with "{sep:.20}"'):
        return problem
    others = [
        line for line in reply.lines if _BULLET.match(line) and not line.lstrip().startswith(sep)
    ]
    return "with bullet points of another kind" if others else ""


_WORD = re.compile(r"[^\W_]")
