"""Constraints on how words are made: palindromes, first letters, vowels, lengths, alliteration."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from palestra.verifiers.instructions.parameters import Count
from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply, words_of

_VOWELS = frozenset("aeiou")
_CLUSTER = re.compile(r"[bcdfghjklmnpqrstvwxyz]{2}")
_JAPANESE = re.compile("[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_LONGEST_WORD = 100

Clash = Callable[[str, str], bool]


def palindromes(reply: Reply, count: Count = 1, letters: Count = 3) -> str:
    """At least so many different palindromes of so many letters or more: "a" and "I" are none."""
    found = {
        word
        for word in map(_letters_of, reply.folded)
        if letters <= len(word) <= _LONGEST_WORD and word == word[::-1]
    }
    return unless(len(found), "at least", count, f"palindromes of {letters} letters or more")


def alphabet(reply: Reply) -> str:
    """Two words or more, each beginning with the next letter of the alphabet, A after Z."""
    letters = [word[0] for word in reply.folded]
    if len(letters) < 2:
        return "fewer than two words"
    for number, (first, second) in enumerate(pairwise(letters), 2):
        if not ("a" <= first <= "z" and ord(second) - 97 == (ord(first) - 96) % 26):
            return f"word {number} does not begin with the letter after {first}"
    return ""


def no_shared_first_letter(reply: Reply) -> str:
    """Two words or more, no two in a row with the same first letter."""
    return _neighbours(reply, lambda first, second: first == second, "the same first letter")


def no_consecutive_first_letters(reply: Reply) -> str:
    """Two words or more, none beginning with the letter after that of the word before."""
    return _neighbours(
        reply, lambda first, second: ord(second) - ord(first) == 1, "consecutive first letters"
    )


def alliteration(reply: Reply, count: Count) -> str:
    """At least so many words in a row, within a sentence, begin with the same letter."""
    longest = max(map(_alliteration, reply.sentences), default=0)
    return unless(longest, "at least", count, "alliterating words in a row")


def growing_alliteration(reply: Reply) -> str:
    """Two sentences or more, each with a longer run of alliterating words than the one before."""
    runs = [_alliteration(sentence) for sentence in reply.sentences]
    if len(runs) < 2:
        return "fewer than two sentences"
    wrong = [i for i, (first, second) in enumerate(pairwise(runs), 2) if second <= first]
    return f"sentence {wrong[0]} has no longer run than the one before" if wrong else ""


def three_vowels(reply: Reply) -> str:
    """One paragraph with at most three of the vowels a, e, i, o, u, and at least one."""
    if len(reply.lines) != 1:
        return f"{len(reply.lines)} paragraphs, not 1"
    used = sorted(_VOWELS.intersection(reply.folded_text))
    return "" if 1 <= len(used) <= 3 else f"{len(used)} kinds of vowels"


def consonant_clusters(reply: Reply) -> str:
    """Every word has two consonants in a row; numbers do not count."""
    words = [word for word in map(_letters_of, reply.folded) if word]
    wrong = next((word for word in words if not _CLUSTER.search(word)), None)
    if wrong is not None:
        return f'"{wrong:.40}" has no two consonants in a row'
    return "" if words else "no words"


def prime_lengths(reply: Reply) -> str:
    """Every word has a prime number of letters and digits."""
    for word in reply.words:
        length = sum(map(str.isalnum, word))
        if length > _LONGEST_WORD or not _is_prime(length):
            return f'"{word:.40}" has {length} letters'
    return "" if reply.words else "no words"


def japanese_words(reply: Reply, every: Count) -> str:
    """So many words or more, divided by spaces, and every nth, numbers aside, is in Japanese."""
    tokens = [token for token in reply.tokens if re.search(r"[^\W_]", token)]
    if len(tokens) < every:
        return f"{len(tokens)} words, so none is the {every}th"
    for token in tokens[every - 1 :: every]:
        if not _JAPANESE.search(token) and not token.strip(".,;:!?%()").isdigit():
            return f'"{token:.40}" is not in Japanese'
    return ""


def _neighbours(reply: Reply, clash: Clash, what: str) -> str:
    letters = [word[0] for word in reply.folded]
    if len(letters) < 2:
        return "fewer than two words"
    wrong = next((i for i, pair in enumerate(pairwise(letters), 1) if clash(*pair)), None)
    return "" if wrong is None else f"words {wrong} and {wrong + 1} have {what}"


def _alliteration(sentence: str) -> int:
    longest = run = 0
    before = ""
    for word in words_of(sentence.casefold()):
        run = run + 1 if word[0] == before and word[0].isalpha() else 1
        before = word[0]
        longest = max(longest, run)
    return longest


def _letters_of(word: str) -> str:
    return word if word.isalpha() else "".join(filter(str.isalpha, word[: 2 * _LONGEST_WORD]))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
