"""Log-probabilities of chosen tokens under the trainer's model, in chunks.

The full logits (tokens x vocabulary) never exist: each chunk is computed, reduced and thrown away,
and computed again in the backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from palestra.rollout.attention import hidden_states
from palestra.trainer.batch import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK_ELEMENTS = 16_000_000  # logits held at a time: 64 MB in float32


def token_logprobs(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Score the batch's trained tokens at the temperature each was sampled at.

    Returns:
        Log-probabilities (S,), with gradient, and the entropies (S,) of the distributions that
        the tokens were drawn from, in nats, without gradient. Both float32.
    """
    segments = batch.segments()
    hidden_TE = hidden_states(model, batch.token_ids_T, segments.positions_T, segments)
    # The state before a token predicts it; a row's first token is never trained (batch.targets_S).
    hidden_SE = hidden_TE[batch.targets_S - 1]
    head = model.get_output_embeddings()
    size = max(1, _CHUNK_ELEMENTS // model.config.vocab_size)
    parts = [
        checkpoint(_score, head, hidden, targets, temperatures, use_reentrant=False)
        for hidden, targets, temperatures in zip(
            hidden_SE.split(size),
            batch.target_ids_S.split(size),
            batch.temperatures_S.split(size),
            strict=True,
        )
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _score(
    head: torch.nn.Module, hidden_SE: Tensor, targets_S: Tensor, temperatures_S: Tensor
) -> tuple[Tensor, Tensor]:
    # Temperature 0 (greedy) is scored at temperature 1, as the engine reports it.
    scale_S1 = torch.where(temperatures_S == 0, 1.0, temperatures_S)[:, None]
    logits_SV = head(hidden_SE).float() / scale_S1
    logprobs_SV = torch.log_softmax(logits_SV, dim=-1)
    with torch.no_grad():
        entropy_S = -(logprobs_SV.exp() * logprobs_SV).sum(-1)
    return logprobs_SV.gather(-1, targets_S[:, None])[:, 0], entropy_S
