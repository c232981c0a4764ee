"""What generates tokens for a policy: the contract of every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from palestra.types import Completion, Sampling

# What happens to generations in progress while weights change: they end first, are halted and go on
# with the new weights, or end with what they have.
UpdateMode = Literal["wait", "keep", "abort"]
# What happens to keys that older weights computed.
KvAfterUpdate = Literal["recompute", "keep"]


class Engine(Protocol):
    """Tokens in, tokens out; many generations run at once.

    `generate` samples one completion of `prompt_ids`, at most `sampling.max_tokens` long and never
    beyond `context_length` tokens in all. Cancelling it ends the generation. Whatever it raises is
    the engine's fault, never the policy's.

    `score` returns the natural log-probability of each token but the first, given those before it,
    at temperature 1.

    `update_weights` changes the weights; tokens sampled afterwards carry the new `version`. Its
    arguments differ by engine: the embedded one shares the trainer's model, a served one receives
    tensors or a checkpoint.

    `aclose` ends it, and the server that it started; unfinished generations are cancelled.
    """

    context_length: int
    version: int

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion: ...

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]: ...

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A text whose log-probabilities under the trainer's weights are known.

    After every update a served engine scores `token_ids`; unless each of `logprobs` (one per token
    but the first) is met within `tolerance`, what it serves is not what was sent. Longer than a
    block of the engine's prefix cache, it also betrays keys of older weights.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tolerance: float = 1e-3


class StaleWeights(RuntimeError):
    """An engine serves other weights than those it was last sent."""
