"""The process that namespace sandboxes are cloned from: a warm interpreter in its root file system.

It runs inside the root file system, as the first process of namespaces of its own, and for each
request clones itself into fresh ones: user, mount, pid, network, ipc and uts. The clone builds its
private /work, /tmp, /dev/shm and /proc, gives up every privilege and becomes the guest.

Only the standard library and the guest: it runs in the sandbox's interpreter.
"""

from __future__ import annotations

import array
import base64
import contextlib
import ctypes
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any

from palestra.tools.sandboxes.guest.frames import send
from palestra.tools.sandboxes.guest.server import Guest
from palestra.tools.sandboxes.kernel import (
    CLONE_NEW,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    SYS_CAPSET,
    SYS_CLONE,
    check,
    libc,
    load_filter,
    map_user,
    mount,
    write_text,
)

CLONE_PIDFD = 0x1000
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
# What of /proc tells about the host.
MASKED = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/sched_debug",
)
# The buffers of a socket (least, usual, most bytes) are the kernel's memory, which no limit on
# processes counts.
SOCKET_BYTES = {"tcp_rmem": "4096 16384 65536", "tcp_wmem": "4096 16384 65536"}
STAGE = "/sys"  # an empty folder of the root file system, to mount on for a moment
# Imported before the first clone, so that all share the pages.
WARM = "ast,asyncio,collections,csv,dataclasses,datetime,decimal,fractions,functools,hashlib"
WARM += ",heapq,inspect,itertools,math,pathlib,random,re,sqlite3,statistics,string,subprocess"
WARM += ",tempfile,textwrap,threading,typing,unittest,urllib.parse,uuid"


class Zygote:
    """Clones itself on request; tells how each clone has ended."""

    def __init__(self, control: socket.socket, seccomp_program: bytes) -> None:
        self.control = control
        self.program = seccomp_program
        self.ended: dict[int, int] = {}

    def serve(self) -> None:
        """Answer requests until the other side is gone."""
        # The ends of clones interrupt the wait for requests, too.
        self.ended_fd, self.told_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.told_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        while True:
            ready, _, _ = select.select([self.control.fileno(), self.ended_fd], [], [])
            self._reap()
            if self.control.fileno() not in ready:
                continue
            data, ancillary, _, _ = self.control.recvmsg(1 << 16, socket.CMSG_SPACE(4))
            if not data:
                return
            request = json.loads(data)
            fds = array.array("i", b"".join(item[2] for item in ancillary))
            if request["op"] == "spawn":
                self._spawn(request, fds[0])
            else:
                status = self.ended.pop(request["pid"], None)
                self._answer({"status": status})

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.ended_fd, 512):
                pass
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self.ended[pid] = os.waitstatus_to_exitcode(status)
                if len(self.ended) > 4096:  # those that nobody asked about
                    del self.ended[next(iter(self.ended))]

    def _answer(self, answer: dict[str, Any], fds: list[int] | None = None) -> None:
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self.control.sendmsg([json.dumps(answer).encode()], ancillary)

    def _spawn(self, request: dict[str, Any], fd: int) -> None:
        pidfd = ctypes.c_int(-1)
        flags = CLONE_NEW | CLONE_PIDFD | signal.SIGCHLD
        ctypes.pythonapi.PyOS_BeforeFork()
        pid = libc.syscall(
            SYS_CLONE,
            ctypes.c_ulong(flags),
            None,
            ctypes.byref(pidfd),
            None,
            None,
        )
        if pid == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            self._become_guest(request, fd)
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        os.close(fd)
        if pid < 0:
            self._answer({"error": "clone: " + os.strerror(ctypes.get_errno())})
            return
        self._answer({"pid": pid}, [pidfd.value])
        os.close(pidfd.value)

    def _become_guest(self, request: dict[str, Any], fd: int) -> None:
        try:
            self.control.close()
            signal.set_wakeup_fd(-1)
            os.close(self.ended_fd)
            os.close(self.told_fd)
            os.setsid()
            map_user(1000, 0, 0)
            mount_private(request)
            socket.sethostname("sandbox")
            bring_up_loopback()
            resource.setrlimit(resource.RLIMIT_NPROC, (request["processes"],) * 2)
            give_up_privileges()
            load_filter(self.program)
        except OSError as error:
            send(fd, {"refused": str(error)})
            os._exit(1)
        Guest(fd, fd).serve_and_end()


def mount_private(request: dict[str, Any]) -> None:
    """/work and /tmp on one sized file system, /dev/shm, and the view of /proc from inside."""
    private = MS_NOSUID | MS_NODEV
    size = f"size={request['disk_mb']}m,nr_inodes={request['inodes']}"
    mount("tmpfs", STAGE, "tmpfs", private, size + ",mode=755")
    for folder, mode in (("work", 0o755), ("tmp", 0o1777)):
        os.mkdir(f"{STAGE}/{folder}")
        os.chmod(f"{STAGE}/{folder}", mode)
        mount(f"{STAGE}/{folder}", f"/{folder}", "", MS_BIND)
    check(libc.umount2(STAGE.encode(), MNT_DETACH), f"umount {STAGE}")
    shared = f"size={request['shm_mb']}m,nr_inodes=1024,mode=1777"
    mount("tmpfs", "/dev/shm", "tmpfs", private | MS_NOEXEC, shared)
    mount("proc", "/proc", "proc", private | MS_NOEXEC)
    for name, sizes in SOCKET_BYTES.items():
        with contextlib.suppress(OSError):
            write_text(f"/proc/sys/net/ipv4/{name}", sizes)
    mount("/proc/sys", "/proc/sys", "", MS_BIND)
    mount("", "/proc/sys", "", MS_BIND | MS_REMOUNT | MS_RDONLY | private | MS_NOEXEC)
    for path in MASKED:
        with contextlib.suppress(FileNotFoundError):
            mount("/dev/null", path, "", MS_BIND)


def bring_up_loopback() -> None:
    """Programs inside may talk to each other; there is no other interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def give_up_privileges() -> None:
    """No capability, now or after any exec."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    nothing = ctypes.create_string_buffer(24)
    check(libc.syscall(SYS_CAPSET, header, nothing), "capset")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def main(control_fd: int) -> None:
    """Import what is to be warm, say that all is ready, and serve."""
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    settings = json.loads(control.recv(1 << 18))
    os.environ.clear()
    os.environ.update({"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"})
    for module in [*WARM.split(","), *settings["preload"]]:
        __import__(module)
    # The collector would write to every page that the clones share.
    gc.collect()
    gc.freeze()
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    control.send(json.dumps({"ready": sys.version.split()[0]}).encode())
    Zygote(control, base64.b64decode(settings["seccomp"])).serve()
