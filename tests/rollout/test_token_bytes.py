"""The bytes of tokens add up to the text that a tokenizer decodes, half characters included."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from palestra.rollout.token_bytes import TokenBytes

CORPUS = ["The answer is 42.\n", "naïve café, 日本語 🎉\n"] * 4


def byte_level() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(CORPUS, BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    bpe.add_special_tokens(["<|im_end|>"])
    bpe.add_tokens([AddedToken("a tag", special=False), AddedToken("é", special=False)])
    return bpe


def sentencepiece() -> Tokenizer:
    bpe = Tokenizer(models.BPE(byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bpe.train_from_iterator(CORPUS, BpeTrainer(vocab_size=100, show_progress=False))
    spec = json.loads(bpe.to_str())
    for byte in range(256):
        spec["model"]["vocab"].setdefault(f"<0x{byte:02X}>", len(spec["model"]["vocab"]))
    return Tokenizer.from_str(json.dumps(spec))


BYTE_LEVEL, SENTENCEPIECE = byte_level(), sentencepiece()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() + 2), max_size=20))
def test_any_byte_level_tokens_make_the_text_that_the_tokenizer_decodes(ids: list[int]) -> None:
    known = TokenBytes(BYTE_LEVEL)
    text = b"".join(known[token_id] for token_id in ids).decode(errors="replace")
    assert text == BYTE_LEVEL.decode(ids, skip_special_tokens=False)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=20))
def test_sentencepiece_tokens_and_their_byte_tokens_make_the_text(text: str) -> None:
    known = TokenBytes(SENTENCEPIECE)
    ids = SENTENCEPIECE.encode("a" + text.replace("\u2581", "")).ids
    made = b"".join(known[token_id] for token_id in ids).decode()
    assert made.lstrip(" ") == SENTENCEPIECE.decode(ids, skip_special_tokens=False).lstrip(" ")


def test_a_byte_token_is_its_byte_and_a_word_keeps_its_space() -> None:
    known = TokenBytes(SENTENCEPIECE)
    vocabulary = SENTENCEPIECE.get_vocab()
    assert known[vocabulary["<0xE6>"]] == b"\xe6"
    space = next(token for token in vocabulary if token.startswith("\u2581") and len(token) > 1)
    assert known[vocabulary[space]] == space.replace("\u2581", " ").encode()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE])
def test_an_unknown_token_has_no_bytes(tokenizer: Tokenizer) -> None:
    assert TokenBytes(tokenizer)[10**6] == b""
