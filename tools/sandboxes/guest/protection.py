"""Whether other processes of the same user may look into this one."""

from __future__ import annotations

import ctypes
from typing import Any

PR_SET_DUMPABLE = 4

try:
    _prctl: Any = ctypes.CDLL(None).prctl
except (OSError, AttributeError):  # not Linux
    _prctl = None


def set_dumpable(value: bool) -> None:
    """False: no ptrace, no /proc/PID/mem, no /proc/PID/fd from processes without privileges."""
    if _prctl is not None:
        _prctl(PR_SET_DUMPABLE, int(value), 0, 0, 0)
