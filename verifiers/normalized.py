"""`normalized` and `token_f1`: text compared as SQuAD does, whatever its case and articles."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

from palestra.types import Score, Unscorable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalized(reply: str, answer: Any) -> Score:
    """1 if reply and reference are the same words; a list of references accepts any of them.

    The normalization of SQuAD (Rajpurkar et al., arXiv 1606.05250): lower case, no punctuation, no
    articles, single spaces.

    Raises:
        Unscorable: the reference is neither a string nor a list of them, or has no word.
    """
    accepted = _references("normalized", answer)
    if normalize(reply) in accepted:
        return Score(value=1.0)
    return Score(value=0.0, explanation=f"the reply is not {accepted[0]!r:.80}")


def token_f1(reply: str, answer: Any) -> Score:
    """The F1 of the reply's words against the reference's, the best one's if there are several.

    SQuAD's F1 over bags of normalized words: partial credit for a reply with more or fewer words.
    A reply of many guesses still earns some, so as a reward it asks for a length limit.

    Raises:
        Unscorable: as `normalized`.
    """
    words = normalize(reply).split()
    references = _references("token_f1", answer)
    return Score(value=max(f1(words, reference.split()) for reference in references))


def normalize(text: str) -> str:
    """Lower case, without punctuation and articles, with single spaces."""
    text = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(c for c in text if unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", kept).split())


def f1(found: list[str], expected: list[str]) -> float:
    """Harmonic mean of precision and recall over bags; 0 if nothing is common."""
    common = (Counter(found) & Counter(expected)).total()
    return 2 * common / (len(found) + len(expected)) if common else 0.0


def _references(name: str, answer: Any) -> list[str]:
    texts = answer if isinstance(answer, list | tuple) else [answer]
    accepted = [normalize(text) for text in texts if isinstance(text, str)]
    if len(accepted) < len(texts) or not all(accepted):
        raise Unscorable(
            f"{name} needs text as the task's answer, or a list of texts, got {answer!r:.80}"
        )
    if not accepted:
        raise Unscorable(f"{name} needs at least one answer, got {answer!r:.80}")
    return accepted
