"""`Runner`: a sandbox that runs tests, and never sees a program, so that it may be used again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from palestra.tools.sandboxes import Sandbox, SandboxDied, SandboxPool, SandboxSpec
from palestra.tools.threads import run_in_thread
from palestra.types import Failure
from palestra.verifiers.code.bundle import bundle
from palestra.verifiers.code.limits import Clock
from palestra.verifiers.code.own_sandbox import acquire, release
from palestra.verifiers.code.verdict import Fault, ProgramFault

MAX_IDLE = 8
MAX_USES = 500
SETUP_TIMEOUT_S = 30.0
# There is one for each program that is being tested, and those are few.
_MAX_LIVE = 10_000
_MODULES = (
    *("plain", "proxies", "tally", "run_asserts", "run_unittest", "run_pytest"),
    *("run_tests", "relay"),
)
# Longer texts are quoted off the event loop.
_SMALL_CHARS = 100_000


class Runner:
    """Tests run in it, one set at a time, each in a process of its own."""

    def __init__(self, pool: SandboxPool, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._pool = pool
        self._uses = 0
        self._usable = True
        self._made = time.monotonic()

    async def set_up(self) -> None:
        """Get ready for `start`."""
        code = bundle(*_MODULES) + "relay = module.Relay()\n"
        result = await self.sandbox.python(code, timeout_s=SETUP_TIMEOUT_S)
        if result.error or result.ended:
            raise Failure("verifier", f"tests cannot be run: {result.ended or result.error}"[-300:])

    @property
    def usable(self) -> bool:
        """Whether it can be used again, and will not reach the end of its life meanwhile."""
        age_s = time.monotonic() - self._made
        young = age_s < self.sandbox.spec.limits.wall_s / 2
        return self._usable and self._uses < MAX_USES and young

    async def start(self, job: Mapping[str, Any], clock: Clock) -> list[Any]:
        """Begin to run tests, to the first question or the end (see guest/relay.py)."""
        self._uses += 1
        return await self._run("start", job, clock)

    async def resume(self, reply: Mapping[str, Any], clock: Clock) -> list[Any]:
        """Give the reply to a question, to the next one or the end."""
        return await self._run("resume", reply, clock)

    async def _run(self, method: str, argument: Mapping[str, Any], clock: Clock) -> list[Any]:
        """Raises ProgramFault if it takes too long or too much: so do the values that it got."""
        self._usable = False

        def call() -> str:
            return f"relay.{method}({json.dumps(argument)!a})"

        size = sum(len(value) for value in argument.values() if isinstance(value, str))
        code = call() if size <= _SMALL_CHARS else await run_in_thread(call)
        try:
            result = await self.sandbox.python(code, timeout_s=clock.for_all())
        except SandboxDied as death:
            raise ProgramFault(Fault.MEMORY, f"while the tests ran: {death}") from None
        if result.ended == "timeout":
            raise ProgramFault(Fault.TIMEOUT, "while the tests ran")
        if result.ended or "MemoryError" in result.error:
            raise ProgramFault(Fault.MEMORY, "while the tests ran")
        if result.error:
            raise Failure("verifier", f"tests cannot be run: {result.error}"[-300:])
        event: list[Any] = json.loads(result.value)
        self._usable = True
        return event

    async def destroy(self) -> None:
        """Give the sandbox back to its pool."""
        await release(self._pool, self.sandbox)


_idle: dict[SandboxSpec, deque[Runner]] = {}


@contextlib.asynccontextmanager
async def runner_for(spec: SandboxSpec) -> AsyncIterator[Runner]:
    """A runner in a sandbox as `spec` describes it, used before or new."""
    runner = await _take(spec)
    try:
        yield runner
    finally:
        idle = _idle.setdefault(spec, deque())
        if runner.usable and len(idle) < MAX_IDLE:
            idle.append(runner)
        else:
            await runner.destroy()


async def _take(spec: SandboxSpec) -> Runner:
    idle = _idle.setdefault(spec, deque())
    while True:
        try:
            runner = idle.pop()
        except IndexError:
            break
        if runner.usable and await runner.sandbox.answers():
            return runner
        await runner.destroy()
    # From a pool of its own: it must not wait for a place that a program waiting for it holds.
    runner = Runner(*await acquire(dataclasses.replace(spec, warm=0, max_live=_MAX_LIVE)))
    try:
        await runner.set_up()
    except BaseException:
        await runner.destroy()
        raise
    return runner


# Sandboxes are the parent's.
os.register_at_fork(after_in_child=_idle.clear)
