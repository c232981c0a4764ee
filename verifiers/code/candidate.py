"""`Candidate`: the program under test, in a sandbox of its own that no other program has seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from palestra.tools.sandboxes import PythonResult, Sandbox, SandboxDied
from palestra.verifiers.code.bundle import bundle
from palestra.verifiers.code.limits import Clock
from palestra.verifiers.code.own_sandbox import OwnSandbox, fault_of_death
from palestra.verifiers.code.verdict import Fault, ProgramFault


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
        setup = (
            bundle("plain", "serve")
            + f"server = module.Server({self._sandbox.limits.max_chars})\n"
            + f"server.load({list(self._sources)!a}, {self._module!r})"
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
        return await self._run(sandbox, f"server.answer({question!a})", clock)

    async def _run(self, sandbox: Sandbox, code: str, clock: Clock) -> str:
        timeout_s = clock.for_one()
        try:
            result = await sandbox.python(code, timeout_s=timeout_s)
        except SandboxDied as death:
            self._loaded = False
            await self._sandbox.drop()
            raise fault_of_death(death) from None
        self.output = result.output
        lost = self._loaded and result.restarted  # it has ended since the last call
        if lost or result.died or result.ended == "died":
            self._loaded = False
        if lost or result.ended or result.error:
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
