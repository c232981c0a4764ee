"""One event loop on a thread of its own for the requests of all endpoints of this process.

So a connection outlives the loop of whoever asked, limits hold across threads and loops, and
deadlines are kept while the asking loop is busy.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
# A forked child must neither use nor close what it inherited: both share its epoll instance.
_inherited: list[asyncio.AbstractEventLoop] = []


async def run_in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result; cancelling this cancels it."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, _running()))


def _running() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(
                target=_loop.run_forever, name="palestra-endpoint", daemon=True
            ).start()
        return _loop


def _forget_after_fork() -> None:
    global _lock, _loop
    _lock = threading.Lock()
    if _loop is not None:
        _inherited.append(_loop)
    _loop = None


os.register_at_fork(after_in_child=_forget_after_fork)
