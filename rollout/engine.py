"""What generates tokens for a policy: the contract of every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from palestra.types import Completion, Sampling


class Engine(Protocol):
    """Tokens in, tokens out; many generations run at once.

    `generate` samples one completion of `prompt_ids`, at most `sampling.max_tokens` long and never
    beyond `context_length` tokens in all. Cancelling it ends the generation. Whatever it raises is
    the engine's fault, never the policy's.

    `update_weights` changes the weights; tokens sampled afterwards carry the new `version`. Its
    arguments differ by engine: the embedded one shares the trainer's model, a served one receives
    tensors or a checkpoint.
    """

    context_length: int
    version: int

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion: ...

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None: ...
