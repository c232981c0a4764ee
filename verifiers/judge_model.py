"""`ModelVerifier`: what all judges share: a model that is asked for verdicts within a time."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar

from palestra.endpoint import Endpoint, EndpointError, Meter, Request, Usage
from palestra.tools.output import printable, shortened
from palestra.tools.trouble import one_line
from palestra.types import Failure, Message, Score, Task, Unscorable
from palestra.verifiers.judge_prompt import judge_messages, new_nonce
from palestra.verifiers.judge_verdict import BadVerdict, Form, read_verdict
from palestra.verifiers.verifier import Declaration, Range

T = TypeVar("T")

_MAX_EXPLANATION_CHARS = 1000
# Behind the judge's own time limit, so that a slow judge never looks like an answer's doing.
_GRACE_S = 30.0


class JudgeOptions(TypedDict, total=False):
    """How a judge's model is asked.

    `endpoint`, or else `base_url` and `api_key` (or OPENAI_BASE_URL and OPENAI_API_KEY), say where.
    `samples` verdicts (1) are asked for, at `temperature` (0 for one, the model's own for several),
    of up to `max_tokens` (2,048; None: no limit is sent) each; `extra` is added to every request. A
    reply that is no verdict is asked for `attempts` times (3). All is over after `timeout_s` (300),
    waiting for a place at the endpoint included. `max_text_bytes` (32,000) are shown of each text,
    its head and tail.
    """

    endpoint: Endpoint
    base_url: str
    api_key: str
    samples: int
    temperature: float | None
    max_tokens: int | None
    extra: Mapping[str, Any]
    attempts: int
    timeout_s: float
    max_text_bytes: int


class ModelVerifier(ABC):
    """A verifier that asks a model. Whatever is wrong with the model is `Unscorable`, and counted.

    Causes: "judge:" and a kind of `EndpointError`, or "refused", "cut" (by its token limit) and
    "nonsense" for replies that are no verdict. A policy can provoke these last, by an answer that
    confuses the judge or offends its provider; then the episode is masked instead of scored. Watch
    `metrics()`: a share that grows during training is a policy that learns to.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str,
        reward_range: Range,
        endpoint: Endpoint | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        samples: int = 1,
        temperature: float | Literal["default"] | None = "default",
        max_tokens: int | None = 2048,
        extra: Mapping[str, Any] | None = None,
        attempts: int = 3,
        timeout_s: float = 300.0,
        max_text_bytes: int = 32_000,
    ) -> None:
        if not model:
            raise ValueError("a judge needs the name of a model that its endpoint serves")
        if endpoint is not None and (base_url or api_key):
            raise ValueError("an endpoint has its own base_url and api_key: pass either")
        limits = {
            "samples": samples,
            "attempts": attempts,
            "timeout_s": timeout_s,
            "max_text_bytes": max_text_bytes,
            "max_tokens": max_tokens or 1,
        }
        for option, limit in limits.items():
            if not 0 < limit < math.inf:
                raise ValueError(f"{option} of a judge must be positive, got {limit}")
        if temperature == "default":
            temperature = 0.0 if samples == 1 else None
        elif temperature == 0 and samples > 1:
            raise ValueError(
                f"{samples} samples at temperature 0 are all the same: pass a higher temperature"
            )
        self.model = model
        self.samples = samples
        self.declaration = Declaration(
            name=name, range=reward_range, timeout_s=timeout_s + _GRACE_S
        )
        self.__name__ = name
        self._endpoint = endpoint or Endpoint(base_url, api_key)
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._extra = dict(extra or {})
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._max_text_bytes = max_text_bytes
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._meter = Meter()

    async def __call__(
        self, task: Task, reply: str, answer: Any = None, messages: Sequence[Message] = ()
    ) -> Score:
        """The verdict. Raises Unscorable, and Failure for a bug in this code."""
        return await self._bounded(self._score(task, reply, answer, messages))

    @abstractmethod
    async def _score(
        self, task: Task, reply: str, answer: Any, messages: Sequence[Message]
    ) -> Score:
        """The verdict on one reply."""

    @property
    def usage(self) -> Usage:
        """Requests, tokens and cost of this judge so far."""
        return self._meter.usage

    def metrics(self) -> dict[str, float]:
        """`usage` and what became of verdicts, as numbers by name ("judge/cost", …).

        "verdicts" that could be read, "unusable" replies that could not, "unscorable/" and a kind
        for verdicts that were given up.
        """
        prefix = f"{self.declaration.name}/"
        with self._lock:
            counts = {prefix + name: float(count) for name, count in self._counts.items()}
        return {**self.usage.metrics(prefix), **counts}

    async def _bounded(self, verdict: Awaitable[T]) -> T:
        until = time.monotonic() + self._timeout_s
        try:
            async with asyncio.timeout(self._timeout_s + _GRACE_S / 2):  # `_ask` is in time
                return await verdict
        except Unscorable:
            raise
        except TimeoutError:
            raise self._given_up("timeout", f"no verdict in {self._timeout_s:g} s") from None
        except asyncio.CancelledError:
            # A loop that was busy beyond our time and the grace cancels for the caller's limit at
            # the same moment; the answer would be blamed.
            if time.monotonic() < until:
                raise
            raise self._given_up("timeout", f"no verdict in {self._timeout_s:g} s") from None
        except Exception as error:
            raise Failure("judge", one_line(error)) from error

    async def _sampled(self, ask: Callable[[int], Awaitable[T]]) -> list[T]:
        """The verdicts of all samples at once; Unscorable unless more than half are there."""
        results = await attempt_all(ask(sample) for sample in range(self.samples))
        verdicts = [result for result in results if not isinstance(result, BaseException)]
        troubles = [result for result in results if isinstance(result, BaseException)]
        for trouble in troubles:
            if not isinstance(trouble, Unscorable) or 2 * len(verdicts) <= self.samples:
                raise trouble
        return verdicts

    async def _ask(
        self,
        criteria: str,
        template: str,
        texts: Mapping[str, str],
        form: Form[T],
        sample: int,
    ) -> T:
        """One verdict on these texts. Raises Unscorable."""
        trouble = BadVerdict("nonsense", "never asked")
        until = time.monotonic() + self._timeout_s
        for attempt in range(self._attempts):
            if attempt and time.monotonic() >= until:
                break
            nonce = new_nonce(texts.values())
            request = Request(
                model=self.model,
                messages=judge_messages(
                    criteria=criteria,
                    form=form.text(nonce),
                    template=template,
                    texts=texts,
                    nonce=nonce,
                    max_bytes=self._max_text_bytes,
                ),
                temperature=self._temperature,
                max_tokens=self._max_tokens,
                schema=form.json_schema(),
                extra=self._extra,
            )
            try:
                reply = await self._endpoint.complete(
                    request,
                    within_s=until - time.monotonic(),
                    varying=nonce,
                    sample=sample,
                    accept=lambda reply, nonce=nonce: read_verdict(reply, form, nonce),  # type: ignore[misc]
                    meter=self._meter,
                )
            except EndpointError as error:
                raise self._given_up(error.kind, str(error)) from None
            except BadVerdict as error:
                trouble = error
                self._count("unusable")
            else:
                self._count("verdicts")
                return read_verdict(reply, form, nonce)
        raise self._given_up(trouble.kind, str(trouble))

    def _given_up(self, kind: str, detail: str) -> Unscorable:
        self._count(f"unscorable/{kind}")
        return Unscorable(printable(f"judge {self.model}: {detail}"), cause=f"judge:{kind}")

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def __deepcopy__(self, memo: Any) -> ModelVerifier:
        """Itself: Gymnasium copies the arguments of environments, which share a judge."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For another process: settings without counts."""
        return {**self.__dict__, "_lock": None, "_counts": Counter(), "_meter": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._meter = Meter()


async def attempt_all(attempts: Iterable[Awaitable[T]]) -> list[T | BaseException]:
    """What each returns or raises, in order; all run at once and to their end."""
    return await asyncio.gather(*attempts, return_exceptions=True)


async def all_or_none(attempts: Iterable[Awaitable[T]]) -> list[T]:
    """What each returns; raises the first exception after all have ended."""
    results: list[T] = []
    for result in await attempt_all(attempts):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


def explanation(reason: str) -> str:
    """A judge's reason, as an explanation of a score."""
    return printable(shortened(reason, _MAX_EXPLANATION_CHARS))


def reason_of(fields: Mapping[str, Any]) -> str:
    """The reason in a verdict. Raises ValueError."""
    reason = fields["reason"]
    if not isinstance(reason, str):
        raise ValueError(f"a verdict's reason is text, got {reason!r:.80}")
    return reason
