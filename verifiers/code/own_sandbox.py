"""`OwnSandbox`: a fresh sandbox for one program, replaced if the program brings it down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from palestra.tools.sandboxes import Sandbox, SandboxDied, SandboxPool, SandboxSpec, pool_of
from palestra.tools.threads import run_in_thread
from palestra.types import Failure
from palestra.verifiers.code.limits import CodeLimits
from palestra.verifiers.code.verdict import Fault, ProgramFault


async def acquire(spec: SandboxSpec) -> tuple[SandboxPool, Sandbox]:
    """A started sandbox that nobody has used, and the pool that takes it back.

    Raises Failure (cause "sandbox") where no backend gives what the specification requires.
    """
    try:
        pool = await run_in_thread(lambda: pool_of(spec))
        return pool, await pool.acquire()
    except ValueError as error:
        raise Failure("sandbox", str(error)) from None


async def release(pool: SandboxPool, sandbox: Sandbox) -> None:
    """Destroy it. Whoever cancels this leaves no place of the pool taken."""
    await asyncio.shield(asyncio.ensure_future(pool.release(sandbox)))


class OwnSandbox:
    """The sandbox of one program at a time; `drop` makes way for another."""

    def __init__(self, limits: CodeLimits) -> None:
        self.limits = limits
        self._held: tuple[SandboxPool, Sandbox] | None = None

    async def current(self) -> Sandbox:
        """The sandbox, started. Raises Failure if there is none to be had."""
        if self._held is None:
            self._held = await acquire(self.limits.spec)
        return self._held[1]

    async def drop(self) -> None:
        """Destroy it; the next one is a new one."""
        if self._held is not None:
            held, self._held = self._held, None
            await release(*held)


@contextlib.asynccontextmanager
async def own_sandbox(limits: CodeLimits) -> AsyncIterator[OwnSandbox]:
    """A fresh sandbox, taken at once and destroyed at the end."""
    sandbox = OwnSandbox(limits)
    try:
        await sandbox.current()
        yield sandbox
    finally:
        await sandbox.drop()


def fault_of_death(death: SandboxDied) -> ProgramFault:
    """What brought a sandbox down."""
    fault = Fault.MEMORY if "memory" in str(death) else Fault.RUNTIME_ERROR
    return ProgramFault(fault, str(death))
