"""`Session`: the guest's end of the Python session, a process of its own that may do anything."""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from palestra.tools.sandboxes.guest.frames import MAX_PAYLOAD_BYTES, READ_BYTES, Frames, Gone, pack
from palestra.tools.sandboxes.guest.output import PIPE_BYTES, Output
from palestra.tools.sandboxes.guest.waiting import HostGone, OutOfMemory, Waiting

# How long an interrupted session may take to answer before it is killed.
INTERRUPT_S = 0.06
# How long one that has closed its connection may take to end by itself.
LAST_WORDS_S = 0.02


class Session:
    """A running session.

    After each question `reason` is "", or why there is no answer to it: "timeout", "memory", or
    "died" for a session that has ended or broken its connection.
    """

    def __init__(self, waiting: Waiting, run: Callable[[int, int], None]) -> None:
        """Fork; the child calls `run(control_fd, output_fd)`, which never returns."""
        # Without the class that `socket` wraps around them.
        control, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        output_read, output_write = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = os.fork()
        except OSError:
            for fd in (control.detach(), theirs.detach(), output_read, output_write):
                os.close(fd)
            raise
        if self.pid == 0:
            try:
                control.close()
                os.close(output_read)
                run(theirs.fileno(), output_write)
            finally:
                os._exit(1)
        theirs.close()
        os.close(output_write)
        os.set_blocking(output_read, False)
        control.setblocking(False)
        self.control_fd, self.output_fd = control.detach(), output_read
        self.reason = ""
        self._waiting = waiting
        self._frames = Frames()
        self._outgoing = memoryview(b"")
        self._count = 0
        waiting.children.add(self.pid)

    def tell(self, settings: dict[str, Any]) -> None:
        """What it waits for before the first question; see `run_session`."""
        data = memoryview(pack(settings))
        while data:
            select.select([], [self.control_fd], [])
            data = data[os.write(self.control_fd, data) :]

    def ask(
        self,
        question: dict[str, Any],
        payload: bytes,
        output: Output,
        deadline: float,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    ) -> tuple[dict[str, Any], bytes]:
        """What it answers, and into `output` what it writes meanwhile; see `reason`.

        A late session is interrupted: it may answer for a moment longer.
        """
        Output(0).drain(self.output_fd)
        self._count += 1
        self._outgoing = memoryview(pack(dict(question, id=self._count), payload))
        self._frames.max_payload_bytes = max_payload_bytes
        answer = self._exchange(output, deadline)
        if self.reason == "timeout":
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)
            answer = self._exchange(output, time.monotonic() + INTERRUPT_S)
            self.reason = "timeout"
        output.drain(self.output_fd)
        return answer or ({}, b"")

    def _exchange(self, output: Output, deadline: float) -> tuple[dict[str, Any], bytes] | None:
        self.reason = ""
        try:
            return self._until_answered(output, deadline)
        except HostGone:
            raise
        except OutOfMemory:
            self.reason = "memory"
        except (Gone, OSError):
            self.reason = "died"
        return None

    def _until_answered(
        self, output: Output, deadline: float
    ) -> tuple[dict[str, Any], bytes] | None:
        interest = {self.output_fd: select.POLLIN, self.control_fd: 0}
        self._outgoing = self._outgoing[self._write() :]
        while time.monotonic() < deadline:
            interest[self.control_fd] = select.POLLIN | (select.POLLOUT if self._outgoing else 0)
            ready = self._waiting.wait(interest, deadline)
            if self.output_fd in ready and not output.read_from(self.output_fd):
                interest.pop(self.output_fd, None)  # it has closed its standard output
            events = ready.get(self.control_fd, 0)
            if events & select.POLLOUT:
                self._outgoing = self._outgoing[self._write() :]
            if events & ~select.POLLOUT:
                data = os.read(self.control_fd, READ_BYTES)
                if not data:
                    raise Gone
                self._frames.feed(data)
                # An answer to an earlier question may be late, or forged by the code in there.
                while (frame := self._frames.take()) is not None:
                    if frame[0].get("id") == self._count:
                        return frame
        self.reason = "timeout"
        return None

    def _write(self) -> int:
        try:
            return os.write(self.control_fd, self._outgoing[:PIPE_BYTES]) if self._outgoing else 0
        except BlockingIOError:
            return 0

    def end(self) -> str:
        """Kill it with its group; how it had ended, e.g. "exit status 0"."""
        children = self._waiting.children
        children.wait(self.pid, LAST_WORDS_S)
        children.kill(self.pid)
        os.close(self.control_fd)
        os.close(self.output_fd)
        status = children.take_status(self.pid)
        if status >= 0:
            return f"exit status {status}"
        with contextlib.suppress(ValueError):
            return "killed by " + signal.Signals(-status).name
        return f"killed by signal {-status}"
