"""Drawing tokens from logits, with the log-probabilities of what was really drawn from.

Shapes: N sequences, V vocabulary, B blocks of the vocabulary, W tokens of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor
from torch.nn.functional import pad

from palestra.types import Sampling

# A vocabulary larger than this is searched in two steps: its blocks, then one block's tokens.
_SEARCHED_AT_ONCE = 2048
_BLOCK = 256


def draw_uniforms(seed: int | None, count: int) -> list[float]:
    """One uniform draw per token: what a seed samples does not depend on who shares the batch."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    draws: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return draws


class Sampler:
    """Draws for the same N sequences step after step, each as its `Sampling` says."""

    def __init__(self, samplings: Sequence[Sampling], device: torch.device) -> None:
        self._device = device
        temperatures = [s.temperature for s in samplings]
        self._scale_N1 = self._greedy_N1 = None
        if any(t != 1.0 for t in temperatures):
            self._scale_N1 = torch.tensor([t or 1.0 for t in temperatures], device=device)[:, None]
        if 0.0 in temperatures:
            self._greedy_N1 = torch.tensor([t == 0.0 for t in temperatures], device=device)[:, None]
        self._truncated = any(s.top_k or s.top_p < 1.0 for s in samplings)
        self._top_k = [s.top_k for s in samplings]
        self._top_p = [s.top_p for s in samplings]

    def draw(self, logits_NV: Tensor, uniforms: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        """One token per row, by inverting the cumulative distribution at its uniform number.

        Returns the tokens, their natural log-probabilities under the distribution that was sampled,
        and that distribution (N, V): after temperature, top-k and top-p. At temperature 0 the most
        likely token is taken and its log-probability is that at temperature 1.
        """
        logits_NV = logits_NV.float()
        if self._scale_N1 is not None:
            logits_NV = logits_NV / self._scale_N1
        probs_NV = logits_NV.softmax(-1)
        if self._truncated:
            probs_NV = self._truncate(probs_NV)
        uniforms_N1 = torch.tensor(uniforms, dtype=torch.float64, device=self._device)[:, None]
        tokens_N1 = _invert(probs_NV, uniforms_N1)
        if self._greedy_N1 is not None:
            likeliest_N1 = probs_NV.argmax(-1, keepdim=True)
            tokens_N1 = torch.where(self._greedy_N1, likeliest_N1, tokens_N1)
        return tokens_N1[:, 0], probs_NV.gather(-1, tokens_N1)[:, 0].log(), probs_NV

    def _truncate(self, probs_NV: Tensor) -> Tensor:
        """Keep the top-k tokens, then the smallest set of mass top-p, and renormalise."""
        sorted_NV, order_NV = probs_NV.sort(dim=-1, descending=True)
        vocabulary = probs_NV.shape[-1]
        rank_V = torch.arange(vocabulary, device=self._device)
        top_k_N1 = torch.tensor([k or vocabulary for k in self._top_k]).to(rank_V)[:, None]
        sorted_NV = sorted_NV.masked_fill(rank_V >= top_k_N1, 0.0)
        sorted_NV = sorted_NV / sorted_NV.sum(-1, keepdim=True)
        before_NV = sorted_NV.cumsum(-1) - sorted_NV
        top_p_N1 = torch.tensor(self._top_p).to(probs_NV)[:, None]
        sorted_NV = sorted_NV.masked_fill((before_NV >= top_p_N1) & (rank_V > 0), 0.0)
        sorted_NV = sorted_NV / sorted_NV.sum(-1, keepdim=True)
        return torch.zeros_like(probs_NV).scatter(-1, order_NV, sorted_NV)


def likeliest(probs_NV: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest tokens of each row, so many, with their log-probabilities, best first.

    Tokens that cannot be sampled are left out.
    """
    top = probs_NV.topk(min(max(counts), probs_NV.shape[-1]))
    rows = zip(top.indices.tolist(), top.values.log().tolist(), counts, strict=True)
    return [
        tuple(pair for pair in zip(tokens[:count], logprobs[:count], strict=True) if pair[1] > -inf)
        for tokens, logprobs, count in rows
    ]


def _invert(probs_NV: Tensor, uniforms_N1: Tensor) -> Tensor:
    """The first token at which the cumulative distribution exceeds the uniform number."""
    vocabulary = probs_NV.shape[-1]
    if vocabulary <= _SEARCHED_AT_ONCE:
        return _search(probs_NV, uniforms_N1)[0]
    probs_NV = pad(probs_NV, (0, -vocabulary % _BLOCK)) if vocabulary % _BLOCK else probs_NV
    probs_NBW = probs_NV.unflatten(-1, (-1, _BLOCK))
    blocks_N1, rest_N1 = _search(probs_NBW.sum(-1), uniforms_N1)
    block_NW = probs_NBW.gather(1, blocks_N1[:, :, None].expand(-1, -1, _BLOCK))[:, 0]
    tokens_N1, _ = _search(block_NW, rest_N1)
    return (blocks_N1 * _BLOCK + tokens_N1).clamp_(max=vocabulary - 1)


def _search(weights_NV: Tensor, uniforms_N1: Tensor) -> tuple[Tensor, Tensor]:
    """The index at which each row is cut by its uniform number, and how far into it, in [0, 1)."""
    # Float64, so that the sum over a large vocabulary keeps the tail apart.
    cumulative_NV = weights_NV.double().cumsum(-1)
    # Scaling by the total closes the rounding gap at the end; right=True never lands on a
    # token of probability zero.
    threshold_N1 = uniforms_N1 * cumulative_NV[:, -1:]
    found_N1 = torch.searchsorted(cumulative_NV, threshold_N1, right=True)
    found_N1 = found_N1.clamp_(max=weights_NV.shape[-1] - 1)
    weight_N1 = weights_NV.gather(-1, found_N1).double()
    before_N1 = cumulative_NV.gather(-1, found_N1) - weight_N1
    return found_N1, ((threshold_N1 - before_N1) / weight_N1).clamp_(0.0, 1.0 - 2.0**-50)
