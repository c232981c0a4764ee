"""`UnsafeSandbox`: a plain subprocess. It protects nothing, and is never chosen unless named."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import Any, ClassVar

from palestra.tools.sandboxes.blocking import run_blocking
from palestra.tools.sandboxes.channel import Channel, SocketChannel
from palestra.tools.sandboxes.guest_sandbox import Death, GuestSandbox, guest_source
from palestra.tools.sandboxes.limits import Capabilities, Guarantee
from palestra.tools.sandboxes.spec import SandboxSpec

_logger = logging.getLogger(__name__)


class UnsafeSandbox(GuestSandbox):
    """Runs code as this user, on this host, with nothing but limits per process.

    For code that is trusted, and for machines that offer nothing better. The work folder is a
    temporary one.
    """

    backend: ClassVar[str] = "unsafe"

    @classmethod
    def capabilities(cls, spec: SandboxSpec) -> Capabilities:
        return Capabilities(
            backend=cls.backend,
            guarantees={Guarantee.MEMORY_PER_PROCESS: "rlimit on private memory"},
        )

    async def _launch(self) -> Channel:
        _logger.warning(
            "an unsafe sandbox starts: what runs in it can do everything that this user can"
        )
        return await run_blocking(self._start_process)

    def _start_process(self) -> Channel:
        self.home = tempfile.mkdtemp(prefix="palestra-unsafe-")
        ours, theirs = socket.socketpair()
        with theirs:
            fd = str(theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", guest_source(), fd, fd],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.home,
                env={},
                start_new_session=True,
            )
        return SocketChannel(ours)

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        settings["env"]["TMPDIR"] = self.home
        return settings

    async def _terminate(self) -> None:
        if not hasattr(self, "_process"):
            return
        # The guest kills what it has started as soon as its connection closes.
        try:
            await run_blocking(self._process.wait, 15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await run_blocking(self._process.wait)
        shutil.rmtree(self.home, ignore_errors=True)

    async def _find_cause(self) -> Death:
        # Nothing separates what the code in it may have done from what anyone else has.
        return Death(own=True, how="its process ended")
