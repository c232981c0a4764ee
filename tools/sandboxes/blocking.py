"""`run_blocking`: what would hold up the event loop runs on a thread, as long as there are any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def run_blocking(function: Callable[..., T], *arguments: object) -> T:
    """`asyncio.to_thread`, and at the end of the interpreter, when no thread can start, a call.

    So pools that are closed then still leave nothing behind.
    """
    try:
        running = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    except RuntimeError:  # after shutdown
        return function(*arguments)
    return await running


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Wait for what goes on whether or not the waiting is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
