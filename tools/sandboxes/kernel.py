"""System calls that Python has no name for, for the programs that build namespaces.

Only the standard library: bundled into the warden and the zygote.
"""

from __future__ import annotations

import ctypes
import os
import struct

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE, MNT_DETACH = 16384, 1 << 18, 2
# mount, uts, ipc, user, pid and network
CLONE_NEW = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
# By machine: clone, pivot_root, capset.
NUMBERS = {"x86_64": (56, 155, 126), "aarch64": (220, 41, 91)}

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
SYS_CLONE, SYS_PIVOT_ROOT, SYS_CAPSET = NUMBERS.get(os.uname().machine, (-1, -1, -1))


def check(result: int, what: str) -> int:
    """The result of a call of the C library, or OSError, which names the call."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount_arguments(
    source: str, target: str, kind: str, flags: int, data: str = ""
) -> tuple[object, ...]:
    """For `libc.mount`; an empty text is a null pointer."""
    texts = (text.encode() or None for text in (source, target, kind))
    return (*texts, ctypes.c_ulong(flags), data.encode() or None)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2); an empty text is a null pointer."""
    result = libc.mount(*mount_arguments(source, target, kind, flags, data))
    check(result, f"mount {target}")


def write_text(path: str, text: str) -> None:
    """Write to a file of /proc, in the fewest system calls."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def user_map(inside: int, outside_uid: int, outside_gid: int) -> list[tuple[str, str]]:
    """What to write into which files, to be user and group `inside` of a new user namespace."""
    return [
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{inside} {outside_uid} 1"),
        ("/proc/self/gid_map", f"{inside} {outside_gid} 1"),
    ]


def map_user(inside: int, outside_uid: int, outside_gid: int) -> None:
    """Be user and group `inside` of the user namespace that was just made."""
    for path, text in user_map(inside, outside_uid, outside_gid):
        write_text(path, text)


def filter_address(program: bytes) -> int:
    """Of a filter, an array of struct sock_filter (see seccomp.py), for prctl(2)."""
    steps = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("HP", len(program) // 8, ctypes.addressof(steps))
    )
    _kept.append((steps, header))
    return ctypes.addressof(header)


# What the kernel is given the addresses of.
_kept: list[object] = []


def load_filter(program: bytes) -> None:
    """Put this thread, and what it starts from now on, under a seccomp filter, for ever.

    `program` is an array of struct sock_filter (see seccomp.py). Raises OSError.
    """
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    address = filter_address(program)
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address, 0, 0), "seccomp")
