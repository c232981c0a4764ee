"""`Candidate`: the program under test, in a sandbox of its own that no other program has seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from palestra.tools.sandboxes import PythonResult, Sandbox, SandboxDied, SandboxPool, pool_of
from palestra.tools.threads import run_in_thread
from palestra.types import Failure
from palestra.verifiers.code.bundle import bundle
from palestra.verifiers.code.limits import Clock, CodeLimits
from palestra.verifiers.code.verdict import Fault, ProgramFault

SETUP_TIMEOUT_S = 30.0
# Beside the reply: what the session adds to it.
_SLACK_CHARS = 1 << 10


class OwnSandbox:
    """A sandbox from the pool for one program; one that the program has brought down is replaced."""

    def __init__(self, limits: CodeLimits, pool: SandboxPool) -> None:
        self.limits = limits
        self._pool = pool
        self._sandbox: Sandbox | None = None

    async def current(self) -> Sandbox:
        """The sandbox, started. Raises Failure if there is none to be had."""
        if self._sandbox is None:
            self._sandbox = await self._pool.acquire()
        return self._sandbox

    async def drop(self) -> None:
        """Destroy it; the next one is a new one."""
        if self._sandbox is not None:
            sandbox, self._sandbox = self._sandbox, None
            # Whoever cancels this must not leave a place of the pool taken.
            await asyncio.shield(asyncio.ensure_future(self._pool.release(sandbox)))


@contextlib.asynccontextmanager
async def own_sandbox(limits: CodeLimits) -> AsyncIterator[OwnSandbox]:
    """A fresh sandbox, taken at once and destroyed at the end.

    Raises Failure (cause "sandbox") where no backend gives what the specification requires.
    """
    try:
        pool = await run_in_thread(lambda: pool_of(limits.spec))
    except ValueError as error:
        raise Failure("sandbox", str(error)) from None
    sandbox = OwnSandbox(limits, pool)
    try:
        await sandbox.current()
        yield sandbox
    finally:
        await sandbox.drop()


def fault_of_death(death: SandboxDied) -> ProgramFault:
    """What brought a sandbox down."""
    fault = Fault.MEMORY if "memory" in str(death) else Fault.RUNTIME_ERROR
    return ProgramFault(fault, str(death))


class Candidate:
    """A program that answers questions about its functions; replies are hostile text."""

    def __init__(self, sandbox: OwnSandbox, sources: Sequence[str], module: str) -> None:
        self._sandbox = sandbox
        self._sources = sources
        self._module = module
        self._loaded = False
        self.output = ""  # what it wrote while it answered the last question

    async def load(self, clock: Clock) -> None:
        """Run the program as a module. Raises ProgramFault if it does not compile or raises."""
        sandbox = await self._sandbox.current()
        most_chars = self._sandbox.limits.spec.limits.output_bytes - _SLACK_CHARS
        setup = (
            bundle("serve", "plain")
            + f"server = module.Server({most_chars})\n"
            + f"server.load({ascii(list(self._sources))}, {self._module!r})"
        )
        reply = _parsed(await self._run(sandbox, setup, clock))
        if reply[:1] == ["compile"]:
            raise ProgramFault(Fault.COMPILE_ERROR, ": ".join(map(str, reply[1:3])))
        if reply[:1] == ["raised"]:
            raise raised(reply)
        self._loaded = True

    async def ask(self, question: str, clock: Clock) -> str:
        """The reply to a question (see guest/serve.py). Raises ProgramFault if there is none."""
        if not self._loaded:  # it has ended itself meanwhile
            await self.load(clock)
        sandbox = await self._sandbox.current()
        return await self._run(sandbox, f"server.answer({ascii(question)})", clock)

    async def _run(self, sandbox: Sandbox, code: str, clock: Clock) -> str:
        timeout_s = clock.for_one()
        try:
            result = await sandbox.python(code, timeout_s=timeout_s)
        except SandboxDied as death:
            self._loaded = False
            await self._sandbox.drop()
            raise fault_of_death(death) from None
        self.output = result.output
        if result.died or result.ended == "died":
            self._loaded = False
        if result.ended or result.error or result.restarted:
            raise _fault_of(result, timeout_s)
        return result.value


def raised(reply: Sequence[Any]) -> ProgramFault:
    """The fault that a reply of the kind "raised" tells of."""
    try:
        name = str(reply[1][0][1])
        message = str(reply[2])
    except (LookupError, TypeError):
        name = message = ""
    fault = Fault.MEMORY if name == "MemoryError" else Fault.RUNTIME_ERROR
    return ProgramFault(fault, f"{name}: {message}".removesuffix(": "))


def _fault_of(result: PythonResult, timeout_s: float) -> ProgramFault:
    if result.ended == "timeout":
        return ProgramFault(Fault.TIMEOUT, f"no answer after {timeout_s:.3g} s")
    if result.ended == "memory":
        return ProgramFault(Fault.MEMORY)
    last_line = (result.error.strip().splitlines() or [""])[-1]
    return ProgramFault(Fault.RUNTIME_ERROR, result.died or last_line)


def _parsed(text: str) -> list[Any]:
    """A reply as data; an empty list for what is none."""
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return reply if isinstance(reply, list) else []
