"""What is minimised: pure functions, one per published method.

Shapes: S trained tokens of a packed batch. Every function returns a sum and a count, so that the
caller divides by the count over the whole optimizer batch, however it was cut into micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from palestra.trainer.batch import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOutput:
    """A loss as sum and count. `metrics` are sums over the same count, too."""

    loss_sum: Tensor
    count: int
    metrics: dict[str, float] = field(default_factory=dict)


def negative_log_likelihood(logprobs_S: Tensor) -> LossOutput:
    """Cross-entropy on the demonstrated tokens (RLHF Book, chapter 4)."""
    return LossOutput(loss_sum=-logprobs_S.sum(), count=len(logprobs_S))


def clipped_policy_loss(
    logprobs_S: Tensor, batch: Batch, *, clip_low: float, clip_high: float
) -> LossOutput:
    """PPO's clipped surrogate with asymmetric bounds, to be averaged over all trained tokens.

    -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), ratio = exp(logprob - old).
    Source: PPO (arXiv 1707.06347); asymmetric bounds and token mean from DAPO (arXiv 2503.14476).
    """
    # A log-ratio beyond 10 is clipped anyway; without the bound its exponential may overflow.
    ratio_S = (logprobs_S - batch.old_logprobs_S).clamp(-10.0, 10.0).exp()
    clipped_S = ratio_S.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate_S = torch.minimum(ratio_S * batch.advantages_S, clipped_S * batch.advantages_S)
    with torch.no_grad():
        bound_S = clipped_S * batch.advantages_S < ratio_S * batch.advantages_S
    return LossOutput(
        loss_sum=-surrogate_S.sum(),
        count=len(logprobs_S),
        metrics={"clip_fraction": bound_S.sum().item()},
    )


def kl_to_reference(logprobs_S: Tensor, ref_logprobs_S: Tensor) -> LossOutput:
    """KL(policy || reference) per token by the k3 estimator, non-negative and low in variance.

    u - 1 - log u with u = reference / policy, on tokens that the policy sampled
    (Schulman 2020, joschu.net/blog/kl-approx.html; RLHF Book, chapter 15).
    """
    log_u_S = ref_logprobs_S - logprobs_S
    return LossOutput(loss_sum=(log_u_S.exp() - 1.0 - log_u_S).sum(), count=len(logprobs_S))
