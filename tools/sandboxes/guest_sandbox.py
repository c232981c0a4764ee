"""`GuestSandbox`: what all backends share. They start the guest their own way; this talks to it."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from palestra.tools.sandboxes.channel import Channel, Closed, Garbled
from palestra.tools.sandboxes.sandbox import (
    DEFAULT_TIMEOUT_S,
    ExecResult,
    FileInfo,
    FileRefused,
    PythonResult,
    Sandbox,
    SandboxDied,
    Snapshot,
)
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.tools.sandboxes.turns import Turns
from palestra.types import Failure

T = TypeVar("T")

WORK_FOLDER = "/work"
MAX_ENTRIES = 10_000
# How long after a call's deadline, which the guest keeps, its answer may come on a busy host.
GRACE_S = 5.0
START_TIMEOUT_S = 60.0
SNAPSHOT_TIMEOUT_S = 30.0
# The names of as many entries, at their longest and each byte escaped.
_LIST_BYTES = MAX_ENTRIES * 255 * 6
_KINDS = {"-": "file", "d": "folder", "l": "link"}


def environment_in(home: str) -> dict[str, str]:
    """The variables of every sandbox, whatever its specification adds."""
    return {
        "HOME": home,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@cache
def bundle(name: str, *, dense_after: tuple[str, ...] = ()) -> str:
    """A module of this folder with those that it imports, for an interpreter without palestra.

    Running the text defines the module's `main`, and does not call it. With `dense_after` the
    modules lie close together in memory, after those of the standard library and these.
    """
    wanted, loader = f"{__package__}.{name}", f"{__package__}.guest.loader"
    sources: dict[str, str] = {}
    others: dict[str, None] = {}
    _collect(wanted, sources, others)
    _collect(loader, sources, others)
    others = {name: None for name in others if not name.startswith(__package__)}
    load = f"load({wanted!r})"
    if dense_after:
        load = f"load_densely({wanted!r}, {[*others, *dense_after]!r})"
    return (
        f"names = {{}}\nsources = {sources!r}\n"
        f"exec(sources[{loader!r}], names)\n"
        f"main = names['Loader'](sources).{load}.main\n"
    )


def _collect(module: str, sources: dict[str, str], others: dict[str, None]) -> None:
    """Add a module's source and those of its imports within this folder; name the others."""
    path = Path(__file__).parent / f"{module[len(__package__) + 1 :].replace('.', '/')}.py"
    if module in sources or not path.exists():  # a name in a module, or a package
        return
    sources[module] = path.read_text(encoding="utf-8")
    tree = ast.parse(sources[module])
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(__package__):
            for imported in (node.module, *(f"{node.module}.{a.name}" for a in node.names)):
                _collect(str(imported), sources, others)
    for statement in tree.body:  # what is imported later is not needed by all
        if isinstance(statement, ast.Import):
            others.update(dict.fromkeys(alias.name for alias in statement.names))
        elif isinstance(statement, ast.ImportFrom):
            others[str(statement.module)] = None


