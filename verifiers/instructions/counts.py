"""Constraints on what is in a reply: unique words, numbers, stop words, kinds of sentences."""

from __future__ import annotations

import re
from collections import Counter

from palestra.verifiers.instructions.function_words import ENGLISH_STOP_WORDS
from palestra.verifiers.instructions.parameters import Count, Natural, Percentage, Phrase, Relation
from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply

# "1,000", "3.5", "10:30" and "50%" are one number each; "B2B" is none, "3rd" is.
_NUMBER = re.compile(r"(?<![^\W_])\d++(?:[.,:]\d++)*+")
_OVERLAP_TOLERANCE = 2  # percentage points either way


def unique_words(reply: Reply, count: Count, relation: Relation = "at least") -> str:
    """So many different words, in any case."""
    return unless(len(set(reply.folded)), relation, count, "different words")


def no_word_twice(reply: Reply) -> str:
    """No word comes twice, in any case; punctuation is no word."""
    return repeats(reply, 1)


def repeats(reply: Reply, count: Count) -> str:
    """No word comes more often than that, in any case."""
    if not reply.folded:
        return "no words"
    word, times = Counter(reply.folded).most_common(1)[0]
    return f'"{word:.40}" comes {times} times, more than {count}' if times > count else ""


def lowercase_words(reply: Reply, count: Natural) -> str:
    """At most so many words in lower case."""
    found = sum(map(str.islower, reply.words))
    return unless(found, "at most", count, "words in lower case")


def numbers(reply: Reply, count: Natural, relation: Relation = "exactly") -> str:
    """So many numbers, written in digits."""
    return unless(len(_NUMBER.findall(reply.text)), relation, count, "numbers")


def stop_words(reply: Reply, percentage: Percentage) -> str:
    """At most that share of the words are English stop words."""
    if not reply.folded:
        return "no words"
    found = sum(word in ENGLISH_STOP_WORDS for word in reply.folded)
    return unless(round(100 * found / len(reply.folded), 6), "at most", percentage, "% stop words")


def overlap(reply: Reply, reference_text: Phrase, percentage: Percentage) -> str:
    """That share of the reply's different trigrams is the reference's, give or take 2%.

    Trigrams are of words and punctuation marks, in their case, as the published percentages are.
    """
    trigrams = _trigrams(reply.text)
    if not trigrams:
        return "fewer than three words"
    share = 100 * len(trigrams & _trigrams(reference_text)) / len(trigrams)
    if abs(share - percentage) <= _OVERLAP_TOLERANCE:
        return ""
    return f"{share:.1f}% of trigrams are the reference's, not {percentage:g}% (±2%)"


def _trigrams(text: str) -> set[tuple[str, str, str]]:
    tokens = re.findall(r"\w+|[^\w\s]", text)
    return set(zip(tokens, tokens[1:], tokens[2:], strict=False))


def two_statements_a_question(reply: Reply) -> str:
    """Twice as many sentences end in a full stop as in a question mark, and there are some."""
    ends = _sentence_ends(reply)
    if ends["?"] and ends["."] == 2 * ends["?"]:
        return ""
    return f"{ends['.']} statements to {ends['?']} questions"


def balanced_sentences(reply: Reply) -> str:
    """As many statements as questions and as exclamations, and there are some."""
    ends = _sentence_ends(reply)
    if ends["."] and ends["."] == ends["?"] == ends["!"]:
        return ""
    return f"{ends['.']} statements, {ends['?']} questions, {ends['!']} exclamations"


def _sentence_ends(reply: Reply) -> Counter[str]:
    ends: Counter[str] = Counter()
    for sentence in reply.sentences:
        found = _END.search(sentence)
        ends[_PLAIN.get(found[1], found[1]) if found else ""] += 1
    return ends


_END = re.compile(r"([.?!。？！؟।])[^\w.?!。？！؟।]*+\Z")
_PLAIN = {"。": ".", "।": ".", "？": "?", "؟": "?", "！": "!"}
