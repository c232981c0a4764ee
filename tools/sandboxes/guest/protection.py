"""Whether other processes of the same user may look into this one."""

from __future__ import annotations

import contextlib
import ctypes

PR_SET_DUMPABLE = 4


def set_dumpable(value: bool) -> None:
    """False: no ptrace, no /proc/PID/mem, no /proc/PID/fd from processes without privileges."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(value), 0, 0, 0)
