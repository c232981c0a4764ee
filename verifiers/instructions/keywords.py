"""Constraints on keywords: there, forbidden, how often, and in which sentence or place."""

from __future__ import annotations

import re
from collections.abc import Sequence

from palestra.verifiers.instructions.parameters import (
    Character,
    Count,
    Natural,
    Phrase,
    Phrases,
    Relation,
)
from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply, folded, marks, words_of

CONJUNCTIONS = frozenset(words_of("and but for nor or so yet"))
PRONOUNS = frozenset(
    words_of(
        "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him "
        "his himself she her hers herself it its itself they them their theirs themselves"
    )
)
# The list that IFBench's prompt gives.
PERSON_NAMES = frozenset(
    words_of(
        "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte "
        "Alexander Amelia Benjamin Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen "
        "Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla Nicholas Audrey David "
        "Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan"
    )
)
_CAPITALISED = re.compile(r"(?<![^\W_])[A-Z][a-z]++(?![^\W_])")
_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff]")


def existence(reply: Reply, keywords: Phrases) -> str:
    """Every keyword is there, as a whole word, in any case."""
    missing = [keyword for keyword in keywords if not occurrences(reply, keyword)]
    return f"without {_quoted(missing)}" if missing else ""


def forbidden(reply: Reply, forbidden_words: Phrases) -> str:
    """None of the words is there as a whole word, in any case."""
    found = [word for word in forbidden_words if occurrences(reply, word)]
    return f"with {_quoted(found)}" if found else ""


def forbidden_word(reply: Reply, keyword: Phrase) -> str:
    """The word is not there as a whole word, in any case."""
    return forbidden(reply, (keyword,))


def frequency(reply: Reply, keyword: Phrase, frequency: Natural, relation: Relation) -> str:
    """The keyword comes so often, as a whole word, in any case."""
    return unless(occurrences(reply, keyword), relation, frequency, f'times "{keyword:.40}"')


def exact_frequency(
    reply: Reply, keyword: Phrase, frequency: Natural, relation: Relation = "exactly"
) -> str:
    """The keyword comes exactly so often, which is what the published prompt says.

    The published checker goes by a relation ("at least" or "less than") that its prompt does not
    show; it is read and ignored.
    """
    return unless(occurrences(reply, keyword), "exactly", frequency, f'times "{keyword:.40}"')


def once(reply: Reply, keyword: Phrase) -> str:
    """The keyword comes once."""
    return _exactly(reply, (keyword,), (1,))


def once_and_twice(reply: Reply, keyword1: Phrase, keyword2: Phrase) -> str:
    """One keyword comes once, the other twice."""
    return _exactly(reply, (keyword1, keyword2), (1, 2))


def one_to_seven(
    reply: Reply,
    keyword1: Phrase,
    keyword2: Phrase,
    keyword3: Phrase,
    keyword4: Phrase,
    keyword5: Phrase,
) -> str:
    """The keywords come 1, 2, 3, 5 and 7 times."""
    keywords = (keyword1, keyword2, keyword3, keyword4, keyword5)
    return _exactly(reply, keywords, (1, 2, 3, 5, 7))


def letter_frequency(
    reply: Reply, letter: Character, frequency: Natural, relation: Relation
) -> str:
    """The letter, or other character, comes so often, in any case."""
    # Not the folded text: "ß" is one letter.
    count = reply.text.lower().count(letter.lower())
    return unless(count, relation, frequency, f'times "{letter}"')


def in_sentence(reply: Reply, word: Phrase, sentence: Count) -> str:
    """The word is in that sentence, counted from 1."""
    if len(reply.sentences) < sentence:
        return f"only {len(reply.sentences)} sentences, not {sentence}"
    if occurrences(Reply(reply.sentences[sentence - 1]), word):
        return ""
    return f'sentence {sentence} is without "{word:.40}"'


def at_place(reply: Reply, keyword: Phrase, sentence: Count, word: Count) -> str:
    """The keyword is that word of that sentence, both counted from 1; punctuation is no word."""
    if len(reply.sentences) < sentence:
        return f"only {len(reply.sentences)} sentences, not {sentence}"
    words = words_of(folded(reply.sentences[sentence - 1]))
    length = len(words_of(keyword))
    if words[word - 1 : word - 1 + length] == words_of(folded(keyword)):
        return ""
    return f'word {word} of sentence {sentence} is not "{keyword:.40}"'


def second_and_second_to_last(reply: Reply, keyword: Phrase) -> str:
    """The second and the second to last word are the keyword, and two different words."""
    words = reply.folded
    if len(words) < 4:
        return f"only {len(words)} words"
    wrong = [
        name for name, i in (("second", 1), ("second to last", -2)) if words[i] != folded(keyword)
    ]
    return f'the {wrong[0]} word is not "{keyword:.40}"' if wrong else ""


def conjunctions(reply: Reply, count: Count) -> str:
    """At least so many different coordinating conjunctions (and, but, for, nor, or, so, yet)."""
    found = CONJUNCTIONS.intersection(reply.folded)
    return unless(len(found), "at least", count, "different conjunctions")


def pronouns(reply: Reply, count: Count) -> str:
    """At least so many pronouns; "I'm" and "she/her" have one and two."""
    words = [word.partition("'")[0] for word in reply.folded]
    return unless(sum(word in PRONOUNS for word in words), "at least", count, "pronouns")


def person_names(reply: Reply, count: Count) -> str:
    """At least so many different names of the list that IFBench gives, capitalised."""
    found = PERSON_NAMES.intersection(_CAPITALISED.findall(reply.text))
    return unless(len(found), "at least", count, "different names")


def occurrences(reply: Reply, phrase: str) -> int:
    """How often a phrase is there: whole words, any case, any space between its words."""
    needle = folded(phrase)
    if needle not in reply.folded_text:
        return 0
    inside = r"[^\W_]" if reply.folded_text.isascii() else rf"(?:[^\W_]|[{marks()}])"
    bounded = [edge.isalnum() and not _SPACELESS.match(edge) for edge in (needle[0], needle[-1])]
    # "_rock_" is emphasis, "rock_garden" a name.
    before = f"(?<!{inside})(?<!{inside}_)" if bounded[0] else ""
    after = f"(?!_?{inside})" if bounded[1] else ""
    pattern = f"{before}{re.escape(needle)}{after}"
    return sum(1 for _ in re.finditer(pattern, reply.folded_text))


def _exactly(reply: Reply, keywords: Sequence[str], counts: Sequence[int]) -> str:
    problems = [
        unless(occurrences(reply, keyword), "exactly", count, f'times "{keyword:.40}"')
        for keyword, count in zip(keywords, counts, strict=True)
    ]
    return "; ".join(filter(None, problems))


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f'"{word:.40}"' for word in words[:5])
