"""Constraints on upper and lower case."""

from __future__ import annotations

from palestra.verifiers.instructions.language import is_english
from palestra.verifiers.instructions.parameters import Natural, Percentage, Relation
from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply, words_of

# Words that title case leaves small, except as the first.
_MINOR = frozenset(
    words_of(
        "a an the and but or nor for so yet as at by in of off on per to up via vs if from into "
        "onto over with than"
    )
)


def all_capitals(reply: Reply) -> str:
    """English, without a letter in lower case."""
    if any(map(str.islower, reply.text)):
        return "with letters in lower case"
    if not any(map(str.isupper, reply.text)):
        return "without a letter in upper case"
    return "" if is_english(reply) else "not in English"


def all_lowercase(reply: Reply) -> str:
    """English, without a letter in upper case."""
    if any(map(str.isupper, reply.text)):
        return "with letters in upper case"
    if not any(map(str.islower, reply.text)):
        return "without a letter in lower case"
    return "" if is_english(reply) else "not in English"


def capital_words(reply: Reply, count: Natural, relation: Relation) -> str:
    """So many words of two letters or more in capitals: "I" and "A" are no emphasis."""
    return unless(_capital_words(reply), relation, count, "words in capitals")


def capital_share(reply: Reply, percentage: Percentage, relation: Relation) -> str:
    """That share of the words is in capitals, counted as in `capital_words`."""
    if not reply.words:
        return "no words"
    share = round(100 * _capital_words(reply) / len(reply.words), 6)
    return unless(share, relation, percentage, "% of the words in capitals")


def title_case(reply: Reply) -> str:
    """Every major word begins with a capital; articles, conjunctions, short prepositions need not.

    The words of each line's beginning are major, whatever they are.
    """
    for line in reply.lines:
        for position, word in enumerate(words_of(line)):
            if word[0].islower() and (position == 0 or word not in _MINOR):
                return f'"{word:.40}" begins with a small letter'
    if not any(word[0].isupper() for word in reply.words):
        return "without a capital"
    return "all in capitals" if _capital_words(reply) > len(reply.words) / 2 else ""


def _capital_words(reply: Reply) -> int:
    return sum(word.isupper() and sum(map(str.isalpha, word)) >= 2 for word in reply.words)
