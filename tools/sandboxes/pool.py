"""`SandboxPool`: sandboxes kept warm, bounded in number, handed out first come, first served."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
from collections import deque
from concurrent.futures import Future

from palestra.tools import event_loop
from palestra.tools.sandboxes.choose import choose
from palestra.tools.sandboxes.sandbox import Sandbox
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.types import Failure

_logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 20.0


class SandboxPool:
    """Hands out started sandboxes, each to one user, once: what comes back is destroyed.

    Usable from any thread and any event loop. `spec.warm` wait ready, at most `spec.max_live` are
    alive at once; who asks for more waits in line. One that could not be started, or has died
    while it waited, is replaced.

    Raises:
        ValueError: no backend here gives what the specification requires.
    """

    def __init__(self, spec: SandboxSpec) -> None:
        self.spec = spec
        self._backend = choose(spec)
        self._lock = threading.Lock()
        self._idle: deque[Sandbox] = deque()
        self._taken: set[Sandbox] = set()
        self._starting = 0
        self._waiting: deque[Future[Sandbox | None]] = deque()
        self._refills: set[Future[None]] = set()
        self._closed = False

    async def acquire(self) -> Sandbox:
        """A started sandbox, fresh. Raises Failure if none can be started."""
        while True:
            turn: Future[Sandbox | None] = Future()
            with self._lock:
                self._waiting.append(turn)
                self._serve()
            sandbox = await self._wait(turn)
            if sandbox is None:
                sandbox = await self._start()
            elif not await sandbox.answers():
                await self.release(sandbox)
                continue
            self._refill()
            return sandbox

    async def release(self, sandbox: Sandbox) -> None:
        """Destroy a sandbox that was handed out and let the next in line have its place."""
        try:
            await sandbox.kill()
        finally:
            with self._lock:
                self._taken.discard(sandbox)
                self._serve()
            self._refill()

    async def aclose(self) -> None:
        """Destroy all sandboxes, those that are in use as well."""
        with self._lock:
            self._closed = True
            sandboxes = [*self._idle, *self._taken]
            self._idle.clear()
            self._taken.clear()
            self._serve()
        await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes), return_exceptions=True)
        if refills := [asyncio.wrap_future(refill) for refill in list(self._refills)]:
            await asyncio.wait(refills, timeout=CLOSE_TIMEOUT_S)  # they see that it is closed

    def close(self) -> None:
        """The same for code that is not asynchronous."""
        event_loop.run(self.aclose())

    def counts(self) -> dict[str, int]:
        """How many are "idle", "taken", "starting", and how many askers are "waiting"."""
        with self._lock:
            return {
                "idle": len(self._idle),
                "taken": len(self._taken),
                "starting": self._starting,
                "waiting": len(self._waiting),
            }

    def _live(self) -> int:
        return len(self._idle) + len(self._taken) + self._starting

    def _serve(self) -> None:
        """Give those in line, in order, what is there: a warm one, or the right to start one."""
        while self._waiting and (self._closed or self._idle or self._live() < self.spec.max_live):
            turn = self._waiting.popleft()
            if not turn.set_running_or_notify_cancel():
                continue
            if self._closed:
                turn.set_exception(
                    Failure(f"sandbox:{self._backend.backend}", "its pool is closed")
                )
            elif self._idle:
                sandbox = self._idle.popleft()
                self._taken.add(sandbox)
                turn.set_result(sandbox)
            else:
                self._starting += 1
                turn.set_result(None)

    async def _wait(self, turn: Future[Sandbox | None]) -> Sandbox | None:
        try:
            return await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                await self._pass_on(turn.result())
            raise

    async def _pass_on(self, sandbox: Sandbox | None) -> None:
        """What was given to one who no longer waits for it."""
        if sandbox is not None:
            await self.release(sandbox)
            return
        with self._lock:
            self._starting -= 1
            self._serve()

    async def _start(self) -> Sandbox:
        """For one who asked; `_starting` already counts it."""
        sandbox = self._backend(self.spec)
        try:
            await sandbox.start()
        except BaseException:
            await self._pass_on(None)
            raise
        with self._lock:
            self._starting -= 1
            self._taken.add(sandbox)
            closed = self._closed
        if closed:
            await sandbox.kill()
        return sandbox

    def _refill(self) -> None:
        """Start, in the background, what is missing to the warm ones."""
        while True:
            with self._lock:
                ready = len(self._idle) + self._starting
                full = self._live() >= self.spec.max_live
                if self._closed or self._waiting or full or ready >= self.spec.warm:
                    return
                self._starting += 1
            refill = event_loop.start(self._start_idle())
            self._refills.add(refill)
            refill.add_done_callback(self._refills.discard)

    async def _start_idle(self) -> None:
        sandbox = self._backend(self.spec)
        started = False
        try:
            await sandbox.start()
            started = True
        except Exception as error:  # whoever asks next tries again, and is told
            _logger.warning("a sandbox could not be kept ready: %s", error)
        finally:
            with self._lock:
                self._starting -= 1
                keep = started and not self._closed
                if keep:
                    self._idle.append(sandbox)
                self._serve()
            if started and not keep:
                await sandbox.kill()


_pools: dict[SandboxSpec, SandboxPool] = {}
_lock = threading.Lock()


def pool_of(spec: SandboxSpec) -> SandboxPool:
    """The pool of this process for a specification, made when first asked for."""
    with _lock:
        pool = _pools.get(spec)
        if pool is None:
            pool = _pools[spec] = SandboxPool(spec)
            # Before what the backend, which is imported by now, has registered.
            atexit.unregister(close_pools)
            atexit.register(close_pools)
        return pool


async def _close_all() -> None:
    await asyncio.gather(*(pool.aclose() for pool in list(_pools.values())))


def close_pools() -> None:
    """Destroy every sandbox of every pool of this process."""
    if _pools:
        with contextlib.suppress(TimeoutError):
            event_loop.run(asyncio.wait_for(_close_all(), CLOSE_TIMEOUT_S))
    _pools.clear()


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
