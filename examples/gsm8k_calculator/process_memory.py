"""How much memory a process takes with all that it started: engine, environments and itself."""

from __future__ import annotations

import subprocess

import psutil

_PERIOD_S = 5.0  # looking takes a large process some tens of milliseconds


def wait_weighing(child: subprocess.Popen[bytes]) -> float:
    """Wait for the child to end; the most that it and its descendants held at once, in MB.

    Pages that several of them share count once (Linux), as they take memory once.
    """
    most = 0.0
    while True:
        try:
            child.wait(_PERIOD_S)
            return most
        except subprocess.TimeoutExpired:
            most = max(most, _held_mb(child.pid))


def _held_mb(pid: int) -> float:
    try:
        processes = [root := psutil.Process(pid), *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(map(_share_mb, processes))


def _share_mb(process: psutil.Process) -> float:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
    return float(getattr(memory, "pss", memory.uss)) / 2**20
