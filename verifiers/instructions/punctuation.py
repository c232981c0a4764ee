"""Constraints on punctuation: marks to leave out, to use, to nest; emoji; quotations."""

from __future__ import annotations

import re

from palestra.verifiers.instructions.parameters import Count
from palestra.verifiers.instructions.reply import Reply
from palestra.verifiers.instructions.sentences import EMOJI

# Commas of other scripts are commas: Chinese, Japanese, Arabic, full-width.
_COMMAS = re.compile("[,，、،﹐﹑､]")
_DOTS = re.compile("[.．。…]")
_EXCLAMATIONS = re.compile("[!！‼⁉¡]")
_MARKS = (".", ",", "!", "?", ";", ":")
_OPENERS = {")": "(", "]": "[", "}": "{"}


def no_comma(reply: Reply) -> str:
    """No comma of any script."""
    return "with a comma" if _COMMAS.search(reply.text) else ""


def no_dot(reply: Reply) -> str:
    """No full stop, decimal point or ellipsis."""
    return "with a dot" if _DOTS.search(reply.text) else ""


def no_exclamation(reply: Reply) -> str:
    """No exclamation mark."""
    return "with an exclamation mark" if _EXCLAMATIONS.search(reply.text) else ""


def every_mark(reply: Reply) -> str:
    """Each of . , ! ? ; : at least once, and besides them an interrobang (?!, !? or ‽)."""
    text, found = re.subn(r"\?!|!\?|‽", "", reply.text, count=1)
    missing = [mark for mark in _MARKS if mark not in text]
    if not found:
        missing.append("?!")
    return f"without {' '.join(missing)}" if missing else ""


def nested_brackets(reply: Reply, depth: Count = 5) -> str:
    """Round, square or curly brackets that close in order, nested so deep."""
    open_brackets: list[tuple[str, int]] = []  # with the greatest depth closed inside of each
    deepest = 0
    for bracket in re.findall(r"[()\[\]{}]", reply.text):
        if bracket in "([{":
            open_brackets.append((bracket, 0))
        elif open_brackets and open_brackets[-1][0] == _OPENERS[bracket]:
            inside = open_brackets.pop()[1] + 1
            deepest = max(deepest, inside)
            if open_brackets and inside > open_brackets[-1][1]:
                open_brackets[-1] = (open_brackets[-1][0], inside)
        else:
            open_brackets.clear()
    return "" if deepest >= depth else f"brackets nested {deepest} deep, not {depth}"


def nested_quotes(reply: Reply, depth: Count = 3) -> str:
    """Quotations in quotations, alternating between double and single quotes, so deep."""
    text = reply.text.translate(str.maketrans("“”‘’", "\"\"''"))
    open_quotes: list[tuple[str, int]] = []
    deepest = 0
    for match in _QUOTE.finditer(text):
        mark = match[0]
        if open_quotes and open_quotes[-1][0] == mark:
            inside = open_quotes.pop()[1] + 1
            deepest = max(deepest, inside)
            if open_quotes and inside > open_quotes[-1][1]:
                open_quotes[-1] = (open_quotes[-1][0], inside)
        elif len(open_quotes) < 100:
            open_quotes.append((mark, 0))
    return "" if deepest >= depth else f"quotations nested {deepest} deep, not {depth}"


# Not the apostrophe of "don't".
_QUOTE = re.compile(r"\"|(?<![^\W_])'|'(?![^\W_])")


def explained_quotes(reply: Reply) -> str:
    """At least one quotation in double quotes, and words outside of quotes after each."""
    text = reply.text.replace("“", '"').replace("”", '"')
    parts = text.split('"')
    if len(parts) < 3:
        return "without a quotation"
    if len(parts) % 2 == 0:
        return "a quotation without end"
    if not all(part.strip() for part in parts[1::2]):
        return "an empty quotation"
    if all(_WORD.search(part) for part in parts[2::2]):
        return ""
    return "a quotation without an explanation after it"


_WORD = re.compile(r"[^\W\d_]")


def quoted(reply: Reply) -> str:
    """The whole reply stands in double quotes, and there is something in them."""
    text = reply.text
    is_wrapped = len(text) > 2 and text[0] in '"“' and text[-1] in '"”'
    return "" if is_wrapped and text[1:-1].strip(' \n"“”') else "not in double quotes"


def emoji_ends(reply: Reply) -> str:
    """Every sentence ends with an emoji, before or after its last punctuation."""
    for number, sentence in enumerate(reply.sentences, 1):
        if not _EMOJI_END.search(sentence[-60:]):
            return f"sentence {number} does not end with an emoji"
    return "" if reply.sentences else "no sentences"


_EMOJI_END = re.compile(
    rf"[{EMOJI}][\u200d\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]*[\s.!?…\"'”’)*_]*\Z"
)


def emoji(reply: Reply, count: Count) -> str:
    """At least so many emoji."""
    found = len(_EMOJI_GROUP.findall(reply.text))
    return "" if found >= count else f"{found} emoji, not at least {count}"


# A sequence that is drawn as one: joined, or with a skin tone.
_EMOJI_GROUP = re.compile(
    rf"[{EMOJI}](?:[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
    rf"|\u200d[{EMOJI}])*+"
)


def hyphenated_sentences(reply: Reply) -> str:
    """Two sentences or more, joined by hyphens without space: "One.-Two.-Three."."""
    if re.search(r"[.!?]\s", reply.text) or re.search(r"\s-|-\s", reply.text):
        return "sentences with space between them"
    sentences = re.split(r"(?<=[.!?])-", reply.text)
    return "" if len(sentences) > 1 and all(sentences) else "no two sentences joined by a hyphen"
