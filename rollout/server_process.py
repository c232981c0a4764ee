"""`ServerProcess`: a model server of ours, started, watched, started again and cleanly stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from palestra.rollout import server_guard
from palestra.rollout.engine_errors import EngineError, ServerNotStarted
from palestra.rollout.token_client import TokenClient

_POLL_S = 0.25
_GUARD_TIMEOUT_S = 10.0
# Below the ports that Linux gives to outgoing connections: a server that is started again finds
# its port still free.
_PORTS = range(20_000, 32_000)
_TAIL_BYTES = 64 * 1024
# "RuntimeError: why", behind whatever the server's logger puts in front.
_COMPLAINT = re.compile(r"\b(?:[A-Za-z_][\w.]*(?:Error|Exception|Exit)|error): +(\S.*)")
_PYDANTIC = re.compile(r"(?:Value|Assertion) error, (.*?)(?: \[type=.*)?$")
# These only say that something else went wrong.
_CONSEQUENCES = ("initialization failed", "See root cause above", "Failed core proc")


class ServerProcess:
    """A server on a free port of this machine, which does not outlive this process.

    Its output is appended to `log_path`. A process of its own guards it (`server_guard.py`): when
    this process ends, even killed, or the server does, nothing that the server started remains.
    One object belongs to one event loop.

    Args:
        command: the server's command line, given the port that it must listen on.
        name: what messages call it.
        env: variables added to this process's environment.
        ready_path: answers 200 once the server is ready.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        *,
        name: str,
        log_path: str | Path,
        env: Mapping[str, str] | None = None,
        ready_path: str = "/health",
        start_timeout_s: float = 300.0,
    ) -> None:
        self.name = name
        self.log_path = Path(log_path)
        self.pid = 0
        self._port = 0
        self._command = command
        self._env = dict(env or {})
        self._ready_path = ready_path
        self._start_timeout_s = start_timeout_s
        self._guard: subprocess.Popen[bytes] | None = None
        self._control = -1
        self._ended: asyncio.Future[str] | None = None
        self._log_start = 0

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def alive(self) -> bool:
        """Whether the server's process runs (it may not be ready yet)."""
        return self._ended is not None and not self._ended.done()

    async def start(self) -> None:
        """Start it and return when it is ready. Cancelling stops it.

        Raises:
            ServerNotStarted: it ended, or was not ready in `start_timeout_s` seconds; with its
                reason, as its log has it.
        """
        assert not self.alive, "the server runs already"
        if not self._port or not _is_free(self._port):
            self._port = _free_port()
        try:
            await self._spawn()
            async with asyncio.timeout(self._start_timeout_s):
                await self._until_ready()
        except TimeoutError:
            await self.stop(grace_s=0)
            raise ServerNotStarted(
                f"{self.name} was not ready after {self._start_timeout_s:g} s: {self.cause()} "
                f"(log: {self.log_path})"
            ) from None
        except BaseException:
            await self.stop(grace_s=0)
            raise

    async def wait(self) -> str:
        """Wait until the server has ended; how it did and why, e.g. "signal SIGKILL"."""
        assert self._ended is not None, "the server was never started"
        return await asyncio.shield(self._ended)

    async def restart(self) -> None:
        """Stop what runs of it and start it again, on the same port where that is free."""
        await self.stop()
        await self.start()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Ask it to stop; after `grace_s` seconds kill it and all it started."""
        if self._guard is None:
            return
        guard, self._guard = self._guard, None
        assert self._ended is not None
        if grace_s > 0 and not self._ended.done():
            with contextlib.suppress(OSError, TimeoutError):
                os.write(self._control, b"stop")
                await asyncio.wait_for(asyncio.shield(self._ended), grace_s)
        os.close(self._control)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._ended), _GUARD_TIMEOUT_S)
        _end_guard(guard)

    def cause(self) -> str:
        """What its log says went wrong since it was last started, in one line."""
        try:
            with self.log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError as error:
            return f"its log cannot be read: {error.strerror}"
        return find_cause(lines)

    async def _spawn(self) -> None:
        """Start the guard, which starts the server, and watch its reports."""
        report = self._start_guard()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        started: asyncio.Future[None] = loop.create_future()
        self._ended = ended
        reports = os.fdopen(report, "rb", buffering=0)
        received = bytearray()

        def read() -> None:
            chunk = reports.read(4096)
            received.extend(chunk or b"")
            first, newline, rest = received.decode().partition("\n")
            if newline and not started.done():
                self.pid = int(first) if first.isdigit() else 0
                started.set_result(None)
            if not chunk:
                loop.remove_reader(reports)
                reports.close()
                if not ended.done():
                    ended.set_result(self._obituary(rest.strip() if first.isdigit() else first))
                if not started.done():
                    started.set_result(None)

        loop.add_reader(reports, read)
        await started

    def _start_guard(self) -> int:
        """Start the guard process; the file descriptor of its reports."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        control, self._control = os.pipe()
        report, report_end = os.pipe()
        guard = [sys.executable, "-I", server_guard.__file__, str(control), str(report_end)]
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._guard = subprocess.Popen(
                [*guard, *self._command(self._port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(control, report_end),
                env={**os.environ, **self._env},
                start_new_session=True,  # Ctrl-C is for us, who then stop it
            )
        os.close(control)
        os.close(report_end)
        return report

    async def _until_ready(self) -> None:
        client = TokenClient(self.base_url, max_connections=1, retry_s=0)
        try:
            while True:
                if not self.alive:
                    how = await self.wait()
                    raise ServerNotStarted(
                        f"{self.name} did not start ({how}; log: {self.log_path})"
                    )
                with contextlib.suppress(EngineError, TimeoutError):
                    await client.get(self._ready_path, timeout_s=5.0)
                    return
                await asyncio.sleep(_POLL_S)
        finally:
            await client.close()

    def _obituary(self, status: str) -> str:
        """How it ended, from its exit status as the guard reports it, and why."""
        if not status.lstrip("-").isdigit():
            return status or "its guard was killed"
        code = int(status)
        if code == -signal.SIGKILL:  # without a word: by the kernel when out of memory, or by hand
            return "signal SIGKILL"
        how = f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        return f"{how}: {self.cause()}"


def find_cause(lines: Sequence[str]) -> str:
    """The line of a server's output that tells best why it failed.

    It is the last complaint that is not just the consequence of another one, else the last line.
    """
    for line in reversed(lines):
        if any(words in line for words in _CONSEQUENCES):
            continue
        if match := _PYDANTIC.search(line) or _COMPLAINT.search(line):
            return match[0].strip()
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")


def _end_guard(guard: subprocess.Popen[bytes]) -> None:
    """Collect the guard; if it hangs or was killed, kill what is left in its session."""
    if guard.poll() != 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
    guard.wait()


def _free_port() -> int:
    """A port of this machine that nobody listens on."""
    for port in random.sample(_PORTS, 100):
        if _is_free(port):
            return port
    raise ServerNotStarted(f"no free port found in {_PORTS.start} to {_PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
