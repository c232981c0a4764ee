"""`LeasedSandbox`: an episode's sandbox, taken from a pool when first used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from palestra.tools.sandboxes.choose import choose
from palestra.tools.sandboxes.limits import Capabilities
from palestra.tools.sandboxes.pool import pool_of
from palestra.tools.sandboxes.sandbox import (
    DEFAULT_TIMEOUT_S,
    ExecResult,
    FileInfo,
    PythonResult,
    Sandbox,
    SandboxDied,
    Snapshot,
)
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.tools.sandboxes.turns import Turns
from palestra.types import Failure

T = TypeVar("T")

_REPLACED = "The next call gets a new one: files, variables and processes are gone"


class LeasedSandbox(Sandbox):
    """Stands for one sandbox after the other: where one has died, the next call gets a new one.

    `prepare` is called with each before its first use, to put files there, for example. `kill`
    gives the sandbox back to its pool, which destroys it.
    """

    backend: ClassVar[str] = "leased"

    def __init__(
        self,
        spec: SandboxSpec,
        *,
        prepare: Callable[[Sandbox], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(spec)
        self._pool = pool_of(spec)
        self._prepare = prepare
        self._sandbox: Sandbox | None = None
        self._cut_off: Sandbox | None = None  # a call in it was cancelled, which ends it
        self._turns = Turns()
        self._closed = False

    @classmethod
    def capabilities(cls, spec: SandboxSpec) -> Capabilities:
        return choose(spec).capabilities(spec)

    async def start(self) -> None:
        """Take one now, rather than at the first call."""
        await self._current()

    async def answers(self) -> bool:
        return await self._through(lambda sandbox: sandbox.answers())

    async def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> ExecResult:
        return await self._through(
            lambda sandbox: sandbox.run(command, stdin=stdin, env=env, cwd=cwd, timeout_s=timeout_s)
        )

    async def python(self, code: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PythonResult:
        return await self._through(lambda sandbox: sandbox.python(code, timeout_s=timeout_s))

    async def read(self, path: str, *, within: str | None = None) -> bytes:
        return await self._through(lambda sandbox: sandbox.read(path, within=within))

    async def write(self, path: str, data: str | bytes, *, within: str | None = None) -> None:
        await self._through(lambda sandbox: sandbox.write(path, data, within=within))

    async def list(self, path: str = ".", *, within: str | None = None) -> tuple[FileInfo, ...]:
        return await self._through(lambda sandbox: sandbox.list(path, within=within))

    async def snapshot(self) -> Snapshot:
        return await self._through(lambda sandbox: sandbox.snapshot())

    async def restore(self, snapshot: Snapshot) -> None:
        await self._through(lambda sandbox: sandbox.restore(snapshot))

    async def kill(self) -> None:
        self._closed = True
        await self._give_back()

    async def _current(self) -> Sandbox:
        async with self._turns:
            if self._closed:
                raise Failure("sandbox:leased", "it was used after its episode had ended")
            if self._sandbox is None:
                sandbox = self._sandbox = await self._pool.acquire()
                if self._prepare is not None:
                    await self._prepare(sandbox)
            return self._sandbox

    async def _through(self, call: Callable[[Sandbox], Awaitable[T]]) -> T:
        sandbox = await self._current()
        try:
            return await call(sandbox)
        except SandboxDied as death:
            await self._give_back(sandbox)
            raise SandboxDied(f"{death}. {_REPLACED}") from None
        except asyncio.CancelledError:
            self._cut_off = sandbox
            raise
        except Failure:
            await self._give_back(sandbox)
            if sandbox is self._cut_off:
                # Its end is the work of whoever had no more time for what ran in it.
                raise SandboxDied(f"the sandbox ended: a call was cut off. {_REPLACED}") from None
            raise

    async def _give_back(self, dead: Any = None) -> None:
        sandbox = self._sandbox
        if sandbox is None or (dead is not None and sandbox is not dead):
            return  # another call has noticed before
        self._sandbox = None
        await self._pool.release(sandbox)
