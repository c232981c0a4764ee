from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from palestra.rollout.attention import require_packable
from palestra.trainer.batch import Row, pack
from palestra.trainer.logprobs import token_logprobs
from palestra.trainer.tiny import build_model


def random_rows(lengths: list[int], temperature: float = 1.0) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        mask = (torch.rand(length, generator=generator) < 0.5).tolist()
        mask[0], mask[-1] = False, True
        count = sum(mask)
        rows.append(
            Row(
                token_ids=tuple(torch.randint(0, 64, (length,), generator=generator).tolist()),
                loss_mask=tuple(mask),
                sampled_logprobs=(0.0,) * count,
                advantages=(1.0,) * count,
                temperatures=(temperature,) * count,
            )
        )
    return rows


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
        )
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("make", [lambda: build_model(64, eos_id=0), llama])
def test_packed_logprobs_equal_those_of_each_row_alone(make, temperature: float) -> None:  # type: ignore[no-untyped-def]
    model = make().eval()
    rows = random_rows([5, 17, 2, 9], temperature)
    packed_S, entropies_S = token_logprobs(model, pack(rows))
    expected, expected_entropies = [], []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.token_ids])).logits[0] / temperature
        logprobs = logits.log_softmax(-1)
        for position, trains in enumerate(row.loss_mask):
            if trains:
                expected.append(logprobs[position - 1, row.token_ids[position]])
                distribution = torch.distributions.Categorical(logits=logits[position - 1])
                expected_entropies.append(distribution.entropy())
    torch.testing.assert_close(packed_S, torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies_S, torch.stack(expected_entropies), atol=1e-5, rtol=0)


def test_packed_gradients_equal_those_of_each_row_alone() -> None:
    model: Any = build_model(64, eos_id=0)
    rows = random_rows([5, 17, 2, 9])
    token_logprobs(model, pack(rows))[0].sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for row in rows:
        token_logprobs(model, pack([row]))[0].sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=2e-5, rtol=1e-4)


def test_a_plain_forward_pass_is_untouched_by_packing() -> None:
    model = build_model(64, eos_id=0).eval()
    ids = torch.arange(10)[None]
    before = model(ids).logits
    token_logprobs(model, pack(random_rows([4, 6])))
    torch.testing.assert_close(model(ids).logits, before, atol=0, rtol=0)


def test_architectures_with_sliding_windows_are_refused() -> None:
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        sliding_window=16,
    )
    with pytest.raises(ValueError, match="sliding"):
        require_packable(MistralForCausalLM(config))
