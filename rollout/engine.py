"""What generates tokens for a policy: the contract of every engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from palestra.types import Completion, Sampling, VersionSpan

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

    `stream` samples the same completion and yields its tokens as they come, in one or more pieces;
    the last has the `stop_reason`. `top_logprobs` asks for so many of the likeliest tokens beside
    each. Closing the generator ends the generation.

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

    def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]: ...

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]: ...

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Some tokens of a completion that is still being sampled; see `Completion` for the fields.

    `top_logprobs` holds, for each token, the likeliest ones as (id, log-probability), best first;
    it is empty where none were asked for. Tokens that cannot be sampled are not among them. The
    last piece, which may have no tokens, has the `stop_reason` and the `version_spans` of the whole
    completion.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    stop_reason: str | None = None
    version_spans: tuple[VersionSpan, ...] = ()

    @staticmethod
    def whole(
        completion: Completion, top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    ) -> Piece:
        """All of a completion that has ended."""
        return Piece(
            ids=completion.ids,
            logprobs=completion.logprobs,
            top_logprobs=top_logprobs,
            stop_reason=completion.stop_reason,
            version_spans=completion.version_spans,
        )


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
