"""Run coroutines from synchronous code: what stands behind `Env.step` and `Sandbox.sync`.

An event loop per process, on a daemon thread of its own, serves all environments. So it makes no
difference whether the caller's thread already runs a loop (as in a notebook), and what an
environment opened in `reset` (a connection, a background task) lives on in `step`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
# Usually one. An environment whose coroutine uses another's synchronous face blocks the loop that
# it runs on; the other then runs on the next loop.
_loops: list[asyncio.AbstractEventLoop] = []
# A forked child must never close, nor let be closed, the loops it inherited: both processes share
# their epoll instances, and unregistering there would deafen the parent's loops.
_inherited: list[asyncio.AbstractEventLoop] = []


def start(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run in the background."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop(0))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to completion and return the result; an interrupt cancels the coroutine."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _free_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _free_loop() -> asyncio.AbstractEventLoop:
    """The first loop that does not wait for this thread."""
    try:
        blocked = asyncio.get_running_loop()
    except RuntimeError:
        blocked = None
    return _loop(_loops.index(blocked) + 1 if blocked in _loops else 0)


def _loop(depth: int) -> asyncio.AbstractEventLoop:
    with _lock:
        if depth == len(_loops):
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="palestra-loop", daemon=True).start()
            _loops.append(loop)
        return _loops[depth]


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _inherited.extend(_loops)
    _loops.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
