"""Constraints on beginnings and ends: of the reply, of its sentences, of its paragraphs."""

from __future__ import annotations

from itertools import pairwise

from palestra.verifiers.instructions.parameters import Phrase
from palestra.verifiers.instructions.reply import Reply, folded, words_of

_QUOTES = "\"'“”‘’*_ \n"


def ends_with(reply: Reply, end_phrase: Phrase) -> str:
    """The reply ends with the phrase, in any case, after something else; quotes may close it."""
    text, phrase = folded(reply.text).rstrip(_QUOTES), folded(end_phrase).rstrip(_QUOTES)
    if not text.endswith(phrase) or text[: -len(phrase)][-1:].isalnum():
        return f'does not end with "{end_phrase:.60}"'
    return "" if words_of(text[: -len(phrase)]) else "nothing before the final phrase"


def starts_with(reply: Reply, start_phrase: Phrase) -> str:
    """The reply begins with the phrase, in any case, and goes on; quotes may open it."""
    text, phrase = folded(reply.text).lstrip(_QUOTES), folded(start_phrase).lstrip(_QUOTES)
    if not text.startswith(phrase) or text[len(phrase) : len(phrase) + 1].isalnum():
        return f'does not begin with "{start_phrase:.60}"'
    return "" if words_of(text[len(phrase) :]) else "nothing after the first phrase"


def first_word(reply: Reply, first_word: Phrase) -> str:
    """The reply's first word is this one, in any case."""
    return "" if _starts(reply.folded, first_word) else f'does not begin with "{first_word:.40}"'


def last_word(reply: Reply, last_word: Phrase) -> str:
    """The reply's last word is this one, in any case; punctuation may follow."""
    return "" if _ends(reply.folded, last_word) else f'does not end with "{last_word:.40}"'


def first_word_of_sentences(reply: Reply, first_word: Phrase) -> str:
    """Every sentence begins with this word, in any case."""
    for number, sentence in enumerate(reply.sentences, 1):
        if not _starts(words_of(folded(sentence)), first_word):
            return f'sentence {number} does not begin with "{first_word:.40}"'
    return "" if reply.sentences else "no sentences"


def last_word_of_sentences(reply: Reply, last_word: Phrase) -> str:
    """Every sentence ends with this word, in any case; punctuation may follow."""
    for number, sentence in enumerate(reply.sentences, 1):
        if not _ends(words_of(folded(sentence)), last_word):
            return f'sentence {number} does not end with "{last_word:.40}"'
    return "" if reply.sentences else "no sentences"


def same_first_and_last(reply: Reply) -> str:
    """Two words or more, the first and last the same, and nothing after it."""
    if len(reply.folded) < 2:
        return "fewer than two words"
    if not reply.text[-1].isalnum():
        return "with something after the last word"
    return "" if reply.folded[0] == reply.folded[-1] else "begins and ends with different words"


def paragraphs_round(reply: Reply) -> str:
    """Each paragraph (a line is one) ends with the word that it begins with; none is one word."""
    for number, line in enumerate(reply.lines, 1):
        words = words_of(folded(line))
        if len(words) < 2 or words[0] != words[-1]:
            return f"paragraph {number} does not end with the word it begins with"
    return ""


def chained_sentences(reply: Reply) -> str:
    """Two sentences or more, each beginning with the last word of the one before."""
    words = [words_of(folded(sentence)) for sentence in reply.sentences]
    if len(words) < 2:
        return "fewer than two sentences"
    wrong = [i for i, (first, second) in enumerate(pairwise(words), 2) if first[-1] != second[0]]
    return f"sentence {wrong[0]} does not begin with the last word before it" if wrong else ""


def _starts(words: list[str], phrase: str) -> bool:
    expected = words_of(folded(phrase))
    return bool(expected) and words[: len(expected)] == expected


def _ends(words: list[str], phrase: str) -> bool:
    expected = words_of(folded(phrase))
    return bool(expected) and words[-len(expected) :] == expected
