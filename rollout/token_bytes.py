"""The bytes that a token stands for, so that sampled text can be decoded as it comes.

A tokenizer decodes whole texts: what it makes of a token may depend on those before it, and half a
character becomes U+FFFD. Token by token, the bytes of byte-level BPE and those of SentencePiece's
byte tokens (`<0xE2>`) add up to the text's own UTF-8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TokenBytes:
    """`self[token_id]`: its bytes; none for an id that the tokenizer does not know."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoder = repr(tokenizer.decoder)
        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel(" in decoder
        self._has_byte_tokens = "ByteFallback(" in decoder
        self._known: dict[int, bytes] = {}
        self._context = [] if self._is_byte_level else _word(tokenizer)
        self._context_text = self._decode([])

    def __getitem__(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._find(token_id)
        return known

    def _find(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            try:
                return bytes(_BYTES[character] for character in token)
            except KeyError:  # an added token that is plain text
                return token.encode()
        if self._has_byte_tokens and len(token) == 6 and token[:3] == "<0x" and token[5] == ">":
            return bytes.fromhex(token[3:5])
        # Behind a word: what stands first in a text may lose its space.
        text = self._decode([token_id])
        if text.startswith(self._context_text):
            return text[len(self._context_text) :].encode()
        return self._decode([token_id]).encode()

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode([*self._context, *ids], skip_special_tokens=False)
        return text


def _word(tokenizer: Tokenizer) -> list[int]:
    """A token of letters alone, whose text no neighbour changes; none if there is none."""
    for token_id in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        if text.isascii() and text.isalpha():
            return [token_id]
    return []


def _byte_characters() -> dict[str, int]:
    """The character by which byte-level BPE writes each byte (GPT-2)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    characters = {chr(byte): byte for byte in printed}
    return characters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_characters()
