"""Shaping parts that read the reply: format, repetition, language, tool calls; and their risks."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence

from palestra.types import Message, Score
from palestra.verifiers.context import text_of
from palestra.verifiers.tool_calls import count_calls
from palestra.verifiers.verifier import verifier

# No more of an episode's text is looked at.
MAX_CHARS = 1_000_000
_MAX_COUNT = 1_000

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# A word, or a character of a script that is written without spaces.
_SPACELESS_CHARS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SPACELESS_CHARS}]|[^\W_{_SPACELESS_CHARS}]+")

# By the first word of their characters' Unicode names.
SCRIPTS: Mapping[str, tuple[str, ...]] = {
    "arabic": ("ARABIC",),
    "cyrillic": ("CYRILLIC",),
    "devanagari": ("DEVANAGARI",),
    "greek": ("GREEK",),
    "han": ("CJK",),
    "hebrew": ("HEBREW",),
    "japanese": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "korean": ("HANGUL",),
    "latin": ("LATIN",),
    "thai": ("THAI",),
}


@verifier(range=(0, 1), shaping=True)
def think_answer_format(messages: Sequence[Message]) -> Score:
    """1 if the last reply is `<think>…</think><answer>…</answer>`, both filled, nothing around.

    The format reward of DeepSeek-R1 (arXiv 2501.12948, section 2.2). The thinking may already have
    been taken out of the text, as `reasoning_content`.

    Risk: the tags are learned first and say nothing of what is in them; a single letter of thinking
    is enough. A weight that rivals the answer's trains well-formed guesses.
    """
    problem = _format_problem(messages)
    return Score(value=float(not problem), explanation=problem)


def repetition_penalty(ngram: int = 3) -> Callable[..., float]:
    """A shaping verifier from 0 down to -1: minus the share of n-grams of words that came before.

    After Yeo et al., "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373, appendix
    C.2), over all that the episode's replies say and think, as one number (theirs is by token). No
    words at all is -1; fewer than an n-gram has, 0.

    Risk: tables, code and repeated checks are repetition, too; with long replies some is normal, so
    brevity pays. Paraphrased loops escape it.

    Raises:
        ValueError: `ngram` below 1.
    """
    if ngram < 1:
        raise ValueError(f"ngram must be at least 1, got {ngram}")

    @verifier(name="repetition_penalty", range=(-1, 0), shaping=True)
    def penalty(messages: Sequence[Message]) -> float:
        """0 if no n-gram comes twice."""
        words = [word.lower() for word in _WORD.findall(_said(messages))]
        if not words:
            return -1.0
        total = len(words) - ngram + 1
        if total < 1:
            return 0.0
        distinct = len(set(zip(*(words[start:] for start in range(ngram)), strict=False)))
        return distinct / total - 1.0

    return penalty


def language_consistency(script: str = "latin") -> Callable[..., float]:
    """A shaping verifier from 0 to 1: the share of words written in one script (see `SCRIPTS`).

    The language consistency reward of DeepSeek-R1 (arXiv 2501.12948, section 2.3): the proportion
    of the target language's words, here over all that the episode's replies say and think. A
    language is told by its script only, which needs no model: English for French goes unnoticed.
    Single letters (mathematics) and digits are not words; each Chinese or Japanese character is
    one. No words at all is 0.

    Risk: DeepSeek saw it cost some accuracy. Names, quotations and code in another script count
    against a reply, padding in the right one for it.

    Raises:
        ValueError: an unknown script.
    """
    if script not in SCRIPTS:
        raise ValueError(f'no script "{script}": there are {", ".join(SCRIPTS)}')
    prefixes = SCRIPTS[script]

    @verifier(name="language_consistency", range=(0, 1), shaping=True)
    def share(messages: Sequence[Message]) -> float:
        """1 if every word is in the script."""
        total = fitting = 0
        for word in _WORD.findall(_said(messages)):
            scripts = {_script(c) for c in word if c.isalpha()}
            if not scripts or (len(word) == 1 and not scripts & _SPACELESS):
                continue
            total += 1
            fitting += scripts <= set(prefixes)
        return fitting / total if total else 0.0

    return share


@verifier(range=(0, _MAX_COUNT), shaping=True)
def tool_call_count(messages: Sequence[Message]) -> float:
    """How many tool calls the episode made, up to 1,000; meant for weight 0, as a metric.

    Risk: with a positive weight calls are made for their own sake, whatever they return; with a
    negative one none are made. `tool_call_cost` pays for few calls only where the answer is right.
    """
    return float(min(count_calls(messages), _MAX_COUNT))


_SPACELESS = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}


def _format_problem(messages: Sequence[Message]) -> str:
    last = next((m for m in reversed(messages) if m.get("role") == "assistant"), {})
    text, thinking = text_of(last).strip(), last.get("reasoning_content") or ""
    if not thinking:
        if not text.startswith("<think>"):
            return "no <think> block at the start"
        thinking, closing, text = text.removeprefix("<think>").partition("</think>")
        if not closing:
            return "<think> is not closed"
    text = text.strip()
    if not thinking.strip():
        return "<think> is empty"
    if not (text.startswith("<answer>") and text.endswith("</answer>")):
        return "no <answer> block right after the thinking, to the end"
    inside = text.removeprefix("<answer>").removesuffix("</answer>")
    if any(tag in thinking or tag in inside for tag in _TAGS):
        return "a tag inside of a block"
    return "" if inside.strip() else "<answer> is empty"


def _said(messages: Sequence[Message]) -> str:
    return "\n".join(_texts(messages))[:MAX_CHARS]


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if message.get("role") == "assistant":
            yield message.get("reasoning_content") or ""
            yield text_of(message)


@functools.lru_cache(maxsize=100_000)
def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]
