"""Constraints on markup: JSON, markdown tables, headings and code, highlights, XML, layout."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from palestra.verifiers.instructions.parameters import Count, Phrase, Phrases, Relation
from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply, folded
from palestra.verifiers.json_answer import NotJson, read_json

# Emphasis: one to three asterisks around text that does not begin or end with space.
_HIGHLIGHT = re.compile(r"(?<![*\\])(\*{1,3})(?=[^\s*])([^*\n]*[^\s*])\1(?!\*)")
_HEADING = re.compile(r"[^\S\n]{0,3}(#{1,6})\s++(?=.*[^\W_])")
_FENCE = re.compile(r"[^\S\n]{0,3}(`{3,}|~{3,})[^\S\n]*+([^\s`]*)")
_TAG_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_OPTION_EDGES = " \t\n\"'“”‘’`*_.,;:!?()[]"
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def json_format(reply: Reply) -> str:
    """The whole reply is a JSON object or list with something in it, in a code fence or not.

    Names that occur twice, NaN and infinities are refused (see `read_json`).
    """
    document = _document(reply)
    return document if isinstance(document, str) else ""


def json_keys(reply: Reply, keys: Phrases) -> str:
    """The whole reply is a JSON object with these names."""
    document = _document(reply)
    if isinstance(document, str):
        return document
    if not isinstance(document, dict):
        return "a JSON list, not an object"
    missing = [key for key in keys if key not in document]
    return f"without {', '.join(missing[:5])}" if missing else ""


def _document(reply: Reply) -> dict[str, Any] | list[Any] | str:
    """The JSON that the reply is; a text that says why it is none."""
    text = reply.raw.strip().removeprefix("\ufeff")
    if fenced := re.match(r"```[A-Za-z]*[^\S\n]*\n", text):
        if not text.endswith("```"):
            return "a code fence without end, or text after it"
        text = text[fenced.end() : -3]
    try:
        document = read_json(text)
    except NotJson as problem:
        return str(problem)[:200]
    if isinstance(document, dict | list) and document:
        return document
    return "JSON, but no object or list with something in it"


def highlights(reply: Reply, count: Count) -> str:
    """At least so many passages in *one*, **two** or ***three*** asterisks, each counted once."""
    found = sum(bool(_WORD.search(match[2])) for match in _HIGHLIGHT.finditer(reply.text))
    return unless(found, "at least", count, "highlighted passages")


_WORD = re.compile(r"[^\W_]")


def headings(reply: Reply, count: Count, relation: Relation = "at least") -> str:
    """So many markdown headings (# to ######), outside of code."""
    found = sum(bool(_HEADING.match(line)) for line in _outside_code(reply))
    return unless(found, relation, count, "headings")


def code_block(reply: Reply, language: Phrase) -> str:
    """A fenced code block marked with this language, closed, with something in it."""
    fence, is_wanted, has_text = "", False, False
    for line in reply.lines:
        found = _FENCE.match(line[:1_000])
        if not fence:
            if found:
                fence, has_text = found[1], False
                is_wanted = folded(found[2]) == folded(language)
        elif found and found[1].startswith(fence) and not found[2]:
            if is_wanted and has_text:
                return ""
            fence = ""
        else:
            has_text = True
    return f"no block of {language:.40} code"


def _outside_code(reply: Reply) -> list[str]:
    lines, fence = [], ""
    for line in reply.lines:
        found = _FENCE.match(line[:1_000])
        if not fence and found:
            fence = found[1]
        elif fence:
            if found and found[1].startswith(fence) and not found[2]:
                fence = ""
        else:
            lines.append(line)
    return lines


def table(reply: Reply, rows: Count = 1, columns: Count = 1) -> str:
    """A markdown table of at least so many rows, besides its head, and at least so many columns."""
    longest = width = count = 0
    before: list[str] = []
    for line in _outside_code(reply):
        cells = _cells(line)
        if not width and _is_rule(cells) and len(cells) == len(before) >= columns:
            width, count = len(cells), 0
        elif width and cells:
            count += 1
            longest = max(longest, count)
        else:
            width = 0
        before = cells
    if longest >= rows:
        return ""
    return f"no table of {rows} rows and {columns} columns (the longest has {longest} rows)"


def _is_rule(cells: list[str]) -> bool:
    return bool(cells) and all(_RULE.fullmatch(cell) for cell in cells)


_RULE = re.compile(r"\s*+:?-++:?\s*+")


def _cells(line: str) -> list[str]:
    return line.strip().removeprefix("|").removesuffix("|").split("|") if "|" in line else []


def tagged(reply: Reply, tag: Phrase) -> str:
    """The whole reply stands in one XML element of this name, with something in it."""
    opening = re.match(rf"<{re.escape(tag)}(?:\s[^<>]*)?>", reply.text)
    closing = f"</{tag}>"
    if not opening or not reply.text.endswith(closing):
        return f"not in <{tag:.40}>"
    inside = reply.text[opening.end() : -len(closing)]
    if closing in inside:
        return f"more than one <{tag:.40}>"
    return "" if _WORD.search(inside) else f"an empty <{tag:.40}>"


def bad_tag(tag: str) -> str:
    """What is wrong with the name of `tagged`."""
    return "" if _TAG_NAME.fullmatch(tag) else f'"{tag:.40}" is no name of an XML element'


def constrained_response(reply: Reply) -> str:
    """Exactly one of IFEval's three answers, "My answer is yes.", "… no." or "… maybe.", once."""
    found = sum(reply.text.count(option) for option in _CONSTRAINED)
    return "" if found == 1 else f"{found} of the allowed answers, not 1"


def options(reply: Reply, options: Phrase) -> str:
    """Nothing but one of the options, which are divided by "/", "or" or commas."""
    separator = next((mark for mark in ("/", " or ", ",") if mark in options), ",")
    allowed = {_option(part) for part in options.split(separator)} - {""}
    return "" if _option(reply.text) in allowed else f"not one of {', '.join(sorted(allowed))}"


def _option(text: str) -> str:
    return folded(text).strip(_OPTION_EDGES) if len(text) < 10_000 else ""


def no_whitespace(reply: Reply) -> str:
    """No space or line break inside of it."""
    return "" if len(reply.tokens) == 1 else "with white space"


def word_a_line(reply: Reply) -> str:
    """Two words or more, each on a line of its own."""
    crowded = next((line for line in reply.lines if len(line.split()) > 1), None)
    if crowded is not None:
        return f'more than a word in "{crowded.strip():.40}"'
    return "" if len(reply.lines) > 1 else "fewer than two lines"


def stairs(reply: Reply) -> str:
    """Two lines or more, each indented more than the one before."""
    # The first line's own indent counts as well.
    lines = [line for line in reply.raw.expandtabs(4).split("\n") if line.strip()]
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    if len(lines) < 2:
        return "fewer than two lines"
    growing = all(first < second for first, second in pairwise(indents))
    return "" if growing else "a line without a step"


def words_in_brackets(reply: Reply) -> str:
    """Every word stands in [square] [brackets] of its own."""
    wrong = next((t for t in reply.tokens if not _BRACKETED.fullmatch(t[:200])), None)
    return "" if wrong is None else f'"{wrong:.40}" is not in brackets'


_BRACKETED = re.compile(r"\[[^\[\]]+\][.,;:!?]?")


def pairs_in_brackets(reply: Reply) -> str:
    """Every two words stand in <<double angular>> <<brackets>>; a last one may stand alone."""
    tokens = reply.tokens
    for position in range(0, len(tokens), 2):
        pair = " ".join(tokens[position : position + 2])
        if not _PAIR.fullmatch(pair[:400]):
            return f'"{pair:.40}" is not in <<double angular brackets>>'
    return ""


_PAIR = re.compile(r"<<[^<>\s]+(?: [^<>\s]+)?>>[.,;:!?]?")
