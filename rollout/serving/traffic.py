"""`Traffic`: the requests that are being answered, and how they end when the server goes down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from palestra.rollout.serving.api_error import ApiError

T = TypeVar("T")

_LAST_WORDS_S = 2.0


class Traffic:
    """Counts requests, and drains. It belongs to one event loop.

    Whoever answers a request does so within `request` and reads its replies through `attend`.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.is_draining = False
        self._cut = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self._waiting: set[asyncio.Task[Any]] = set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts one request while it is being answered."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def attend(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The same items; raises ApiError (503) once `drain` has waited long enough."""
        async with aclosing(items):
            while not self._cut.is_set():
                task = asyncio.current_task()
                assert task is not None
                self._waiting.add(task)
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    if not self._cut.is_set():
                        raise
                    task.uncancel()
                    break
                finally:
                    self._waiting.discard(task)
                yield item
        raise going_down()

    def hurry(self) -> None:
        """Have `drain` wait no longer."""
        self._hurry.set()

    async def drain(self, timeout_s: float) -> bool:
        """Have new requests refused and wait for those in progress, then cut them off.

        Returns whether all of them ended by themselves.
        """
        self.is_draining = True
        await _first(self._idle, self._hurry, timeout_s=timeout_s)
        if self._idle.is_set():
            return True
        self._cut.set()
        for task in self._waiting:
            task.cancel()
        await _first(self._idle, timeout_s=_LAST_WORDS_S)
        return False


async def _first(*events: asyncio.Event, timeout_s: float) -> None:
    """Until one of the events is set, or the time is up."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def going_down() -> ApiError:
    """What requests are told that come too late."""
    return ApiError(
        503, "the server is shutting down; try again", code="shutting_down", retry_after_s=5.0
    )
