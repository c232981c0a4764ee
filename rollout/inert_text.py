"""Message text that can never turn into a control token.

What a tool, a user or the model itself wrote is data: a tool result that holds the characters
"<|im_end|>" must not end a turn. Text from messages is therefore marked before the template sees
it: after the first character of every special token that it spells stands `MARK`, a Unicode
noncharacter. The template's own tokens stay whole. The tokenizer (a private copy) matches special
tokens first, then drops the marks, then merges: marked text gets exactly the ids that its
characters have as ordinary text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# U+FDD0 is for use inside programs: no exchanged text may hold it. In messages it becomes U+FFFD.
MARK = "\ufdd0"

# Deeper JSON than this is nobody's honest arguments, and recursion must end somewhere.
MAX_DEPTH = 64


class Marker:
    """Marks the special tokens that a text spells, so that they stay text.

    Control tokens (`special=True` in the tokenizer: ends of turns, role headers) are marked
    everywhere. Tags (added tokens that are not special, such as <think> or <tool_call>) are
    marked only where `tags=True`: a system prompt may show one and the model may write one, but
    a tool's output may not open or close anything.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        control = control_tokens(tokenizer)
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        self._control = _first_letters_of(control)
        self._all = _first_letters_of(control | added)

    def mark(self, text: str, *, tags: bool) -> str:
        """The text with its special tokens marked and lone surrogates replaced by U+FFFD."""
        if not text.isascii():
            text = _well_formed(text)
        return (self._all if tags else self._control).sub(_with_mark, text)

    def mark_all(self, value: Any, *, tags: bool, depth: int = MAX_DEPTH) -> Any:
        """The same for every string inside a JSON value, keys included.

        Raises ValueError if the value is nested deeper than `depth`.
        """
        if isinstance(value, str):
            return self.mark(value, tags=tags)
        if not isinstance(value, (dict, list, tuple)):
            return value
        if depth == 0:
            raise ValueError(f"JSON nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            return {
                self.mark(str(key), tags=tags): self.mark_all(item, tags=tags, depth=depth - 1)
                for key, item in value.items()
            }
        return [self.mark_all(item, tags=tags, depth=depth - 1) for item in value]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens that steer a conversation: ends of turns, role headers, beginning of text."""
    added = tokenizer.added_tokens_decoder.values()
    return {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)


def private_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the fast tokenizer that drops marks once special tokens are matched.

    Being a copy, it also never truncates or pads because someone else asked the original to.
    Raises ValueError for a tokenizer without a fast (Rust) backend.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; save one with a tokenizer.json"
        )
    spec = json.loads(backend.to_str())
    drop_marks = {"type": "Replace", "pattern": {"String": MARK}, "content": ""}
    others = [spec["normalizer"]] if spec["normalizer"] else []
    spec["normalizer"] = {"type": "Sequence", "normalizers": [drop_marks, *others]}
    spec["truncation"] = spec["padding"] = None
    for token in spec["added_tokens"]:
        token["normalized"] = False  # else it would be matched after the marks are gone
    return Tokenizer.from_str(json.dumps(spec))


def _first_letters_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds the first letter of each token in a text, overlapping tokens included."""
    tails: dict[str, list[str]] = {}
    for token in tokens:
        if len(token) > 1:  # nothing can be put inside a single character
            tails.setdefault(token[0], []).append(token[1:])
    letters = [f"{re.escape(letter)}(?={_any_of(words)})" for letter, words in tails.items()]
    return re.compile("|".join(letters) or "(?!)")


def _any_of(words: list[str]) -> str:
    """A pattern for text that starts with one of the words, as a tree: it fails fast."""
    if "" in words:
        return ""
    tails: dict[str, list[str]] = {}
    for word in words:
        tails.setdefault(word[0], []).append(word[1:])
    branches = [re.escape(letter) + _any_of(rest) for letter, rest in tails.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _with_mark(match: re.Match[str]) -> str:
    return match.group() + MARK


def _well_formed(text: str) -> str:
    """Text that has UTF-8 (no lone surrogates) and none of our own marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace(MARK, "\ufffd")
