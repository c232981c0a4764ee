"""`Sandbox`: where a policy's code runs. The interface of every backend, asynchronous and not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from palestra.tools import event_loop
from palestra.tools.sandboxes.limits import Capabilities
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.tools.trouble import OutOfResources

DEFAULT_TIMEOUT_S = 30.0


class SandboxDied(OutOfResources):
    """The sandbox is gone because of the code in it: exhausted, crashed or hung.

    The policy's doing, so the episode goes on or is scored. One that died through our fault or the
    infrastructure's raises `Failure` with the cause "sandbox:BACKEND" instead.
    """


class FileRefused(OSError):
    """A file that the sandbox does not read or write; the text says why."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecResult:
    """What a command came to.

    `exit_code` is negative for the signal that ended it. Long output has lost its middle, with a
    note. `ended` is "" or why it was killed: "timeout", "memory". `left_running` counts the
    processes that are still there beside the Python session, as far as the backend can see.
    """

    exit_code: int
    stdout: str
    stderr: str
    ended: str = ""
    left_running: int = 0

    @property
    def timed_out(self) -> bool:
        """Whether it was killed at its deadline."""
        return self.ended == "timeout"


@dataclass(frozen=True, kw_only=True, slots=True)
class PythonResult:
    """What code in the Python session came to.

    `output` is what was written to the standard output and error, `value` the repr of the last
    expression, `error` the traceback of an exception. `ended` is "" or why it was stopped:
    "timeout", "memory", "died". `died` says how the session ended if it did ("exit status 0",
    "killed by SIGSEGV"): its variables are lost. `restarted`: they had been lost before this call.
    """

    output: str = ""
    value: str = ""
    error: str = ""
    ended: str = ""
    died: str = ""
    restarted: bool = False
    left_running: int = 0

    @property
    def timed_out(self) -> bool:
        """Whether it was stopped at its deadline."""
        return self.ended == "timeout"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """An entry of a folder; `kind` is "file", "folder", "link" or "other"."""

    name: str
    kind: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The work folder as a tar and the Python session's variables, pickled.

    Made inside a sandbox, so as hostile as what is in it: it may be restored into a sandbox and
    must never be unpacked or unpickled outside. `dropped` names variables that cannot be pickled.
    """

    files: bytes
    variables: bytes
    dropped: tuple[str, ...] = ()


class Sandbox(ABC):
    """Runs commands and Python code, and holds files, for one episode.

    Paths are relative to the work folder, `/work` where the backend can name it. Calls wait for one
    another. A cancelled call ends the sandbox: nobody knows what is going on inside.

    Raises:
        SandboxDied: from any call, when the code inside has brought the sandbox down.
        Failure: from any call, when the host, the backend or palestra has (cause
            "sandbox:BACKEND").
    """

    backend: ClassVar[str]

    def __init__(self, spec: SandboxSpec) -> None:
        self.spec = spec

    @classmethod
    @abstractmethod
    def capabilities(cls, spec: SandboxSpec) -> Capabilities:
        """What this backend guarantees on this host for such a sandbox; quick, and cached."""

    @abstractmethod
    async def start(self) -> None:
        """Get ready for the first call."""

    @abstractmethod
    async def answers(self) -> bool:
        """Whether it is alive, asked of it."""

    @abstractmethod
    async def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> ExecResult:
        """Run a program (a sequence of arguments) or a shell command (a string) to its end.

        At the deadline its whole process group is killed; what it has written is returned.
        """

    @abstractmethod
    async def python(self, code: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PythonResult:
        """Run code in the Python session, whose variables live across calls.

        At the deadline it is interrupted and keeps its variables, or is killed and loses them.
        """

    @abstractmethod
    async def read(self, path: str, *, within: str | None = None) -> bytes:
        """A regular file's content.

        With `within`, a folder ("." is the work folder), no symbolic link is followed and nothing
        outside that folder is touched, whatever happens to the path meanwhile.

        Raises:
            OSError: e.g. FileNotFoundError, as `open` would; FileRefused for what is no regular
                file, too large, or outside of `within`.
        """

    @abstractmethod
    async def write(self, path: str, data: str | bytes, *, within: str | None = None) -> None:
        """Make a regular file, with its folders, or overwrite it. Raises as `read` does."""

    @abstractmethod
    async def list(self, path: str = ".", *, within: str | None = None) -> tuple[FileInfo, ...]:
        """A folder's entries, sorted by name, at most 10,000. Raises as `read` does."""

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """The files and variables of now. Raises FileRefused if they are too large."""

    @abstractmethod
    async def restore(self, snapshot: Snapshot) -> None:
        """Put a snapshot's files and variables into this sandbox: the other half of a fork."""

    @abstractmethod
    async def kill(self) -> None:
        """End every process in it and free what it holds. May be called more than once."""

    @property
    def sync(self) -> SyncSandbox:
        """The same sandbox for code that is not asynchronous."""
        return SyncSandbox(self)


class SyncSandbox:
    """The blocking face of a sandbox: the same methods, without `await`.

    >>> sandbox.sync.run("ls")
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def start(self) -> None:
        """See `Sandbox.start`."""
        event_loop.run(self._sandbox.start())

    def run(self, command: str | Sequence[str], **options: Any) -> ExecResult:
        """See `Sandbox.run`."""
        return event_loop.run(self._sandbox.run(command, **options))

    def python(self, code: str, **options: Any) -> PythonResult:
        """See `Sandbox.python`."""
        return event_loop.run(self._sandbox.python(code, **options))

    def read(self, path: str, **options: Any) -> bytes:
        """See `Sandbox.read`."""
        return event_loop.run(self._sandbox.read(path, **options))

    def write(self, path: str, data: str | bytes, **options: Any) -> None:
        """See `Sandbox.write`."""
        event_loop.run(self._sandbox.write(path, data, **options))

    def list(self, path: str = ".", **options: Any) -> tuple[FileInfo, ...]:
        """See `Sandbox.list`."""
        return event_loop.run(self._sandbox.list(path, **options))

    def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`."""
        return event_loop.run(self._sandbox.snapshot())

    def restore(self, snapshot: Snapshot) -> None:
        """See `Sandbox.restore`."""
        event_loop.run(self._sandbox.restore(snapshot))

    def kill(self) -> None:
        """See `Sandbox.kill`."""
        event_loop.run(self._sandbox.kill())
