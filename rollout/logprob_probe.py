"""Finds out which distribution a server's log-probabilities are of, from what it answers."""

from __future__ import annotations

from collections.abc import Mapping

from palestra.rollout.engine_errors import BadLogprobs, RawLogprobs

PROBE_TEMPERATURE = 2.0
# Between bfloat16's noise and the step from one temperature to the other.
_TOLERANCE = 0.1


def require_processed(
    plain: Mapping[int, float], heated: Mapping[int, float], *, temperature: float, remedy: str
) -> None:
    """Require that log-probabilities are those of the tempered distribution.

    Dividing logits by a temperature divides the differences between log-probabilities by it,
    whatever the normalisation: the slope between the two answers tells which one they are.

    Args:
        plain: the likeliest tokens after a prompt and their log-probabilities at temperature 1.
        heated: the same at `temperature`.
        remedy: what to do if they are not.

    Raises:
        RawLogprobs: they do not depend on the temperature as they should.
        BadLogprobs: too few tokens in both answers, or all equally likely, to tell.
    """
    shared = sorted(plain.keys() & heated.keys())
    if len(shared) < 2:
        raise BadLogprobs("the server answers too few log-probabilities to tell what they are of")
    mean_plain = sum(plain[token] for token in shared) / len(shared)
    mean_heated = sum(heated[token] for token in shared) / len(shared)
    spread = sum((plain[token] - mean_plain) ** 2 for token in shared)
    if spread < 1e-6:
        raise BadLogprobs("the server's likeliest tokens are equally likely: its model is broken")
    product = sum((plain[token] - mean_plain) * (heated[token] - mean_heated) for token in shared)
    slope = product / spread
    if abs(slope - 1 / temperature) > _TOLERANCE:
        raw = "are those before temperature" if abs(slope - 1) <= _TOLERANCE else "are no such"
        raise RawLogprobs(
            f"training needs log-probabilities of the distribution that is sampled, but this "
            f"server's {raw} (at temperature {temperature:g} differences shrink to {slope:.2f}, "
            f"not {1 / temperature:.2f}): {remedy}"
        )
