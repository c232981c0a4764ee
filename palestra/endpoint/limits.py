"""How long to wait: what a server's headers ask for, backoff with jitter, one gate for all."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import math
import random
import re
import time
from collections.abc import AsyncIterator, Mapping

# No server stops an endpoint for longer without being asked again.
LONGEST_PAUSE_S = 60.0

_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.5, 20.0
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)


def backoff_s(retry: int) -> float:
    """Seconds before retry number `retry` (from 0): doubling, from half of it to all at random.

    The jitter keeps clients that failed together from coming back together.
    """
    longest_s = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(retry, 16))
    return longest_s * random.uniform(0.5, 1.0)


def asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After-Ms` or `Retry-After` (seconds or a date) asks for; None without either."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def quota_wait_s(headers: Mapping[str, str]) -> float:
    """Seconds until a quota that a reply says is used up is there again; 0 if there is some left.

    Reads `x-ratelimit-remaining-…` and `x-ratelimit-reset-…` ("6m0s", "20ms" or seconds), of
    requests and tokens.
    """
    waits = [0.0]
    for quota in ("requests", "tokens"):
        left = _number(headers.get(f"x-ratelimit-remaining-{quota}"))
        if left is not None and left < 1:
            waits.append(_duration_s(headers.get(f"x-ratelimit-reset-{quota}", "")))
    return max(waits)


class Gate:
    """Lets at most `concurrency` requests through at once, no faster than a rate, none in a pause.

    Belongs to one event loop.
    """

    def __init__(self, concurrency: int, requests_per_minute: float | None) -> None:
        self._places = asyncio.Semaphore(concurrency)
        self._spacing_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_at = 0.0
        self._paused_until = 0.0

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, hold it inside the block."""
        async with self._places:
            wait_s = self._wait_s()
            while wait_s > 0:  # others may have paused it, or taken the turn, meanwhile
                await asyncio.sleep(wait_s)
                wait_s = self._wait_s()
            self._next_at = max(self._next_at, time.monotonic()) + self._spacing_s
            yield

    def pause(self, seconds: float) -> None:
        """Let nobody through for so long (at most `LONGEST_PAUSE_S`)."""
        until = time.monotonic() + min(seconds, LONGEST_PAUSE_S)
        self._paused_until = max(self._paused_until, until)

    def _wait_s(self) -> float:
        return max(self._next_at, self._paused_until) - time.monotonic()


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _duration_s(text: str) -> float:
    seconds = _number(text)
    if seconds is not None:
        return seconds
    parts = _DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        return 0.0
    return math.fsum(float(number) * _UNITS_S[unit] for number, unit in parts)
