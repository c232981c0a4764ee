"""After every weight update: does the server serve what it was sent? A probe is scored to find out.

Two requests answer it. One computes the probe afresh and must give the trainer's log-probabilities:
wrong weights, and an output head that was not renewed, show here. The other reads the prefix cache,
which held the probe before the update, and must agree with the first: keys of older weights show
here. Both say which version sampled their token.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from palestra.rollout.engine import Probe, StaleWeights
from palestra.rollout.engine_errors import EngineError
from palestra.rollout.weight_probe import Way, score

if TYPE_CHECKING:
    from palestra.rollout.token_client import TokenClient

# A prompt is cached in whole blocks. vLLM's longest are those of its CPU backend: 128 tokens unless
# it is told otherwise.
MIN_PROBE_TOKENS = 130
_ENOUGH_TOKENS = 34  # to tell weights apart


def fit_probe(probe: Probe, block_size: int | None) -> Probe:
    """As much of the probe as can betray stale keys: scoring more would only take time.

    `block_size` is that of the server's prefix cache in tokens, None where it does not say. Raises
    ValueError for a probe that is incomplete or too short.
    """
    if len(probe.logprobs) != len(probe.token_ids) - 1:
        raise ValueError(
            f"a probe of {len(probe.token_ids)} tokens has a log-probability for each but the "
            f"first, got {len(probe.logprobs)}"
        )
    needed = MIN_PROBE_TOKENS if block_size is None else block_size + 2
    if len(probe.token_ids) < needed:
        raise ValueError(
            f"a probe needs at least {needed} tokens to reach past a block of the prefix cache, "
            f"got {len(probe.token_ids)}"
        )
    kept = max(needed, _ENOUGH_TOKENS)
    return Probe(
        token_ids=probe.token_ids[:kept],
        logprobs=probe.logprobs[: kept - 1],
        tolerance=probe.tolerance,
    )


class ProbeCheck:
    """A probe on its way through the server. It may be sent while the server is halted.

    Args:
        model: the name that requests give, a LoRA adapter's where one is served.
        way: how a probe is scored by this server.
        cache_cleared: False where keys of older weights were kept on purpose: they are not asked
            for.
    """

    def __init__(
        self,
        client: TokenClient,
        model: str,
        probe: Probe,
        *,
        way: Way = "generate",
        cache_cleared: bool = True,
        timeout_s: float = 120.0,
    ) -> None:
        self._client = client
        self._probe = probe
        self._timeout_s = timeout_s
        # The fresh one goes first: when both run in one step, or one after the other, the second
        # finds its keys in the cache and has little to do. Older keys it would find before those.
        self._tasks = [
            asyncio.create_task(
                score(client, model, probe.token_ids, way=way, fresh=fresh, timeout_s=timeout_s)
            )
            for fresh in ((True, False) if cache_cleared else (True,))
        ]

    def cancel(self) -> None:
        """Call the requests off, if they are not answered yet."""
        for task in self._tasks:
            task.cancel()

    async def finish(self, version: str) -> None:
        """Raise StaleWeights, naming what is stale, unless `version` is served, by its probe."""
        try:
            fresh, *cached = await asyncio.gather(*self._tasks)
        finally:
            self.cancel()
        where, tolerance = self._client.base_url, self._probe.tolerance
        await check_version(self._client, version, served=fresh.version, timeout_s=self._timeout_s)
        if any(math.isnan(logprob) for logprob in fresh.logprobs):
            raise StaleWeights(
                f"with version {version!r} {where} computes log-probabilities that are not "
                "numbers: the weights that it was sent are broken"
            )
        expected = self._probe.logprobs[-len(fresh.logprobs) :]
        error = worst_error(expected, fresh.logprobs)
        if not error <= tolerance:
            part = await _name_stale_part(self._client, self._timeout_s)
            raise StaleWeights(
                f"{where} does not serve version {version!r}: {part}; the probe's "
                f"log-probabilities are off by up to {error:.3g} (tolerance {tolerance:g})"
            )
        error = max((_disagreement(fresh.marks, scored.marks) for scored in cached), default=0.0)
        if not error <= tolerance:
            raise StaleWeights(
                f"{where} computes with keys of older weights: its prefix cache was not reset "
                f"after the update to version {version!r}; a cached probe is off by {error:.3g} "
                f"(tolerance {tolerance:g})"
            )


async def check_version(
    client: TokenClient, version: str, *, served: str | None = None, timeout_s: float
) -> None:
    """Raise StaleWeights unless the server names the version that it was sent.

    `served` is what it said with a generation; None asks it.
    """
    if served is None:
        served = str((await client.get("/weight_info", timeout_s=timeout_s))["weight_version"])
    if served != version:
        raise StaleWeights(
            f"{client.base_url} says that it serves version {served!r}, it was sent {version!r}"
        )


def worst_error(expected: Sequence[float], found: Sequence[float]) -> float:
    """The largest absolute difference; infinite where one is not a number or is missing."""
    if len(expected) != len(found):
        return math.inf
    errors = [abs(one - other) for one, other in zip(expected, found, strict=True)]
    return math.inf if any(error != error for error in errors) else max(errors, default=0.0)


def _disagreement(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """How far two scorings' marks differ.

    Where they are the most likely tokens, two may swap places near the end: one that is missing
    counts as the least of all.
    """
    if not one or not other:
        return math.inf
    least = min(min(one.values()), min(other.values()))
    ids = one.keys() | other.keys()
    return worst_error([one.get(i, least) for i in ids], [other.get(i, least) for i in ids])


async def _name_stale_part(client: TokenClient, timeout_s: float) -> str:
    """What is stale, as far as the worker can tell."""
    try:
        answer = await client.post(
            "/collective_rpc",
            {"method": "palestra_head_is_current"},
            timeout_s=timeout_s,
            idempotent=True,
        )
    except (EngineError, TimeoutError):
        return (
            "it computes with other weights (or, on a CPU, with a tied output head that a reload "
            "left stale: start the server with palestra's worker extension)"
        )
    if not all(result["current"] for result in answer["results"]):
        return "its output head, tied to the embedding, is stale"
    return "it computes with other weights"
