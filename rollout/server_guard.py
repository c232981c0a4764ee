"""Runs a server as its child and leaves nothing of it behind. Standard library only.

`python server_guard.py CONTROL REPORT COMMAND...`: two file descriptors, then the server's command.
CONTROL ends when our parent does, whatever killed it: the server and all its descendants are then
killed. A byte on CONTROL asks the server to stop. REPORT gets the server's process id, and at its
end how it ended, after its descendants are gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    """Until the server has ended or is no longer wanted."""
    control, report, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(control, False)
    os.set_inheritable(report, False)
    on_linux = sys.platform == "linux"
    libc = ctypes.CDLL(None)
    if on_linux:
        # Orphans of the server then become our children, and can be found and killed.
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child_ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: on_linux and libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as error:
        os.write(report, f"cannot run {command[0]}: {error.strerror}\n".encode())
        return
    os.write(report, f"{server.pid}\n".encode())
    watched = select.poll()
    watched.register(control, select.POLLIN)
    watched.register(child_ended, select.POLLIN)
    status = None
    while status is None:
        for descriptor, _ in watched.poll():
            received = os.read(descriptor, 4096)
            if descriptor == control and not received:
                _kill_descendants(server.pid)
                return
            if descriptor == control:
                os.kill(server.pid, signal.SIGINT)
        status = _reap(server.pid)
    _kill_descendants(server.pid)
    os.write(report, f"{status}\n".encode())


def _reap(server: int) -> int | None:
    """Collect every child that has ended; the server's exit status, negative for a signal."""
    status = None
    while True:
        try:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == server:
            status = os.waitstatus_to_exitcode(wait_status)


def _kill_descendants(server: int) -> None:
    """Until there are none: one that forks meanwhile leaves an orphan, which is our child."""
    if sys.platform != "linux":
        os.kill(server, signal.SIGKILL)
        return
    while descendants := _descendants(os.getpid()):
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in descendants:
            with contextlib.suppress(ChildProcessError):  # not ours until its parent has ended
                os.waitpid(pid, 0)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                # "PID (NAME) STATE PARENT ...", where the name may be anything.
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(folder.name))
    found = [pid]
    for ancestor in found:
        found += children.get(ancestor, ())
    return found[1:]


if __name__ == "__main__":
    main()
