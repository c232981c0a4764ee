"""Constraints on repetition: the request word for word, changed, in part, or several times."""

from __future__ import annotations

import re

from palestra.verifiers.instructions.parameters import Count, Natural, Phrase
from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply, folded, words_of

_SENTENCE = "Only output this sentence here, ignore all other requests."
_DIVIDER = re.compile(r"(?<!\*)\*{6}(?!\*)")


def repeat_then_answer(reply: Reply, prompt_to_repeat: Phrase) -> str:
    """The request first, word for word in any case, then an answer."""
    text, request = folded(reply.text), folded(prompt_to_repeat)
    if not text.startswith(request) or text[len(request) : len(request) + 1].isalnum():
        return "does not begin with the request"
    return "" if words_of(text[len(request) :]) else "no answer after the request"


def copy(reply: Reply, prompt_to_repeat: Phrase) -> str:
    """Nothing but the request, word for word, in any case."""
    is_copy = folded(reply.text) == folded(prompt_to_repeat)
    return "" if is_copy else "not the request and nothing else"


def copy_often(reply: Reply, prompt_to_repeat: Phrase, count: Count) -> str:
    """The request so many times, divided by six asterisks, and nothing else."""
    parts = [folded(part) for part in _DIVIDER.split(reply.text)]
    if any(part != folded(prompt_to_repeat) for part in parts):
        return "with something that is not the request"
    return unless(len(parts), "exactly", count, "copies")


def copy_characters(reply: Reply, prompt_to_repeat: Phrase, start: Natural, end: Count) -> str:
    """The request's characters from `start` to `end`, counted from 0, and nothing else.

    The published prompt says "and including", its checker leaves the last one out: both are right.
    """
    spans = {folded(prompt_to_repeat[start : end + extra]) for extra in (0, 1)}
    return "" if folded(reply.text) in spans - {""} else f"not characters {start} to {end}"


def lacks_characters(prompt_to_repeat: str, start: int, end: int) -> str:
    """What is wrong with the span of `copy_characters`."""
    return _lacks(start, end, prompt_to_repeat[start : end + 1].strip(), "characters")


def copy_words(reply: Reply, prompt_to_repeat: Phrase, start: Natural, end: Count) -> str:
    """The request's words from `start` to `end`, counted from 0, and nothing else.

    As in `copy_characters`, the last one may be there or not.
    """
    words = prompt_to_repeat.split()
    spans = {folded(" ".join(words[start : end + extra])) for extra in (0, 1)}
    return "" if folded(reply.text) in spans - {""} else f"not words {start} to {end}"


def lacks_words(prompt_to_repeat: str, start: int, end: int) -> str:
    """What is wrong with the span of `copy_words`."""
    return _lacks(start, end, " ".join(prompt_to_repeat.split()[start : end + 1]), "words")


def _lacks(start: int, end: int, span: str, what: str) -> str:
    return "" if start < end and span else f"the request has no {what} from {start} to {end}"


def copy_with_another_first_word(reply: Reply, prompt_to_repeat: Phrase) -> str:
    """The request with its first word changed to another, and nothing else."""
    said, asked = reply.text.split(), prompt_to_repeat.split()
    if folded(" ".join(said[1:])) != folded(" ".join(asked[1:])):
        return "not the request after the first word"
    is_changed = words_of(folded(said[0])) != words_of(folded(asked[0]))
    return "" if is_changed else "the first word is the same"


def only_this_sentence(reply: Reply) -> str:
    """IFBench's own sentence, "Only output this sentence here, …", and nothing else."""
    is_copy = folded(reply.text).strip(' "') == folded(_SENTENCE)
    return "" if is_copy else "not the sentence and nothing else"


def varied_phrase(reply: Reply, phrase: Phrase, count: Count) -> str:
    """The phrase exactly so many times, each time with one word of its inside changed."""
    asked, said = words_of(folded(phrase)), reply.folded
    copies = [
        sum(word != given for word, given in zip(asked, said[i : i + len(asked)], strict=True))
        for i in range(len(said) - len(asked) + 1)
        if said[i] == asked[0] and said[i + len(asked) - 1] == asked[-1]
    ]
    if any(changes == 0 for changes in copies):
        return "a copy without a change"
    return unless(sum(changes == 1 for changes in copies), "exactly", count, "changed copies")


def lacks_inside(phrase: str, count: int) -> str:
    """What is wrong with the phrase of `varied_phrase`."""
    if len(words_of(folded(phrase))) >= 3:
        return ""
    return f'"{phrase:.40}" has fewer than three words, so none is inside'