def guest_source() -> str:
    """The program that runs inside, for `python3 -I -c TEXT READ_FD WRITE_FD`."""
    return bundle("guest.server") + "import sys\nmain(int(sys.argv[1]), int(sys.argv[2]))\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """Why a sandbox is gone: `own` code in it, or else something proven to be outside of it."""

    own: bool
    how: str


class GuestSandbox(Sandbox):
    """A sandbox with the guest inside, at the other end of a channel."""

    def __init__(self, spec: SandboxSpec) -> None:
        super().__init__(spec)
        self.home = WORK_FOLDER
        self._channel: Channel | None = None
        self._turns = Turns()
        self._calling = False
        self._started = 0.0
        self._death: Death | None = None

    @abstractmethod
    async def _launch(self) -> Channel:
        """Start the guest. Raises Failure if the host or the backend cannot."""

    @abstractmethod
    async def _terminate(self) -> None:
        """End every process and free everything. Called once; raises nothing."""

    @abstractmethod
    async def _find_cause(self) -> Death:
        """Why the guest has closed the connection; called before `_terminate`."""

    def _settings(self) -> dict[str, Any]:
        """What the guest is told at the beginning; backends add what the kernel cannot hold."""
        limits = self.spec.limits
        return {
            "home": self.home,
            "env": {**environment_in(self.home), **dict(self.spec.env)},
            "output_bytes": limits.output_bytes,
            "wall_s": limits.wall_s,
            "watched_mb": 0,
            "protect": True,
            "preload": list(self.spec.preload),
            "rlimits": {
                "CORE": 0,
                "NOFILE": 512,
                "FSIZE": limits.disk_mb << 20,
                "DATA": limits.memory_mb << 20,
            },
        }

    async def start(self) -> None:
        self._started = time.monotonic()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                self._channel = await self._launch()
        except TimeoutError:
            await self._end(Death(own=False, how="it did not start in time"))
            raise self._failure() from None
        except BaseException:
            await self._end(Death(own=False, how="it could not be started"))
            raise
        try:
            request = {"op": "hello", **self._settings()}
            await self._ask(_nothing, request, timeout_s=START_TIMEOUT_S)
        except SandboxDied as death:  # no code of a policy's has run yet
            raise Failure(f"sandbox:{self.backend}", f"it did not start: {death}") from None
        except OSError as error:  # what the guest says that it could not do
            await self._end(Death(own=False, how=f"it did not start: {error}"))
            raise self._failure() from None

    async def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> ExecResult:
        argv = ["sh", "-c", command] if isinstance(command, str) else [str(a) for a in command]
        if not argv or any("\0" in text for text in (*argv, *(env or {}).values(), cwd or "")):
            return ExecResult(exit_code=126, stdout="", stderr="a NUL or nothing is no command")
        request = {
            "op": "run",
            "argv": argv,
            "env": dict(env or {}),
            "cwd": cwd or "",
            "timeout_s": timeout_s,
        }
        data = stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin
        try:
            return await self._ask(_exec_result, request, data, timeout_s=timeout_s)
        except OSError as error:  # no such program, no such folder
            return ExecResult(exit_code=127, stdout="", stderr=f"{_shown(argv[0][:200])}: {error}")

    async def python(self, code: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PythonResult:
        request = {"op": "python", "timeout_s": timeout_s}
        source = code.encode("utf-8", "replace")
        try:
            return await self._ask(_python_result, request, source, timeout_s=timeout_s)
        except OSError as error:  # too many processes or too little memory for a session
            return PythonResult(ended="died", died=f"it could not be started: {error}")

    async def read(self, path: str, *, within: str | None = None) -> bytes:
        request = self._file_request("read", path, within)
        request["max_bytes"] = self.spec.limits.file_bytes
        return await self._ask(lambda _, data: data, request, timeout_s=DEFAULT_TIMEOUT_S)

    async def write(self, path: str, data: str | bytes, *, within: str | None = None) -> None:
        content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        if len(content) > self.spec.limits.file_bytes:
            raise FileRefused(
                f"{_shown(path)}: {len(content):,} bytes are more than the "
                f"{self.spec.limits.file_bytes:,} that may be written"
            )
        request = self._file_request("write", path, within)
        await self._ask(_nothing, request, content, timeout_s=DEFAULT_TIMEOUT_S)

    async def list(self, path: str = ".", *, within: str | None = None) -> tuple[FileInfo, ...]:
        request = {**self._file_request("list", path, within), "max_entries": MAX_ENTRIES}
        return await self._ask(_entries, request, timeout_s=DEFAULT_TIMEOUT_S)

    async def snapshot(self) -> Snapshot:
        request = {
            "op": "snapshot",
            "timeout_s": SNAPSHOT_TIMEOUT_S,
            "max_bytes": self._most_bytes(),
        }
        return await self._ask(_snapshot, request, timeout_s=2 * SNAPSHOT_TIMEOUT_S)

    async def restore(self, snapshot: Snapshot) -> None:
        request = {"op": "restore", "timeout_s": SNAPSHOT_TIMEOUT_S, "files": len(snapshot.files)}
        content = snapshot.files + snapshot.variables
        await self._ask(_nothing, request, content, timeout_s=2 * SNAPSHOT_TIMEOUT_S)

    async def kill(self) -> None:
        await self._end(Death(own=False, how="it was killed by its owner"))

    async def answers(self) -> bool:
        if self._channel is None or self._death is not None:
            return False
        try:
            await self._ask(_nothing, {"op": "ping"}, timeout_s=1.0)
        except (OSError, SandboxDied, Failure):
            return False
        return True

    def _file_request(self, op: str, path: str, within: str | None) -> dict[str, Any]:
        if not path or "\0" in path:
            raise FileRefused("a path needs at least one character and no NUL")
        return {"op": op, "path": path, "within": within or ""}

    async def _ask(
        self,
        read: Callable[[dict[str, Any], bytes], T],
        request: dict[str, Any],
        payload: bytes = b"",
        *,
        timeout_s: float,
    ) -> T:
        """One question, and its answer as `read` understands it.

        A sandbox that gives none, or one that cannot be understood, is ended.
        """
        async with self._turns:
            if self._death is not None:
                raise self._failure()
            assert self._channel is not None, "start() comes first"
            try:
                self._calling = True
                async with asyncio.timeout(timeout_s + GRACE_S):
                    await self._channel.send(request, payload)
                    answer, data = await self._channel.receive(self._most_bytes())
                _raise_refusal(answer, request)
                return read(answer, data)
            except TimeoutError:
                await self._end(Death(own=True, how="it no longer answers"))
            except (
                *(Garbled, ArithmeticError, AttributeError),
                *(LookupError, RecursionError, TypeError, ValueError),
            ) as error:
                await self._end(Death(own=True, how=f"it broke its connection: {error}"))
            except Closed:
                await self._end(await self._why_closed())
            except asyncio.CancelledError:
                await self._end(Death(own=False, how="a call was cancelled"))
                raise
            finally:
                self._calling = False
                self._close_if_dead()
            raise self._failure()

    async def _why_closed(self) -> Death:
        if time.monotonic() - self._started >= self.spec.limits.wall_s:
            return Death(own=True, how=f"its {self.spec.limits.wall_s:g} s of life are over")
        return await self._find_cause()

    def _most_bytes(self) -> int:
        limits = self.spec.limits
        bounds = (3 * limits.output_bytes, limits.file_bytes, limits.disk_mb << 21, _LIST_BYTES)
        return max(bounds) + (1 << 20)

    def _failure(self) -> SandboxDied | Failure:
        assert self._death is not None
        if self._death.own:
            return SandboxDied(f"the sandbox ended: {self._death.how}")
        return Failure(f"sandbox:{self.backend}", self._death.how)

    def _close_if_dead(self) -> None:
        if self._death is not None and self._channel is not None and not self._calling:
            self._channel.close()

    async def _end(self, death: Death) -> None:
        if self._death is not None:
            return
        self._death = death
        if self._channel is not None:
            # A call that waits there, perhaps on another event loop, closes it when it has noticed.
            self._channel.shut_down()
            self._close_if_dead()
        # Whoever cancels this must not leave processes behind.
        await asyncio.shield(asyncio.ensure_future(self._terminate()))


def _raise_refusal(answer: dict[str, Any], request: Mapping[str, Any]) -> None:
    """Raise what the guest says that it could not do."""
    path = str(request.get("path", ""))
    if "refused" in answer:
        text = str(answer["refused"])[:1000]
        raise FileRefused(f"{_shown(path)}: {text}" if path else text)
    if "errno" in answer:
        number = int(answer["errno"])
        raise OSError(number, os.strerror(number), path or str(answer["path"])[:1000])


def _shown(name: str) -> str:
    """A name that a policy chose, for a message: no line breaks, marks of direction, surrogates."""
    return name if name.isprintable() else ascii(name)


def _nothing(answer: dict[str, Any], data: bytes) -> None:
    return None


def _exec_result(answer: dict[str, Any], data: bytes) -> ExecResult:
    count = int(answer["stdout"][0])
    return ExecResult(
        exit_code=int(answer["exit_code"]),
        stdout=_decoded(data[:count], answer["stdout"]),
        stderr=_decoded(data[count:], answer["stderr"]),
        ended=str(answer["ended"]),
        left_running=int(answer["left_running"]),
    )


def _python_result(answer: dict[str, Any], data: bytes) -> PythonResult:
    output_end = int(answer["output"][0])
    value_end = output_end + int(answer["value"][0])
    return PythonResult(
        output=_decoded(data[:output_end], answer["output"]),
        value=_decoded(data[output_end:value_end], answer["value"]),
        error=_decoded(data[value_end:], answer["error"]),
        ended=str(answer["ended"]),
        died=str(answer["died"]),
        restarted=bool(answer["restarted"]),
        left_running=int(answer["left_running"]),
    )


def _entries(answer: dict[str, Any], data: bytes) -> tuple[FileInfo, ...]:
    return tuple(
        FileInfo(name=str(name), kind=_KINDS.get(kind, "other"), size_bytes=int(size))
        for name, kind, size in json.loads(data)
    )


def _snapshot(answer: dict[str, Any], data: bytes) -> Snapshot:
    count = int(answer["files"])
    dropped = tuple(str(name) for name in answer["dropped"] or ())
    return Snapshot(files=data[:count], variables=data[count:], dropped=dropped)


def _decoded(data: bytes, counts: Sequence[int]) -> str:
    """Output as text; what is binary is only named. Counts: bytes kept, at the beginning, cut."""
    _, head_bytes, cut_bytes = map(int, counts)
    if head_bytes < 0 or cut_bytes < 0:
        raise ValueError("a negative count")
    if b"\0" in data:
        return f"[binary output, {len(data) + cut_bytes:,} bytes, not shown]"
    if not cut_bytes:
        return data.decode("utf-8", "replace")
    head, tail = data[:head_bytes], data[head_bytes:]
    return (
        head.decode("utf-8", "replace")
        + f"\n[… {cut_bytes:,} bytes cut …]\n"
        + tail.decode("utf-8", "replace")
    )
