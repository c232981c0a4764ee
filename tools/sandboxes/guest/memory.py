"""The memory of all processes of a namespace together, where no control group holds it.

Also which of them the kernel should kill first.
"""

from __future__ import annotations

import os
import resource
import signal

_PAGE_KB = resource.getpagesize() >> 10


def pids() -> list[int]:
    """All processes that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


class Census:
    """How many processes there are, counted only when one may have been added."""

    def __init__(self) -> None:
        self._fd = -1
        self._latest = b""
        self._count = 0

    def open(self) -> None:
        """Begin, in the namespace whose processes are to be counted."""
        # Its last number is the latest process identifier of this namespace.
        try:
            self._fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self._latest = b""

    def count(self) -> int:
        """All processes, this one included."""
        latest = os.pread(self._fd, 64, 0).split()[-1] if self._fd >= 0 else b""
        # Where nothing but the guest and its session was left, there is no less to be found.
        if not latest or latest != self._latest or self._count > 2:
            self._count = len(pids())
            self._latest = latest
        return self._count

    def close(self) -> None:
        """In a forked process."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def enforce_total(limit_mb: int) -> bool:
    """Kill every process but this one if together they hold too much; whether it did.

    Only for the first process of a namespace.
    """
    if not holds_more_than([pid for pid in pids() if pid != os.getpid()], limit_mb):
        return False
    if os.getpid() == 1:
        os.kill(-1, signal.SIGKILL)
    return True


def holds_more_than(pids: list[int], limit_mb: int) -> bool:
    """Whether they hold more memory together."""
    if sum(map(_resident_kb, pids)) <= limit_mb << 10:
        return False
    # What fork shares is counted once only by the slower measure.
    return sum(map(_proportional_kb, pids)) > limit_mb << 10


def _resident_kb(pid: int) -> int:
    try:
        fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 256).split()[1]) * _PAGE_KB
        finally:
            os.close(fd)
    except (OSError, IndexError):
        return 0


def _proportional_kb(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except OSError:
        return _resident_kb(pid)


class KillOrder:
    """Whom the kernel should kill first when memory is short: what this process starts, not it."""

    def __init__(self) -> None:
        self._fd = -1
        self._usual = b""

    def open(self) -> None:
        """Begin, for this process."""
        # Opened early: a process that may not be looked into cannot open this later.
        try:
            self._fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
            self._usual = os.read(self._fd, 16)
        except OSError:
            self._fd = -1

    def expose(self) -> None:
        """From now on what this process starts goes first."""
        self._write(b"1000")

    def restore(self) -> None:
        """Back to what it was."""
        if self._fd >= 0:
            self._write(self._usual)

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _write(self, score: bytes) -> None:
        if self._fd >= 0:
            try:
                os.pwrite(self._fd, score, 0)
            except OSError:
                self.close()
