import math

import pytest
import torch
from torch import Tensor

from palestra.trainer.batch import Batch
from palestra.trainer.losses import (
    clipped_policy_loss,
    kl_to_reference,
    negative_log_likelihood,
)


def batch_of(old: list[float], advantages: list[float]) -> Batch:
    count = len(old)
    return Batch(
        token_ids_T=torch.zeros(count + 1, dtype=torch.long),
        lengths=(count + 1,),
        targets_S=torch.arange(1, count + 1),
        sampled_logprobs_S=torch.tensor(old),
        old_logprobs_S=torch.tensor(old),
        advantages_S=torch.tensor(advantages),
        temperatures_S=torch.ones(count),
    )


def loss_and_gradient(
    ratio: float, advantage: float, low: float = 0.2, high: float = 0.28
) -> tuple[float, float]:
    logprob = torch.tensor([-1.0 + math.log(ratio)], requires_grad=True)
    batch = batch_of([-1.0], [advantage])
    output = clipped_policy_loss(logprob, batch, clip_low=low, clip_high=high)
    output.loss_sum.backward()
    assert logprob.grad is not None
    return output.loss_sum.item(), logprob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy: the gradient is -A
        (1.1, 2.0, -2.2, -2.2),  # inside the bounds: -ratio * A
        (1.5, 2.0, -2.56, 0.0),  # a good token is not pushed beyond 1.28
        (0.5, 2.0, -1.0, -1.0),  # but always pulled back up
        (0.5, -2.0, 1.6, 0.0),  # a bad token is not pushed below 0.8
        (1.5, -2.0, 3.0, 3.0),  # but always pushed back down
    ],
)
def test_clipped_loss_and_gradient_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    assert loss_and_gradient(ratio, advantage) == pytest.approx((loss, gradient), rel=1e-5)


def test_clip_fraction_counts_tokens_whose_gradient_is_cut() -> None:
    logprobs = torch.tensor([math.log(1.5), math.log(1.5), 0.0])
    batch = batch_of([0.0, 0.0, 0.0], [1.0, -1.0, 1.0])
    output = clipped_policy_loss(logprobs, batch, clip_low=0.2, clip_high=0.2)
    assert output.metrics == {"clip_fraction": 1.0}
    assert output.count == 3


def test_loss_and_gradient_stay_finite_when_the_policies_have_parted() -> None:
    logprob = torch.tensor([0.0], requires_grad=True)
    output = clipped_policy_loss(logprob, batch_of([-400.0], [-1.0]), clip_low=0.2, clip_high=0.2)
    output.loss_sum.backward()
    assert math.isfinite(output.loss_sum.item())
    assert logprob.grad is not None and math.isfinite(logprob.grad.item())


def test_micro_batches_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = -torch.rand(2, 12, generator=generator)
    advantages = torch.randn(12, generator=generator)

    def total(part: slice) -> Tensor:
        batch = batch_of(old[part].tolist(), advantages[part].tolist())
        return clipped_policy_loss(new[part], batch, clip_low=0.2, clip_high=0.28).loss_sum

    torch.testing.assert_close(total(slice(0, 5)) + total(slice(5, 12)), total(slice(0, 12)))


def test_negative_log_likelihood_sums_over_the_trained_tokens() -> None:
    output = negative_log_likelihood(torch.tensor([-1.0, -0.5]))
    assert (output.loss_sum.item(), output.count) == (1.5, 2)


def test_kl_estimate_is_unbiased_and_has_the_right_sign() -> None:
    """Exactly the KL when averaged over the policy's own distribution (a published trap)."""
    policy = torch.tensor([0.5, 0.25, 0.15, 0.1])
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = (policy * (policy / reference).log()).sum()
    per_token = torch.stack(
        [
            kl_to_reference(p.log()[None], r.log()[None]).loss_sum
            for p, r in zip(policy, reference, strict=True)
        ]
    )
    torch.testing.assert_close((policy * per_token).sum(), expected)
    assert (per_token >= 0).all()


def test_kl_of_equal_policies_is_zero_with_zero_gradient() -> None:
    logprobs = torch.tensor([-0.3, -2.0], requires_grad=True)
    output = kl_to_reference(logprobs, logprobs.detach())
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0.0
    assert logprobs.grad is not None and logprobs.grad.tolist() == [0.0, 0.0]
