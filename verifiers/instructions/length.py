"""Constraints on length: words, sentences, paragraphs, lines, characters, and their growth."""

from __future__ import annotations

from itertools import pairwise

from palestra.verifiers.instructions.parameters import Count, Natural, Phrase, Relation
from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply, folded, words_of


def words(reply: Reply, count: Natural, relation: Relation) -> str:
    """So many words (see `Reply`: "don't" and "well-known" are one each)."""
    return unless(len(reply.words), relation, count, "words")


def words_between(reply: Reply, least: Natural, most: Count) -> str:
    """From `least` to `most` words."""
    return unless(len(reply.words), "at least", least, "words") or unless(
        len(reply.words), "at most", most, "words"
    )


def empty_range(least: int, most: int) -> str:
    """What is wrong with the limits of `words_between`."""
    return f"no text has at least {least} and at most {most} words" if least > most else ""


def sentences(reply: Reply, count: Natural, relation: Relation) -> str:
    """So many sentences."""
    return unless(len(reply.sentences), relation, count, "sentences")


def lines(reply: Reply, count: Natural, relation: Relation) -> str:
    """So many lines that are not blank."""
    return unless(len(reply.lines), relation, count, "lines")


def characters(reply: Reply, count: Natural, relation: Relation) -> str:
    """So many characters, spaces included, space around the reply not."""
    return unless(len(reply.text), relation, count, "characters")


def letters(reply: Reply, count: Natural, relation: Relation) -> str:
    """So many letters, of any script."""
    return unless(sum(map(str.isalpha, reply.text)), relation, count, "letters")


def paragraphs(reply: Reply, count: Count, relation: Relation = "exactly") -> str:
    """So many paragraphs, separated by blank lines."""
    return unless(len(reply.paragraphs), relation, count, "paragraphs")


def divided_paragraphs(reply: Reply, count: Count) -> str:
    """Exactly so many paragraphs, separated by `***`, none of them empty."""
    if not all(reply.divided):
        return "an empty paragraph between two dividers"
    return unless(len(reply.divided), "exactly", count, "paragraphs divided by ***")


def nth_paragraph_first_word(
    reply: Reply, paragraphs: Count, nth_paragraph: Count, first_word: Phrase
) -> str:
    """Exactly so many paragraphs, separated by blank lines, and the nth begins with that word."""
    if problem := unless(len(reply.paragraphs), "exactly", paragraphs, "paragraphs"):
        return problem
    expected = words_of(folded(first_word))
    if words_of(folded(reply.paragraphs[nth_paragraph - 1]))[: len(expected)] == expected:
        return ""
    return f'paragraph {nth_paragraph} does not begin with "{first_word:.40}"'


def lacks_paragraph(paragraphs: int, nth_paragraph: int, first_word: str) -> str:
    """What is wrong with the paragraph that `nth_paragraph_first_word` is about."""
    if nth_paragraph <= paragraphs:
        return ""
    return f"{paragraphs} paragraphs have no paragraph {nth_paragraph}"


def words_per_sentence(reply: Reply, count: Count, relation: Relation) -> str:
    """Every sentence has so many words."""
    for number, sentence in enumerate(reply.sentences, 1):
        problem = unless(len(words_of(sentence)), relation, count, f"words in sentence {number}")
        if problem:
            return problem
    return ""


def composition(reply: Reply, sentences: Count, words: Count) -> str:
    """Three paragraphs divided by `***`, each of so many sentences, each of so many words."""
    if len(reply.divided) != 3:
        return f"{len(reply.divided)} paragraphs divided by ***, not 3"
    for number, paragraph in enumerate(map(Reply, reply.divided), 1):
        problem = unless(
            len(paragraph.sentences), "exactly", sentences, f"sentences in paragraph {number}"
        ) or words_per_sentence(paragraph, words, "exactly")
        if problem:
            return problem
    return ""


def growing_sentences(reply: Reply, step: Count) -> str:
    """Two sentences or more, each with exactly so many words more than the one before."""
    lengths = [len(words_of(sentence)) for sentence in reply.sentences]
    if len(lengths) < 2:
        return "fewer than two sentences"
    wrong = [i for i, (first, second) in enumerate(pairwise(lengths), 2) if second != first + step]
    return f"sentence {wrong[0]} is not {step} words longer than the one before" if wrong else ""


def equal_sentences(reply: Reply) -> str:
    """Three sentences of the same number of characters, no word of which comes twice."""
    if len(reply.sentences) != 3:
        return f"{len(reply.sentences)} sentences, not 3"
    if len({len(sentence) for sentence in reply.sentences}) > 1:
        return "sentences of different lengths"
    return "" if len(set(reply.folded)) == len(reply.folded) else "a word comes twice"
