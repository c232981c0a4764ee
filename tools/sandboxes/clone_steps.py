"""What a clone of the zygote does before it becomes the guest: calls, with all arguments ready.

To prepare them in the zygote, once, keeps the clone from copying the pages of memory that the
preparation would write to. Only the standard library: bundled into the zygote.
"""

from __future__ import annotations

import _socket
import ctypes
import fcntl
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from palestra.tools.sandboxes.kernel import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECCOMP,
    SECCOMP_MODE_FILTER,
    SYS_CAPSET,
    check,
    filter_address,
    libc,
    mount_arguments,
    user_map,
    write_text,
)

PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
AGENT_UID = 1000
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

if TYPE_CHECKING:
    # A call, its arguments, and what it does: where that is named, a negative result is an error.
    Step = tuple[Callable[..., Any], tuple[Any, ...], str]


def take(steps: Iterable[Step]) -> None:
    """Make the calls. Raises OSError for one that fails."""
    for call, arguments, what in steps:
        result = call(*arguments)
        if what and result < 0:
            check(result, what)


def leave_parent(*fds: int) -> list[Step]:
    """Close what is the zygote's; be another user in a session of its own."""
    steps: list[Step] = [(signal.set_wakeup_fd, (-1,), "")]
    steps += [(os.close, (fd,), "") for fd in fds]
    steps.append((os.setsid, (), ""))
    steps += [(write_text, (path, text), "") for path, text in user_map(AGENT_UID, 0, 0)]
    return steps


def mount_private(disk_mb: int, inodes: int, shm_mb: int) -> list[Step]:
    """/work and /tmp on one sized file system, /dev/shm, and the view of /proc from inside."""
    private = MS_NOSUID | MS_NODEV
    size = f"size={disk_mb}m,nr_inodes={inodes},mode=755"
    steps = [_mount("tmpfs", STAGE, "tmpfs", private, size)]
    for folder, mode in (("work", 0o755), ("tmp", 0o1777)):
        path = f"{STAGE}/{folder}".encode()
        steps.append((libc.mkdir, (path, mode), f"mkdir /{folder}"))
        steps.append((libc.chmod, (path, mode), f"chmod /{folder}"))
        steps.append(_mount(f"{STAGE}/{folder}", f"/{folder}", "", MS_BIND))
    steps.append((libc.umount2, (STAGE.encode(), MNT_DETACH), f"umount {STAGE}"))
    shared = f"size={shm_mb}m,nr_inodes=1024,mode=1777"
    steps.append(_mount("tmpfs", "/dev/shm", "tmpfs", private | MS_NOEXEC, shared))
    steps.append(_mount("proc", "/proc", "proc", private | MS_NOEXEC))
    for name, sizes in SOCKET_BYTES.items():
        steps.append((write_if_there, (f"/proc/sys/net/ipv4/{name}", sizes), ""))
    steps.append(_mount("/proc/sys", "/proc/sys", "", MS_BIND))
    read_only = MS_BIND | MS_REMOUNT | MS_RDONLY | private | MS_NOEXEC
    steps.append(_mount("", "/proc/sys", "", read_only))
    steps += [_mount("/dev/null", path, "", MS_BIND) for path in MASKED if os.path.exists(path)]
    return steps


def limit_processes(count: int) -> Step:
    """As many as may live in the new user namespace, which must be made before."""
    return (resource.setrlimit, (resource.RLIMIT_NPROC, (count, count)), "")


def give_up_privileges(seccomp_program: bytes) -> list[Step]:
    """Loopback and name; then no capability, now or after any exec, and a seccomp filter."""
    steps: list[Step] = [(libc.sethostname, (b"sandbox", 7), "sethostname")]
    steps.append((bring_up_loopback, (), ""))
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    dropped = ((PR_CAPBSET_DROP, capability, 0, 0, 0) for capability in range(last + 1))
    steps += [(libc.prctl, arguments, "bounding set") for arguments in dropped]
    steps.append((libc.prctl, (PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), ""))
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    nothing = ctypes.create_string_buffer(24)
    steps.append((libc.syscall, (SYS_CAPSET, header, nothing), "capset"))
    steps.append((libc.prctl, (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs"))
    program = filter_address(seccomp_program)
    steps.append((libc.prctl, (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "seccomp"))
    return steps


def bring_up_loopback() -> None:
    """Programs inside may talk to each other; there is no other interface."""
    fd = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM).detach()
    fcntl.ioctl(fd, SIOCSIFFLAGS, _LOOPBACK_UP)
    os.close(fd)


_LOOPBACK_UP = struct.pack("16sh14x", b"lo", IFF_UP)


def write_if_there(path: str, text: str) -> None:
    """What older kernels do not have, or not in each namespace, stays as it is."""
    try:
        write_text(path, text)
    except OSError:
        return


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> Step:
    arguments = mount_arguments(source, target, kind, flags, data)
    return (libc.mount, arguments, f"mount {target}")
