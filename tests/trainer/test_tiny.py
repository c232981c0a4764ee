from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from palestra.rollout.chat_format import ChatFormat
from palestra.trainer.demonstrations import read_demonstrations
from palestra.trainer.load import load_policy, save_policy
from palestra.trainer.tiny import SPECIAL_TOKENS, TAG_TOKENS, build_policy

# transformers types its tokenizers' answers as unions of all that they may return.
Policy = tuple[Any, Any]


@pytest.fixture(scope="module")
def policy(demonstrations: Path) -> Policy:
    return build_policy(read_demonstrations(demonstrations), seed=3)


def test_it_is_a_qwen3_of_under_a_million_parameters(
    policy: Policy,
) -> None:
    model, tokenizer = policy
    assert model.config.model_type == "qwen3"
    assert model.config.head_dim == 32
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_every_digit_is_a_token_of_its_own(policy: Policy) -> None:
    _, tokenizer = policy
    ids = tokenizer("9042 + 77", add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode([i]) for i in ids]
    assert [piece for piece in pieces if piece.strip().isdigit()] == list("904277")


@pytest.mark.parametrize("text", ["", "naïve 🦊 \x00 \u202e", "日本語\n\ttabs", "a" * 500])
def test_any_text_survives_the_tokenizer(policy: Policy, text: str) -> None:
    _, tokenizer = policy
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_qwen3s_marks_are_single_tokens(policy: Policy) -> None:
    _, tokenizer = policy
    for mark in [*SPECIAL_TOKENS, *TAG_TOKENS]:
        assert len(tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1
    assert set(SPECIAL_TOKENS) <= set(tokenizer.all_special_tokens)
    assert not set(TAG_TOKENS) & set(tokenizer.all_special_tokens)


def test_a_saved_folder_loads_in_plain_transformers_and_scores_alike(
    policy: Policy, tmp_path: Path
) -> None:
    model, tokenizer = policy
    save_policy(model, tokenizer, ChatFormat.from_tokenizer(tokenizer), tmp_path)
    messages = [{"role": "user", "content": "1 + 2"}]
    reloaded: Any = AutoTokenizer.from_pretrained(tmp_path)
    ids = reloaded.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
        torch.testing.assert_close(plain, model(ids).logits)
    loaded, _, chat_format = load_policy(tmp_path)
    assert chat_format.render(messages) == ids[0].tolist()
    assert loaded.device.type in ("cpu", "cuda")


def test_the_same_seed_makes_the_same_weights(demonstrations: Path) -> None:
    first, second, other = (
        build_policy(read_demonstrations(demonstrations), seed=s)[0].state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_folder_that_is_no_policy_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no model folder .*nowhere"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no config"):
        load_policy(tmp_path)
