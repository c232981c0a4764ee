"""The process that namespace sandboxes are cloned from: a warm interpreter in its root file system.

It runs inside the root file system, as the first process of namespaces of its own, and for each
request clones itself into fresh ones: user, mount, pid, network, ipc and uts. The clone takes the
steps of clone_steps.py and becomes the guest.

Only the standard library and the guest: it runs in the sandbox's interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

from palestra.tools.sandboxes import clone_steps
from palestra.tools.sandboxes.guest.frames import Gone, receive, send
from palestra.tools.sandboxes.guest.interpreter import open_streams
from palestra.tools.sandboxes.guest.loader import fill_holes
from palestra.tools.sandboxes.guest.server import Guest
from palestra.tools.sandboxes.kernel import CLONE_NEW, SYS_CLONE, libc
from palestra.tools.sandboxes.rehearsal import rehearse

if TYPE_CHECKING:
    from palestra.tools.sandboxes.guest.interpreter import Streams

CLONE_PIDFD = 0x1000
_fillers: list[object] = []
# Of CPython: what os.fork does beside the system call.
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_in_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_in_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _call in (_before_fork, _after_fork_in_parent, _after_fork_in_child):
    _call.restype = None


class Zygote:
    """Clones itself on request; tells how each clone has ended."""

    def __init__(self, control: socket.socket, guest: Guest, seccomp_program: bytes) -> None:
        self._control = control
        self._guest = guest
        self._ended: dict[int, int] = {}
        self._pidfd = ctypes.c_int(-1)
        flags = ctypes.c_ulong(CLONE_NEW | CLONE_PIDFD | signal.SIGCHLD)
        self._clone = (SYS_CLONE, flags, None, ctypes.byref(self._pidfd), None, None)
        self._mounts: dict[tuple[int, int, int], list[clone_steps.Step]] = {}
        self._last_steps = clone_steps.give_up_privileges(seccomp_program)

    def serve(self) -> None:
        """Answer requests until the other side is gone."""
        # The ends of clones interrupt the wait for requests, too.
        self._ended_fd, self._told_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._told_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._first_steps = clone_steps.leave_parent(
            self._control.fileno(), self._ended_fd, self._told_fd
        )
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._ended_fd], [], [])
            if self._ended_fd in ready:
                self._reap()
            if self._control.fileno() not in ready:
                continue
            data, ancillary, _, _ = self._control.recvmsg(1 << 16, socket.CMSG_SPACE(4))
            if not data:
                return
            request = json.loads(data)
            if request["op"] == "spawn":
                self._spawn(request, *struct.unpack("i", ancillary[0][2]))
            else:
                self._reap()  # the host may know of an end before the signal has come
                status = self._ended.pop(request["pid"], None)
                self._control.send(json.dumps({"status": status}).encode())

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._ended_fd, 512):
                pass
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._ended[pid] = os.waitstatus_to_exitcode(status)
                if len(self._ended) > 4096:  # those that nobody asked about
                    del self._ended[next(iter(self._ended))]

    def _spawn(self, request: dict[str, Any], fd: int) -> None:
        """Clone; tell the pid, or the negative number of an error, and the pidfd over `fd`.

        `fd` is the sandbox's connection: the guest says nothing before it is asked, which it is
        when this has come.
        """
        steps = self._steps(request)
        _before_fork()
        pid = libc.syscall(*self._clone)
        if pid == 0:
            _after_fork_in_child()
            self._become_guest(steps, fd)
        number = ctypes.get_errno()
        _after_fork_in_parent()
        with socket.socket(fileno=fd) as connection, contextlib.suppress(OSError):
            if pid < 0:
                connection.send(struct.pack("i", -number))
                return
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", self._pidfd.value))]
            connection.sendmsg([struct.pack("i", pid)], rights)
        os.close(self._pidfd.value)

    def _steps(self, request: dict[str, Any]) -> list[clone_steps.Step]:
        sizes = (request["disk_mb"], request["inodes"], request["shm_mb"])
        mounts = self._mounts.get(sizes)
        if mounts is None:
            mounts = self._mounts[sizes] = clone_steps.mount_private(*sizes)
        limit = clone_steps.limit_processes(request["processes"])
        return [*self._first_steps, *mounts, limit, *self._last_steps]

    def _become_guest(self, steps: list[clone_steps.Step], fd: int) -> None:
        try:
            clone_steps.take(steps)
            self._guest.connect(fd, fd)
            self._guest.fork_session()
        except OSError as error:
            with contextlib.suppress(Gone, OSError):
                receive(fd)
                send(fd, {"refused": str(error)})
            os._exit(1)
        self._guest.serve_and_end()


def make_streams() -> Streams:
    """The session's streams, on what they will be on; nothing stays open on the standard ones."""
    nothing = os.open(os.devnull, os.O_RDWR)
    read_fd, write_fd = os.pipe()
    for fd, source in enumerate((nothing, write_fd, write_fd)):
        os.dup2(source, fd)
    streams = open_streams()
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    for fd in (nothing, read_fd, write_fd):
        os.close(fd)
    return streams


def main(control_fd: int) -> None:
    """Import what is to be warm, rehearse, say that all is ready, and serve."""
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    settings = json.loads(control.recv(1 << 18))
    os.environ.clear()
    os.environ.update(settings["env"])
    for module in settings["preload"]:
        importlib.import_module(module)
    streams = make_streams()
    guest = Guest(settings["env"], streams)
    rehearse(guest, streams)
    # What a clone makes comes to lie on few pages, too.
    _fillers.extend(fill_holes())
    # The collector would write to every page that the clones share.
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"ready": sys.version.split()[0]}).encode())
    Zygote(control, guest, bytes.fromhex(settings["seccomp"])).serve()
