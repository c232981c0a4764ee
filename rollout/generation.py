"""A generation of the embedded engine, from its prompt to its completion, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from palestra.rollout.engine import KvAfterUpdate, Piece
from palestra.types import Completion, Sampling, VersionSpan

if TYPE_CHECKING:
    from palestra.rollout.grammar import Grammar


@dataclass(slots=True, eq=False)
class Generation:
    """A generation in progress."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    done: asyncio.Future[Completion]
    uniforms: list[float]  # one draw in [0, 1) per token to come
    top_logprobs: int = 0  # how many of the likeliest tokens are wanted beside each
    grammar: Grammar | None = None
    slot: int = -1
    cached: int = 0  # how many leading tokens have their keys in the slot
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    # Version, what became of older keys, and its first token.
    switches: list[tuple[int, KvAfterUpdate | None, int]] = field(default_factory=list)

    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *self.ids)

    def uncached(self) -> Sequence[int]:
        """The tokens to compute, at least one."""
        start = self.cached - len(self.prompt_ids)
        return self.ids[start:] if start >= 0 else self.tokens()[self.cached :]

    def record(self, token: int, logprob: float, version: int, kv: KvAfterUpdate | None) -> None:
        if not self.switches or self.switches[-1][0] != version:
            self.switches.append((version, kv, len(self.ids)))
        self.cached = len(self.prompt_ids) + len(self.ids)
        self.ids.append(token)
        self.logprobs.append(logprob)

    def completion(self, stop_reason: str) -> Completion:
        ends = [*(start for *_, start in self.switches[1:]), len(self.ids)]
        return Completion(
            ids=tuple(self.ids),
            logprobs=tuple(self.logprobs),
            stop_reason=stop_reason,
            version_spans=tuple(
                VersionSpan(version=version, start=start, end=end, kv_after_update=kv)
                for (version, kv, start), end in zip(self.switches, ends, strict=True)
            ),
        )


class Listener:
    """Hears of a generation's tokens, in the event loop; the engine's thread goes on meanwhile."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._known = 0  # tokens that have all that belongs to them
        self._told = 0
        self._news = asyncio.Event()
        generation.done.add_done_callback(lambda _: self._news.set())

    def hear(self) -> None:
        """Take note of new tokens, between two steps."""
        count = len(self._generation.ids)
        if count > self._known:
            self._known = count
            self._news.set()

    async def next_piece(self) -> Piece:
        """What has come since the last one, as soon as there is any. Raises what ends it."""
        done = self._generation.done
        await self._news.wait()
        self._news.clear()
        completion = None
        if done.done():
            completion = done.result()
            self._known = len(completion.ids)
        new = slice(self._told, self._known)
        self._told = self._known
        generation = self._generation
        return Piece(
            ids=tuple(generation.ids[new]),
            logprobs=tuple(generation.logprobs[new]),
            top_logprobs=tuple(generation.tops[new]),
            stop_reason=None if completion is None else completion.stop_reason,
            version_spans=() if completion is None else completion.version_spans,
        )
