"""`make_probe`: a text and its log-probabilities, to check what a served engine serves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from palestra.rollout.engine import Probe
from palestra.rollout.weight_check import MIN_PROBE_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TOKENS = MIN_PROBE_TOKENS + 6


def draw_probe_ids(vocab_size: int, *, seed: int = 0) -> tuple[int, ...]:
    """Token ids for a probe, the same for the same seed: a text that no episode has."""
    draw = random.Random(seed)
    return tuple(draw.randrange(vocab_size) for _ in range(PROBE_TOKENS))


@torch.no_grad()
def make_probe(
    model: PreTrainedModel, token_ids: Sequence[int] | None = None, *, tolerance: float = 1e-3
) -> Probe:
    """What `model`, the trainer's, makes of a text, to be met by an engine that serves its weights.

    Keep to one text: that it was cached before an update is what betrays stale keys after it, and
    a cached one costs little.

    Args:
        token_ids: at least 130; None draws them.
        tolerance: for each log-probability, natural logarithm; 1e-3 fits float32 on both sides.
    """
    ids = tuple(token_ids or draw_probe_ids(model.config.get_text_config().vocab_size))
    ids_1T = torch.tensor([ids], device=model.device)
    logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
    logprobs_T = torch.log_softmax(logits_TV, dim=-1).gather(-1, ids_1T[0, 1:, None])[:, 0]
    return Probe(token_ids=ids, logprobs=tuple(logprobs_T.tolist()), tolerance=tolerance)
