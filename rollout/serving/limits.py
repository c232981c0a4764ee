"""How much clients may ask for: `ServerLimits`, `RateLimit` and a bound for bodies."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.types import Message, Receive

from palestra.rollout.serving.api_error import ApiError

_BODY_TIMEOUT_S = 60.0
_MAX_BUCKETS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLimits:
    """Bounds on requests.

    `requests_per_minute` holds for each key, or for all clients together where there are no keys;
    None is no limit. Beyond `max_concurrent` requests at a time clients are told to come later.

    Raises:
        ValueError: a limit below 1.
    """

    max_body_bytes: int = 16 * 2**20
    requests_per_minute: int | None = None
    max_concurrent: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "requests_per_minute", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class RateLimit:
    """A token bucket for each client: a minute's requests may come at once, then one by one."""

    def __init__(
        self, requests_per_minute: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = requests_per_minute
        self._per_s = requests_per_minute / 60
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, when

    def take(self, client: str) -> tuple[float, list[tuple[bytes, bytes]]]:
        """In how many seconds a request will be allowed, 0 if it is; OpenAI's headers."""
        now = self._clock()
        level, then = self._buckets.get(client, (float(self._limit), now))
        level = min(self._limit, level + (now - then) * self._per_s)
        wait_s = 0.0 if level >= 1 else (1 - level) / self._per_s
        if not wait_s:
            level -= 1
        self._buckets[client] = (level, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        headers = [
            (b"x-ratelimit-limit-requests", b"%d" % self._limit),
            (b"x-ratelimit-remaining-requests", b"%d" % int(level)),
            (b"x-ratelimit-reset-requests", b"%.3fs" % ((self._limit - level) / self._per_s)),
        ]
        return wait_s, headers


async def read_body(
    headers: Iterable[tuple[bytes, bytes]], receive: Receive, max_bytes: int
) -> Receive:
    """A `receive` that has the whole body ready.

    Raises:
        ApiError: 413 for a body above `max_bytes`, before more than that was read; 408 for one that
            does not come, 400 for one that breaks off.
    """
    for name, value in headers:
        if name == b"content-length" and (len(value) > 18 or int(value) > max_bytes):
            raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "the request broke off", code="incomplete_body")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > max_bytes:
                    raise _too_large(max_bytes)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise ApiError(
            408, f"the body did not come in {_BODY_TIMEOUT_S:g} s", code="timeout"
        ) from None
    whole: Message | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}

    async def receive_read() -> Message:
        nonlocal whole
        if whole is None:
            return await receive()
        message, whole = whole, None
        return message

    return receive_read


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_bytes:,} bytes", code="request_too_large")
