"""`Runner`: a sandbox that runs tests, and never sees a program, so that it may be used again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from palestra.tools.sandboxes import Sandbox, SandboxDied, SandboxPool, SandboxSpec, pool_of
from palestra.verifiers.code.bundle import bundle
from palestra.verifiers.code.limits import Clock
from palestra.verifiers.code.verdict import Fault, ProgramFault

MAX_IDLE = 8
MAX_USES = 500
SETUP_TIMEOUT_S = 30.0
# There is one for each program that is being tested, and those are few.
_MAX_LIVE = 10_000


class Runner:
    """Tests run in it, one set at a time, each in a process of its own."""

    def __init__(self, spec: SandboxSpec, pool: SandboxPool, sandbox: Sandbox) -> None:
        self.spec = spec
        self.uses = 0
        self.usable = True
        self._pool = pool
        self.sandbox = sandbox

    async def set_up(self) -> None:
        """Get ready for `start`."""
        modules = ("relay", "plain", "proxies", "tally", "run_tests")
        code = bundle(*modules) + "relay = module.Relay()\n"
        result = await self.sandbox.python(code, timeout_s=SETUP_TIMEOUT_S)
        assert not (result.error or result.ended), result

    async def start(self, job: Mapping[str, Any], clock: Clock) -> list[Any]:
        """Begin to run tests, to the first question or the end (see guest/relay.py)."""
        self.uses += 1
        return await self._run(f"relay.start({ascii(json.dumps(job))})", clock)

    async def resume(self, reply: Mapping[str, Any], clock: Clock) -> list[Any]:
        """Give the reply to a question, to the next one or the end."""
        return await self._run(f"relay.resume({ascii(json.dumps(reply))})", clock)

    async def _run(self, code: str, clock: Clock) -> list[Any]:
        """Raises ProgramFault if it takes too long or too much: so do the values that it got."""
        self.usable = False
        try:
            result = await self.sandbox.python(code, timeout_s=clock.for_all())
        except SandboxDied as death:
            raise ProgramFault(Fault.MEMORY, f"while the tests ran: {death}") from None
        if result.ended == "timeout":
            raise ProgramFault(Fault.TIMEOUT, "while the tests ran")
        if result.ended or result.error:
            raise ProgramFault(Fault.MEMORY, "while the tests ran")
        event: list[Any] = json.loads(result.value)
        self.usable = True
        return event

    async def destroy(self) -> None:
        """Give the sandbox back to its pool."""
        await self._pool.release(self.sandbox)


_idle: dict[SandboxSpec, deque[Runner]] = {}


@contextlib.asynccontextmanager
async def runner_for(spec: SandboxSpec) -> AsyncIterator[Runner]:
    """A runner in a sandbox as `spec` describes it, used before or new."""
    runner = await _take(spec)
    try:
        yield runner
    except BaseException:
        runner.usable = runner.usable and False
        raise
    finally:
        idle = _idle.setdefault(spec, deque())
        if runner.usable and runner.uses < MAX_USES and len(idle) < MAX_IDLE:
            idle.append(runner)
        else:
            await asyncio.shield(asyncio.ensure_future(runner.destroy()))


async def _take(spec: SandboxSpec) -> Runner:
    idle = _idle.setdefault(spec, deque())
    while True:
        try:
            runner = idle.pop()
        except IndexError:
            break
        if await runner.sandbox.answers():
            return runner
        await runner.destroy()
    # A pool of its own: it must not wait for a place that a program waiting for it holds.
    pool = pool_of(dataclasses.replace(spec, warm=0, max_live=_MAX_LIVE))
    runner = Runner(spec, pool, await pool.acquire())
    try:
        await runner.set_up()
    except BaseException:
        await runner.destroy()
        raise
    return runner


# Sandboxes are the parent's.
os.register_at_fork(after_in_child=_idle.clear)
