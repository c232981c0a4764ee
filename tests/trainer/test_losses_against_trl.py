"""The policy loss beside TRL's own code, on the same numbers."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from trl import GRPOTrainer

from palestra.trainer.batch import Row, pack
from palestra.trainer.losses import clipped_policy_loss, kl_to_reference


class Oracle(GRPOTrainer):  # type: ignore[misc]
    """TRL's loss over given log-probabilities, without its data, model and generation set-up."""

    def __init__(self, logprobs: Tensor, *, beta: float) -> None:
        self._logprobs = logprobs
        self.model = torch.nn.Identity().eval()
        self.accelerator = Accelerator(cpu=True)
        self._metrics: Any = {"eval": defaultdict(list)}
        self.args = SimpleNamespace(delta=None, use_bias_correction_kl=False)
        self.loss_type = "bnpo"  # the mean over all unmasked tokens of the batch
        self.importance_sampling_level = "token"
        self.epsilon_low, self.epsilon_high, self.beta = 0.2, 0.28, beta
        self.top_entropy_quantile = 1.0
        self.off_policy_mask_threshold = None
        self.aux_loss_enabled = self.use_vllm = self._entropy_bonus_enabled = False
        self.use_adaptive_entropy = False

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        return self._logprobs, torch.zeros_like(self._logprobs), None


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_and_gradient_equal_trls(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    old, new, ref = -torch.rand(3, 4, 11, generator=generator) * 2
    sampled = torch.rand(4, 11, generator=generator) < 0.6  # the rest is tool output
    advantages = torch.randn(4, generator=generator)

    theirs = new.clone().requires_grad_()
    expected = Oracle(theirs, beta=beta)._compute_loss(
        None,
        {
            "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
            "prompt_mask": torch.ones(4, 1),
            "completion_ids": torch.zeros(4, 11, dtype=torch.long),
            "completion_mask": torch.ones(4, 11),
            "tool_mask": sampled.float(),
            "advantages": advantages,
            "old_per_token_logps": old,
            "ref_per_token_logps": ref,
        },
    )
    expected.backward()

    rows = [
        Row(
            token_ids=(0,) * 12,
            loss_mask=(False, *sampled[i].tolist()),
            sampled_logprobs=tuple(old[i][sampled[i]].tolist()),
            advantages=(advantages[i].item(),) * int(sampled[i].sum()),
            temperatures=(1.0,) * int(sampled[i].sum()),
        )
        for i in range(4)
    ]
    batch = pack(rows)
    ours = new.clone().requires_grad_()
    logprobs_S = ours[sampled]
    output = clipped_policy_loss(logprobs_S, batch, clip_low=0.2, clip_high=0.28)
    loss = output.loss_sum + beta * kl_to_reference(logprobs_S, ref[sampled]).loss_sum
    (loss / output.count).backward()

    assert math.isclose(loss.item() / output.count, expected.item(), rel_tol=1e-5)
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert not ours.grad[~sampled].any()
