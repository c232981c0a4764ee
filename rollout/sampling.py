"""Drawing tokens from logits, with the log-probabilities of what was really drawn from.

Shapes: N sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palestra.types import Sampling


def sample(
    logits_NV: Tensor, samplings: list[Sampling], uniforms: list[float]
) -> tuple[list[int], list[float]]:
    """Draw one token per row by inverting the cumulative distribution at its uniform number.

    Returns the tokens and their natural log-probabilities under the distribution that was sampled:
    after temperature, top-k and top-p. At temperature 0 the most likely token is taken and its
    log-probability is that at temperature 1.
    """
    temperatures = [s.temperature for s in samplings]
    scale_N1 = torch.tensor([t or 1.0 for t in temperatures], device=logits_NV.device)[:, None]
    logprobs_NV = torch.log_softmax(logits_NV.float() / scale_N1, dim=-1)
    if any(s.top_k or s.top_p < 1.0 for s in samplings):
        logprobs_NV = _truncate(logprobs_NV, samplings)
    # Float64, so that the sum over a large vocabulary keeps the tail apart.
    cumulative_NV = logprobs_NV.double().exp().cumsum(-1)
    uniforms_N1 = torch.tensor(uniforms, dtype=torch.float64, device=logits_NV.device)[:, None]
    # Scaling by the total closes the rounding gap at the end; right=True never lands on a
    # token of probability zero.
    threshold_N1 = uniforms_N1 * cumulative_NV[:, -1:]
    tokens_N1 = torch.searchsorted(cumulative_NV, threshold_N1, right=True)
    tokens_N1 = tokens_N1.clamp_(max=logits_NV.shape[-1] - 1)
    if 0.0 in temperatures:
        greedy_N1 = torch.tensor(temperatures, device=logits_NV.device)[:, None] == 0.0
        tokens_N1 = torch.where(greedy_N1, logprobs_NV.argmax(-1, keepdim=True), tokens_N1)
    chosen_N1 = logprobs_NV.gather(-1, tokens_N1)
    return tokens_N1[:, 0].tolist(), chosen_N1[:, 0].tolist()


def _truncate(logprobs_NV: Tensor, samplings: list[Sampling]) -> Tensor:
    """Keep the top-k tokens, then the smallest set of mass top-p, and renormalise."""
    sorted_NV, order_NV = logprobs_NV.sort(dim=-1, descending=True)
    vocabulary = logprobs_NV.shape[-1]
    rank_V = torch.arange(vocabulary, device=logprobs_NV.device)
    top_k_N1 = torch.tensor([s.top_k or vocabulary for s in samplings]).to(rank_V)[:, None]
    sorted_NV = sorted_NV.masked_fill(rank_V >= top_k_N1, -torch.inf).log_softmax(-1)
    before_NV = sorted_NV.exp().cumsum(-1) - sorted_NV.exp()
    top_p_N1 = torch.tensor([s.top_p for s in samplings]).to(logprobs_NV)[:, None]
    outside_NV = (before_NV >= top_p_N1) & (rank_V > 0)
    sorted_NV = sorted_NV.masked_fill(outside_NV, -torch.inf).log_softmax(-1)
    return torch.full_like(logprobs_NV, -torch.inf).scatter(-1, order_NV, sorted_NV)
