"""Structured replies of the embedded engine: which tokens a `Structure` lets a reply go on with.

Shapes: V vocabulary of the model.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from palestra.types import Structure

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from transformers import PreTrainedTokenizerBase

# A model that knows no JSON would else write white space until it is cut.
_JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": " ?"}


class Grammars:
    """Makes grammars for one tokenizer and a model with `vocabulary` tokens.

    A reply that is complete ends with one of `stop_ids`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._stop_ids = sorted(stop_ids)
        self._lock = threading.Lock()
        self._tokens: Any = None

    def compile(self, structure: Structure) -> Grammar:
        """The grammar of a structure; for a large vocabulary the first one takes a second.

        Raises:
            ValueError: there is no such grammar, or none for this tokenizer.
        """
        tokens = self._known_tokens()
        from llguidance import LLMatcher

        if structure.call is not None:
            text = LLMatcher.grammar_from_lark(self._reply_or_call(structure))
        elif structure.json_schema is not None:
            text = LLMatcher.grammar_from_json_schema(
                json.dumps(structure.json_schema), overrides=_JSON_OPTIONS
            )
        else:
            regex = structure.regex or "|".join(map(re.escape, structure.choice or ()))
            text = LLMatcher.grammar_from_regex(regex)
        matcher = LLMatcher(tokens, text, log_level=0)
        if matcher.is_error():
            raise ValueError(f"no grammar can be made of the structure: {_first_words(matcher)}")
        return Grammar(matcher, self._vocabulary)

    def _reply_or_call(self, structure: Structure) -> str:
        """The structure in llguidance's own language."""
        call = structure.call
        assert call is not None and structure.json_schema is not None
        return "\n".join(
            [
                "start: reply | call",
                f"reply: {_json_of(structure.json_schema)}",
                f"call: {self._literal(call.prefix)} arguments {self._literal(call.suffix)}",
                f"arguments: {_json_of(call.json_schema)}",
            ]
        )

    def _literal(self, text: str) -> str:
        """A text in which the tokenizer's added tokens are those tokens, not what they spell."""
        added = self._tokenizer.get_added_vocab()
        if not added:
            return json.dumps(text)
        longest_first = sorted(added, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        return " ".join(
            f"<[{added[part]}]>" if part in added else json.dumps(part) for part in parts
        )

    def _known_tokens(self) -> Any:
        with self._lock:
            if self._tokens is None:
                try:
                    from llguidance.hf import from_tokenizer
                except ImportError as error:
                    raise ValueError(
                        f"structured replies of the embedded engine need llguidance ({error}): "
                        "pip install palestra[train]"
                    ) from None
                if not self._stop_ids:
                    raise ValueError(
                        "a structured reply ends with a stop token, but the engine has no stop_ids"
                    )
                tokenizer: Any = self._tokenizer
                self._tokens = from_tokenizer(
                    tokenizer, n_vocab=self._vocabulary, eos_token=self._stop_ids
                )
            return self._tokens


class Grammar:
    """Where one reply stands in its structure."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed_V(self) -> Tensor:
        """Which tokens may come next, true or false.

        Raises:
            ValueError: there are none, or it takes too long to find them.
        """
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        if self._matcher.is_error():
            raise ValueError(f"the reply's structure is too much: {_first_words(self._matcher)}")
        allowed = numpy.unpackbits(bits, count=self._vocabulary, bitorder="little")
        if not allowed.any():
            raise ValueError("the tokenizer has no token to go on with in the reply's structure")
        return torch.from_numpy(allowed.view(bool))

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)


def _json_of(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON_OPTIONS})}"


def _first_words(matcher: Any) -> str:
    """What is wrong, in one line and without the matcher's state."""
    return " ".join(matcher.get_error().partition("<state>")[0].split())[:300]
