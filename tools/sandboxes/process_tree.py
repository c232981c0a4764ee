"""Processes below this one: found, counted, killed to the last. Bundled into keepers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

END_S = 10.0


def wake_at_ends() -> int:
    """A descriptor that can be read from when a child has ended."""
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return woken


def reap_orphans(spared: int) -> None:
    """Collect the children that have ended, but not this one: they count as processes."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == spared:
                return  # its end is noticed by itself
            os.waitpid(ended.si_pid, os.WNOHANG)


def children(pid: int) -> list[int]:
    """The processes that this one is the parent of."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def descendants(spared: Collection[int] = ()) -> list[int]:
    """All processes below this one, except those named and what is below them."""
    found = [pid for pid in children(os.getpid()) if pid not in spared]
    for pid in found:
        found += children(pid)
    return found


def kill_descendants(spared: Collection[int] = ()) -> None:
    """Kill and reap until nothing is left; what is orphaned on the way comes to this process."""
    deadline = time.monotonic() + END_S
    while (pids := descendants(spared)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.001)
