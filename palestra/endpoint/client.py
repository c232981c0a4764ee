"""`Endpoint`: an OpenAI-compatible server that is asked for chat completions."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from palestra.endpoint.background import run_in_background
from palestra.endpoint.cache import ReplyCache, request_key
from palestra.endpoint.connection import Connection
from palestra.endpoint.exchange import EndpointError, Reply, Request
from palestra.endpoint.limits import Gate, backoff_s
from palestra.endpoint.usage import Meter, Price, Usage

Accept = Callable[[Reply], object]


class Endpoint:
    """A server that speaks OpenAI's chat completions, and the limits that it is asked within.

        endpoint = Endpoint("http://localhost:8000/v1", "none", cache="runs/replies")
        reply = await endpoint.complete(Request(model="judge", messages=[…]))

    At most `concurrency` requests are on their way at once, `requests_per_minute` of them evenly
    spaced, from all threads and event loops together; when the server says that a limit is reached,
    all of them wait. Each request has `timeout_s` until its reply is complete, and is sent up to
    `attempts` times, after growing random pauses or those that the server asks for. `prices` are by
    model. Whole replies are kept in `cache`, a folder that processes may share.

    `base_url` and `api_key` come from OPENAI_BASE_URL and OPENAI_API_KEY where they are not given.

    Raises:
        ValueError: no base URL or no key, or limits that are not positive.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        prices: Mapping[str, Price] | None = None,
        cache: str | os.PathLike[str] | None = None,
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        attempts: int = 6,
        timeout_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.base_url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL"))
        self._api_key = _checked_key(api_key or os.environ.get("OPENAI_API_KEY"))
        self.prices = dict(prices or {})
        self.cache = None if cache is None else ReplyCache(cache)
        self.concurrency = _positive("concurrency", concurrency)
        self.requests_per_minute = requests_per_minute
        if requests_per_minute is not None:
            _positive("requests_per_minute", requests_per_minute)
        self.attempts = _positive("attempts", attempts)
        self.timeout_s = _positive("timeout_s", timeout_s)
        self.headers = dict(headers or {})
        self._meter = Meter()
        self._connection: Connection | None = None

    @property
    def usage(self) -> Usage:
        """What all requests came to since this object was made."""
        return self._meter.usage

    async def complete(
        self,
        request: Request,
        *,
        within_s: float = 120.0,
        varying: str = "",
        sample: int = 0,
        accept: Accept | None = None,
        meter: Meter | None = None,
    ) -> Reply:
        """The model's reply, from the cache or within so many seconds, retries and queue included.

        `accept` raises ValueError for a reply that is of no use: then it is not kept, and the error
        goes to the caller. The cache holds one reply to a request for each `sample`, a number. What
        is `varying`, such as a nonce, is left out of the cache's key and put into what comes from
        the cache. Usage is added to `meter` too.

        Raises:
            EndpointError: no reply.
            ValueError: from `accept`, or text that has no UTF-8.
        """
        call = Meter()
        try:
            return await run_in_background(
                self._complete(request, within_s, varying, sample, accept, call)
            )
        finally:
            self._meter.merge(call.usage)
            if meter is not None:
                meter.merge(call.usage)

    async def _complete(
        self,
        request: Request,
        within_s: float,
        varying: str,
        sample: int,
        accept: Accept | None,
        meter: Meter,
    ) -> Reply:
        key = ""
        if self.cache is not None:
            key = request_key([self.base_url, request.body(), sample], varying)
            kept = _accepted(self.cache.get(key, varying), accept)
            if kept is not None:
                meter.add(cached=1)
                return kept
        try:
            reply = await self._ask(request, time.monotonic() + within_s, meter)
        except EndpointError as error:
            meter.add_failure(error.kind)
            raise
        reply = self._priced(reply, request.model, meter)
        if accept is not None:
            accept(reply)
        if self.cache is not None and reply.is_whole:
            self.cache.put(key, reply, varying)
        return reply

    async def _ask(self, request: Request, until: float, meter: Meter) -> Reply:
        """Ask until there is a reply, attempts or time are over, or asking again is useless."""
        trouble = EndpointError("busy", "not sent in time: raise concurrency or the time limit")
        deadline = asyncio.timeout(until - time.monotonic())
        try:
            async with deadline:
                for attempt in range(self.attempts):
                    connection = self._connect()
                    try:
                        async with connection.gate.place():
                            if attempt == 0:
                                trouble = EndpointError("timeout", "no reply in time")
                            return await connection.ask(request, meter, is_retry=attempt > 0)
                    except EndpointError as error:
                        trouble = error
                    wait_s = backoff_s(attempt)
                    if trouble.wait_s:
                        wait_s = trouble.wait_s * random.uniform(1.0, 1.1)
                    if trouble.kind == "rate_limited":
                        connection.gate.pause(wait_s)
                    is_late = time.monotonic() + wait_s >= until
                    if is_late or not trouble.may_pass or attempt + 1 == self.attempts:
                        break
                    await asyncio.sleep(wait_s)
        except TimeoutError:
            if not deadline.expired():
                raise
        raise trouble

    def _priced(self, reply: Reply, model: str, meter: Meter) -> Reply:
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            meter.add(uncounted=1)
            return reply
        counts = (reply.prompt_tokens, reply.completion_tokens)
        meter.add(prompt_tokens=counts[0], completion_tokens=counts[1])
        price = self.prices.get(model)
        if price is None:
            meter.add(unpriced=1)
            return reply
        cost = price.cost(*counts, reply.cached_prompt_tokens)
        meter.add(cost=cost)
        return replace(reply, cost=cost)

    def _connect(self) -> Connection:
        """The connection on this loop: a new one at first, and in a forked child."""
        if self._connection is None or self._connection.loop is not asyncio.get_running_loop():
            self._connection = Connection(
                self.base_url,
                self._api_key,
                headers=self.headers,
                timeout_s=self.timeout_s,
                gate=Gate(self.concurrency, self.requests_per_minute),
            )
        return self._connection

    def __deepcopy__(self, memo: Any) -> Endpoint:
        """Itself: copies of an environment share its limits."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For another process: settings without connection and counts."""
        return {**self.__dict__, "_connection": None, "_meter": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._meter = Meter()


def _accepted(reply: Reply | None, accept: Accept | None) -> Reply | None:
    if reply is not None and accept is not None:
        try:
            accept(reply)
        except ValueError:
            return None
    return reply


def _checked_url(url: str | None) -> str:
    if not url:
        raise ValueError(
            "no endpoint to ask: pass base_url (such as http://localhost:8000/v1) or set "
            "OPENAI_BASE_URL"
        )
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"base_url must start with http:// or https://, got {url!r}")
    return url.rstrip("/")


def _checked_key(key: str | None) -> str:
    if not key:
        raise ValueError(
            "no key for the endpoint: pass api_key (any word for a server without keys) or set "
            "OPENAI_API_KEY"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("api_key has characters that no key has: copy it again, without quotes")
    return key


def _positive(name: str, limit: Any) -> Any:
    if not 0 < limit < math.inf:
        raise ValueError(f"{name} of an endpoint must be positive, got {limit}")
    return limit
