"""Run plain functions off the event loop, in daemon threads that a hung call cannot block.

A thread cannot be killed. One whose call ran out of time is left to itself: the next call takes
another thread, and the interpreter exits without waiting for it. (The pools of asyncio and
concurrent.futures are of fixed size and are joined at exit, so a few hung calls stop everything.)
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from palestra.tools.trouble import TimedOut

T = TypeVar("T")

# Calls in progress per event loop, those that were abandoned not counted.
MAX_THREADS = 128


class LoopLimit:
    """How many calls of a kind may run at once on one event loop."""

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    def slot(self) -> asyncio.Semaphore:
        """To be entered with `async with` around a call."""
        loop = asyncio.get_running_loop()
        slots = self._slots.get(loop)
        if slots is None:
            slots = self._slots[loop] = asyncio.Semaphore(self._calls)
        return slots


async def run_in_thread(function: Callable[[], T], *, timeout_s: float | None = None) -> T:
    """The result of `function()`, called in a daemon thread with this context's variables.

    Waiting for a free thread does not count as time. Raises TimedOut after `timeout_s`, and
    whatever the function raises.
    """
    loop = asyncio.get_running_loop()
    async with _limit.slot():
        call = _Call(function, loop)
        _start(call)
        timer = None if timeout_s is None else loop.call_later(timeout_s, call.time_out)
        try:
            error = await call.done
        finally:
            if timer is not None:
                timer.cancel()
    if call.timed_out:
        raise TimedOut(f"no result after {timeout_s:g} s")
    if error is not None:
        raise error
    return call.result


class _Call(Generic[T]):
    """One call on its way through a thread."""

    def __init__(self, function: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        self.loop = loop
        self.done: asyncio.Future[BaseException | None] = loop.create_future()
        self.result: T
        self.timed_out = False

    def run(self) -> None:
        error: BaseException | None = None
        try:
            self.result = self.context.run(self.function)
        except (asyncio.CancelledError, StopIteration, GeneratorExit) as confusing:
            # asyncio would take these as its own signals.
            error = RuntimeError(f"{type(confusing).__name__}: {confusing}")
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile: nobody waits
            self.loop.call_soon_threadsafe(self._finish, error)

    def time_out(self) -> None:
        self.timed_out = True
        self._finish(None)

    def _finish(self, error: BaseException | None) -> None:
        if not self.done.done():
            self.done.set_result(error)


_idle: deque[SimpleQueue[_Call[Any]]] = deque()
_limit = LoopLimit(MAX_THREADS)


def _start(call: _Call[Any]) -> None:
    try:
        inbox = _idle.pop()
    except IndexError:
        inbox = SimpleQueue()
        threading.Thread(target=_work, args=(inbox,), name="palestra-call", daemon=True).start()
    inbox.put(call)


def _work(inbox: SimpleQueue[_Call[Any]]) -> None:
    while True:
        call = inbox.get()
        call.run()
        del call  # an idle thread must not keep an episode's state alive
        _idle.append(inbox)


# Threads do not survive a fork (Gymnasium's asynchronous vector environments fork).
os.register_at_fork(after_in_child=_idle.clear)
