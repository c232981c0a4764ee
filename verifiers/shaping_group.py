"""Shaping parts that read sampled tokens and scores: lengths and the cost of tool calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from palestra.types import Episode
from palestra.verifiers.tool_calls import count_calls
from palestra.verifiers.verifier import verifier

GroupVerifier = Callable[..., list[float]]


def sampled_tokens(episode: Episode) -> int:
    """How many tokens the policy sampled in all turns; observations and tool output do not count.

    0 for a policy without token ids.
    """
    return sum(len(turn.completion_ids) for turn in episode.turns)


def overlong_penalty(max_tokens: int, buffer_tokens: int) -> GroupVerifier:
    """A shaping verifier from 0 down to -1 for episodes near or beyond `max_tokens`.

    The soft overlong punishment of DAPO (arXiv 2503.14476, section 3.4): 0 up to L - c sampled
    tokens, then (L - c - length) / c, and -1 beyond L, for L = `max_tokens` and c =
    `buffer_tokens`. DAPO's L is the longest reply allowed, so that a reply cut off gets -1.

    Risk: it says nothing below L - c, and a policy with long replies learns to cut them short, not
    to reason in fewer steps. It has no effect on policies without token ids.

    Raises:
        ValueError: a buffer that is not between 1 and `max_tokens`.
    """
    if not 1 <= buffer_tokens <= max_tokens:
        raise ValueError(
            f"buffer_tokens must be from 1 to max_tokens ({max_tokens}), got {buffer_tokens}"
        )
    free = max_tokens - buffer_tokens

    @verifier(name="overlong_penalty", range=(-1, 0), shaping=True)
    def penalty(episodes: Sequence[Episode]) -> list[float]:
        """0 for episodes that are short enough."""
        return [
            0.0 - min(1.0, max(0.0, (sampled_tokens(episode) - free) / buffer_tokens))
            for episode in episodes
        ]

    return penalty


def length_reward(*, correct_at: float = 1.0) -> GroupVerifier:
    """A shaping verifier from -0.5 to 0.5 that prefers the shorter episodes of a task.

    The length reward of Kimi k1.5 (arXiv 2501.12599, section 2.3.3): with λ = 0.5 - (length -
    shortest) / (longest - shortest), λ for right answers and min(0, λ) for wrong ones, 0 for all
    where they are equally long. Lengths are of sampled tokens, right is a score of `correct_at`.

    Risk: from the start of training it stunts reasoning; Kimi adds it after a while. A wrong long
    answer that a group must have (the longest) always pays, so exploring costs. In a group of
    right answers it is the whole signal: keep its weight small against the answer's.

    Raises:
        ValueError: `correct_at` not above 0 and up to 1.
    """
    _check_threshold(correct_at)

    @verifier(name="length_reward", range=(-0.5, 0.5), shaping=True)
    def reward(episodes: Sequence[Episode]) -> list[float]:
        """0 for a group of equal lengths."""
        lengths = [sampled_tokens(episode) for episode in episodes]
        shortest, longest = min(lengths), max(lengths)
        if shortest == longest:
            return [0.0] * len(episodes)
        rewards = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
        return [
            value if _is_right(episode, correct_at) else min(0.0, value)
            for episode, value in zip(episodes, rewards, strict=True)
        ]

    return reward


def tool_call_cost(smoothing: float, *, correct_at: float = 1.0) -> GroupVerifier:
    """A shaping verifier from 0 to 1 that pays right answers for needing few tool calls.

    cos(m π / (2 m + c)) for a right answer after m calls, 0 for a wrong one: the tool reward of
    OTC-PPO (arXiv 2504.14870) times correctness. `smoothing` is c: the larger it is, the less a
    call costs.

    Risk: where the policy can guess, or knows by heart, it stops using tools altogether.

    Raises:
        ValueError: `smoothing` that is not positive, or `correct_at` not above 0 and up to 1.
    """
    if not 0 < smoothing < math.inf:
        raise ValueError(f"smoothing must be positive, got {smoothing}")
    _check_threshold(correct_at)

    @verifier(name="tool_call_cost", range=(0, 1), shaping=True)
    def reward(episodes: Sequence[Episode]) -> list[float]:
        """1 for a right answer without a call."""
        rewards = []
        for episode in episodes:
            calls = count_calls([turn.message for turn in episode.turns])
            cosine = math.cos(calls * math.pi / (2 * calls + smoothing))
            rewards.append(max(0.0, cosine) if _is_right(episode, correct_at) else 0.0)
        return rewards

    return reward


def _is_right(episode: Episode, correct_at: float) -> bool:
    return episode.score is not None and episode.score.value >= correct_at


def _check_threshold(correct_at: float) -> None:
    if not 0 < correct_at <= 1:
        raise ValueError(f"correct_at must be above 0 and at most 1, got {correct_at}")
