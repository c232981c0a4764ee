"""`Metrics`: what the server counts and times, for Prometheus."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palestra.rollout.serving.reply import ReplyDelta

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "palestra_requests",
            "Requests by route and status; 499 are those whose client left",
            ["route", "status"],
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "palestra_requests_in_flight", "Requests being answered", registry=self._registry
        )
        self.seconds = Histogram(
            "palestra_request_seconds",
            "From a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token_seconds = Histogram(
            "palestra_first_token_seconds",
            "From a request for a stream to its first token",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "palestra_prompt_tokens", "Tokens of prompts", registry=self._registry
        )
        self.completion_tokens = Counter(
            "palestra_completion_tokens", "Sampled tokens", registry=self._registry
        )
        self.rate_limited = Counter(
            "palestra_rate_limited", "Requests refused by the rate limit", registry=self._registry
        )
        self.engine_up = Gauge(
            "palestra_engine_up", "1 while the engine is available", registry=self._registry
        )

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    async def count(
        self, deltas: AsyncGenerator[ReplyDelta, None], *, stream: bool
    ) -> AsyncGenerator[ReplyDelta, None]:
        """The same deltas, whose tokens are counted; a prompt's once, however many replies."""
        started = time.perf_counter()
        waits, prompt_tokens = stream, 0
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    if waits:
                        waits = False
                        self.first_token_seconds.observe(time.perf_counter() - started)
                    if delta.end is not None:
                        prompt_tokens = max(prompt_tokens, delta.end.prompt_tokens)
                        self.completion_tokens.inc(delta.end.completion_tokens)
                    yield delta
        finally:
            self.prompt_tokens.inc(prompt_tokens)


class MeasuredApp:
    """Counts and times the requests to `app`, in pure ASGI, and gives each an id for its answer."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics = self._metrics
        status = 499
        request_id = (b"x-request-id", f"req_{uuid.uuid4().hex}".encode())

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), request_id]
            await send(message)

        started = time.perf_counter()
        metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_counted)
        finally:
            metrics.in_flight.dec()
            route = _route(scope)
            metrics.requests.labels(route, status).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - started)
            if status == 429:
                metrics.rate_limited.inc()


def _route(scope: Scope) -> str:
    """The path with its parameters' names, "none" where nothing answers: paths have no end."""
    if "route" not in scope:
        return "none"
    path: str = scope["path"]
    for name, value in scope.get("path_params", {}).items():
        path = path.replace(str(value), f"{{{name}}}")
    return path
