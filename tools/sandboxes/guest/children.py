"""`Children`: the processes that the guest has started, how they ended, and what they left behind.

Also collects orphans, where the guest is the first process of its namespace.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from palestra.tools.sandboxes.guest.signals import (
    CHILD_ENDED,
    DEFAULT,
    do_nothing,
    set_handler,
)


class Children:
    """Tells the ends of processes, through `ended_fd` too."""

    def __init__(self) -> None:
        self.ended_fd = self._told_fd = -1
        self._running: set[int] = set()
        self._statuses: dict[int, int] = {}
        self._groups: set[int] = set()  # some may hold others than the process that founded them

    def watch(self) -> None:
        """Begin to be told."""
        # A signal only has to end a wait: a handler that does nothing, and a pipe that tells.
        self.ended_fd, self._told_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._told_fd, warn_on_full_buffer=False)
        set_handler(CHILD_ENDED, do_nothing)
        self._collect()  # who has ended before

    def add(self, pid: int) -> None:
        """A process that was started, the leader of a group of its own."""
        self._running.add(pid)
        self._groups.add(pid)

    def has_ended(self, pid: int) -> bool:
        """As far as `reap` has seen."""
        return pid not in self._running

    def take_status(self, pid: int) -> int:
        """Of one that has ended: its exit status, or the negative number of a signal."""
        self._running.discard(pid)
        return self._statuses.pop(pid, -signal.SIGKILL)

    def reap(self) -> None:
        """Collect every process that has ended, orphans included."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.ended_fd, 512):
                pass
        self._collect()

    def _collect(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._running:
                self._running.remove(pid)
                self._statuses[pid] = (
                    -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                )

    def wait(self, pid: int, timeout_s: float) -> bool:
        """Whether it has ended by then."""
        end = time.monotonic() + timeout_s
        while not self.has_ended(pid) and time.monotonic() < end:
            select.select([self.ended_fd], [], [], max(0.0, end - time.monotonic()))
            self.reap()
        return self.has_ended(pid)

    def kill(self, pid: int) -> None:
        """Kill its group, and wait for its own end."""
        kill_group(pid)
        if not self.has_ended(pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            self.wait(pid, 5.0)

    def kill_all(self) -> None:
        """Every group, so far as it has not left its group."""
        self.forget_groups()
        for pid in self._groups:
            kill_group(pid)

    def forget_groups(self) -> None:
        """Those that are empty: their numbers may be given to strangers."""
        for pid in list(self._groups):
            try:
                os.killpg(pid, 0)
            except ProcessLookupError:
                self._groups.discard(pid)
            except PermissionError:
                pass

    def close(self) -> None:
        """In a forked process: no longer be told."""
        if self.ended_fd < 0:
            return
        signal.set_wakeup_fd(-1)
        set_handler(CHILD_ENDED, DEFAULT)
        os.close(self.ended_fd)
        os.close(self._told_fd)
        self.ended_fd = self._told_fd = -1


def kill_group(pid: int) -> None:
    """SIGKILL for all of a group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
