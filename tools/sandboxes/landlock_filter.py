"""The seccomp filter that `landlock` sandboxes have beside the usual one, for want of namespaces.

Processes of the same user, and all paths of the host, are within reach of calls that neither
Landlock nor sandlock looks at: these are refused here.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator

from palestra.tools.sandboxes.seccomp_policy import EAFNOSUPPORT, ENOSYS, Check
from palestra.tools.sandboxes.system_calls import NUMBERS

_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
EOPNOTSUPP = 95
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER_OFFSET, _ARGUMENTS_OFFSET = 0, 16  # of struct seccomp_data
_MSG_FASTOPEN = 0x20000000
_SOCK_STREAM, _SOCK_SEQPACKET, _AF_INET, _AF_INET6 = 1, 5, 2, 10
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1

_ONLY_ITSELF = (Check(argument=0, values=(0,)),)
_NEVER = (Check(argument=0, mask=0, values=(1,), errno=ENOSYS),)
_ATTRIBUTES = """
    getxattr lgetxattr getxattrat listxattr llistxattr listxattrat
    setxattr lsetxattr setxattrat removexattr lremovexattr removexattrat
"""
_CHECKED = {
    # Limits, priorities and processors of other processes, and descriptors for them.
    "prlimit64": _ONLY_ITSELF,
    "sched_setaffinity": _ONLY_ITSELF,
    "sched_setparam": _ONLY_ITSELF,
    "sched_setscheduler": _ONLY_ITSELF,
    "sched_setattr": _ONLY_ITSELF,
    "setpriority": (
        Check(argument=0, values=(_PRIO_PROCESS,)),
        Check(argument=1, values=(0,)),
    ),
    "ioprio_set": (
        Check(argument=0, values=(_IOPRIO_WHO_PROCESS,)),
        Check(argument=1, values=(0,)),
    ),
    "pidfd_open": _NEVER,
    # It tells what happens to files that may not be read.
    **dict.fromkeys(("inotify_init", "inotify_init1", "inotify_add_watch"), _NEVER),
    # Pairs that can send nowhere else. No other UNIX sockets: the host's would be in reach.
    "socketpair": (Check(argument=1, mask=0xF, values=(_SOCK_STREAM, _SOCK_SEQPACKET)),),
    # Landlock does not look at them.
    **dict.fromkeys(
        _ATTRIBUTES.split(), (Check(argument=0, mask=0, values=(1,), errno=EOPNOTSUPP),)
    ),
    # TCP connects without connect(2), which Landlock does not see.
    "sendto": (Check(argument=3, mask=_MSG_FASTOPEN, values=(0,)),),
    "sendmsg": (Check(argument=2, mask=_MSG_FASTOPEN, values=(0,)),),
    "sendmmsg": (Check(argument=3, mask=_MSG_FASTOPEN, values=(0,)),),
}
# What Landlock lets anyone do to every file of the user: nothing happens, and the caller hears that
# it has. By descriptor it works: those come from files that may be opened.
_METADATA = """
    chmod fchmodat fchmodat2 chown lchown fchownat utime utimes futimesat utimensat
"""
_PRETENDED = dict.fromkeys(_METADATA.split(), (Check(argument=0, mask=0, values=(1,), errno=0),))
_INTERNET = {"socket": (Check(argument=0, values=(_AF_INET, _AF_INET6), errno=EAFNOSUPPORT),)}
_NO_INTERNET = {"socket": (Check(argument=0, mask=0, values=(1,), errno=EAFNOSUPPORT),)}


def narrow_program(*, network: bool, own_user: bool) -> bytes:
    """The filter as an array of struct sock_filter.

    With `network` there are internet sockets; sandlock looks after these. `own_user` says that no
    file outside belongs to the sandbox's user.
    """
    numbers = NUMBERS[platform.machine()]
    steps = [(_LOAD, 0, 0, _NUMBER_OFFSET)]
    refused = _CHECKED | (_INTERNET if network else _NO_INTERNET)
    for name, checks in (refused if own_user else refused | _PRETENDED).items():
        if name in numbers:
            block = [step for check in checks for step in _examine(check)]
            block.append((_RETURN, 0, 0, _ALLOW))
            steps += [(_EQUAL, 0, len(block), numbers[name]), *block]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def _examine(check: Check) -> Iterator[tuple[int, int, int, int]]:
    """Go on if the argument is among the values, else return the errno."""
    assert not check.refused
    yield (_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * check.argument)
    yield (_AND, 0, 0, check.mask)
    for left, value in zip(reversed(range(len(check.values))), check.values, strict=True):
        yield (_EQUAL, left + 1, 0, value)
    yield (_RETURN, 0, 0, _ERRNO | check.errno)
