"""How good each attempt was, compared with the others: pure functions, one per method.

Shapes: G attempts at one task.
"""

from __future__ import annotations

from torch import Tensor


def group_relative(rewards_G: Tensor, *, normalize: bool = True) -> Tensor:
    """GRPO: reward minus the group's mean, divided by its standard deviation.

    Source: DeepSeekMath (arXiv 2402.03300); without the division Dr. GRPO (arXiv 2503.20783), which
    does not favour tasks that are nearly always or nearly never solved. A group of equal rewards
    has advantages of exactly zero: rounding is never blown up by a tiny deviation.

    Raises:
        ValueError: fewer than two attempts cannot be compared.
    """
    if len(rewards_G) < 2:
        raise ValueError(f"a group needs at least 2 attempts to compare, got {len(rewards_G)}")
    if bool((rewards_G == rewards_G[0]).all()):
        return rewards_G.new_zeros(len(rewards_G))
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / rewards_G.std() if normalize else centred_G
