"""`Usage`: what requests came to: how many, tokens and cost; `Meter` adds them up."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a million tokens cost, in one currency for all prices.

    `cached_prompt` is for prompt tokens that the provider had in its own cache; as the others if
    None.

    Raises:
        ValueError: a price that is negative or not finite.
    """

    prompt: float
    completion: float
    cached_prompt: float | None = None

    def __post_init__(self) -> None:
        for price in (self.prompt, self.completion, self.cached_prompt or 0.0):
            if not 0 <= price < math.inf:
                raise ValueError(f"a price per million tokens must be 0 or more, got {price}")

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_prompt_tokens: int) -> float:
        """Of one reply; the cached tokens are some of the prompt's."""
        cached = min(cached_prompt_tokens, prompt_tokens)
        cached_price = self.prompt if self.cached_prompt is None else self.cached_prompt
        millionths = (
            (prompt_tokens - cached) * self.prompt
            + cached * cached_price
            + completion_tokens * self.completion
        )
        return millionths / 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Totals. Every reply that was paid for counts, also those that nobody could use.

    `requests` counts what was sent, `retries` those that repeated another, `cached` what the disk
    answered instead; `uncounted` replies came without a token count, `unpriced` ones were of a
    model without a price, so that with either the tokens or the cost are too low. `failures` are
    requests that had no reply in the end, by kind (see `EndpointError`).
    """

    requests: int = 0
    retries: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    uncounted: int = 0
    unpriced: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """The same as numbers by name, e.g. "judge/cost" for a prefix of "judge/"."""
        numbers = {name: float(getattr(self, name)) for name in _NUMBERS}
        kinds = {f"failures/{kind}": float(count) for kind, count in self.failures.items()}
        return {prefix + name: number for name, number in {**numbers, **kinds}.items()}


_NUMBERS = tuple(f.name for f in fields(Usage) if f.name != "failures")


class Meter:
    """Adds up usage, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def add(self, **counts: float) -> None:
        """Add to fields of `Usage`, by name."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] = self._counts.get(name, 0) + count

    def add_failure(self, kind: str) -> None:
        """One more request without a reply."""
        with self._lock:
            self._failures[kind] = self._failures.get(kind, 0) + 1

    def merge(self, usage: Usage) -> None:
        """Add what another one counted."""
        self.add(**{name: getattr(usage, name) for name in _NUMBERS})
        with self._lock:
            for kind, count in usage.failures.items():
                self._failures[kind] = self._failures.get(kind, 0) + count

    @property
    def usage(self) -> Usage:
        """The totals so far."""
        with self._lock:
            return Usage(**self._counts, failures=dict(self._failures))  # type: ignore[arg-type]
