"""Constraints on parts of a reply: sections, titles, placeholders, postscripts, two answers."""

from __future__ import annotations

import re

from palestra.verifiers.instructions.parameters import Count, Phrase
from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply, folded

# "[x]" and "[ ]" are boxes to tick, "[text](address)" is a link.
_PLACEHOLDER = re.compile(r"\[(?![ xX]\])(?=[^\[\]\n]*[^\W_])[^\[\]\n]{1,200}+\](?!\()")
_TITLE = re.compile(r"<<(?=[^<>\n]*[^\W_])[^<>\n]+>>")
_DIVIDER = "******"
_TEMPLATE = ("My Answer:", "My Conclusion:", "Future Outlook:")


def multiple_sections(reply: Reply, section_spliter: Phrase, count: Count) -> str:
    """At least so many sections: lines that begin with e.g. "Section 2", each with its own number.

    Case, markdown around the words and Roman numbers do not matter; the number has to stand at the
    beginning of a line, and something other than the next section has to follow.
    """
    marker = re.compile(
        rf"^[\s#*_>\[(]*+{re.escape(section_spliter)}\s?(\d{{1,6}}|[IVXLC]{{1,8}})(?![^\W_])(.*)$",
        re.IGNORECASE,
    )
    numbers: set[str] = set()
    number, has_text = "", False
    for line in reply.lines:
        if found := marker.match(line[:1_000]):
            if has_text:
                numbers.add(number)
            number, has_text = found[1].upper(), bool(_WORD.search(found[2]))
        else:
            has_text = has_text or bool(number and _WORD.search(line))
    if has_text:
        numbers.add(number)
    return unless(len(numbers), "at least", count, f'sections "{section_spliter:.40} X"')


_WORD = re.compile(r"[^\W_]")


def title(reply: Reply) -> str:
    """A title in double angular brackets, <<like this>>."""
    return "" if _TITLE.search(reply.text) else "without a <<title>>"


def placeholders(reply: Reply, count: Count) -> str:
    """At least so many placeholders in square brackets, like [address]."""
    return unless(len(_PLACEHOLDER.findall(reply.text)), "at least", count, "placeholders")


def postscript(reply: Reply, postscript_marker: Phrase) -> str:
    """After other text, a line that begins with e.g. "P.S." or "P.P.S", and says something."""
    # "P.S.", "P. S." and "PS" are the same, "Psalm" is not.
    letters = (re.escape(c) + r"\.?\s?" for c in postscript_marker if c not in ". ")
    marker = re.compile(rf"[\s*_>\"“#]*+{''.join(letters)}(?![^\W_])", re.IGNORECASE)
    for position, line in enumerate(reply.lines[1:], 1):
        if found := marker.match(line[:1_000]):
            said = [line[found.end() :], *reply.lines[position + 1 :]]
            return (
                "" if any(map(_WORD.search, said)) else f'nothing after "{postscript_marker:.20}"'
            )
    return f'no line after the first begins with "{postscript_marker:.20}"'


def two_responses(reply: Reply) -> str:
    """Two different answers, divided by six asterisks."""
    parts = [part.strip() for part in re.split(r"(?<!\*)\*{6}(?!\*)", reply.text)]
    answers = [part for part in parts if _WORD.search(part)]
    if len(answers) != 2 or not all(parts[1:-1]):
        return f"{len(answers)} answers divided by {_DIVIDER}, not 2"
    return "" if folded(answers[0]) != folded(answers[1]) else "twice the same answer"


def output_template(reply: Reply) -> str:
    """IFBench's template: "My Answer:", "My Conclusion:", "Future Outlook:", each filled in."""
    starts = [reply.text.find(label) for label in _TEMPLATE]
    if min(starts) < 0 or starts != sorted(starts):
        return f"without {', '.join(_TEMPLATE)} in this order"
    ends = [*starts[1:], len(reply.text)]
    for label, start, end in zip(_TEMPLATE, starts, ends, strict=True):
        if not _WORD.search(reply.text[start + len(label) : end]):
            return f'nothing after "{label}"'
    return ""


def thesis(reply: Reply) -> str:
    """Each section begins with a statement in HTML italics and goes on in plain text.

    Sections are what follows markdown or HTML headings; without headings, the reply is one.
    """
    headings = re.split(r"^[^\S\n]*(?:#{1,6}\s.*|<h[1-6]\b.*)$", reply.text, flags=re.MULTILINE)
    sections = [part.strip() for part in headings if _WORD.search(part)]
    for number, section in enumerate(sections, 1):
        found = _ITALICS.match(section)
        if not found or not _WORD.search(found[2]):
            return f"section {number} does not begin with a thesis in <i> or <em>"
        if not _WORD.search(re.sub(r"</?\w{1,10}>", "", section[found.end() :])):
            return f"section {number} is nothing but its thesis"
    return "" if sections else "no sections"


_ITALICS = re.compile(r"(?:<p>\s*)?<(i|em)>([^<]*)</\1>", re.IGNORECASE)
