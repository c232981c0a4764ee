"""The process between the host and a zygote: builds its namespaces, and cleans up after both.

It stays outside of the namespaces and watches a pipe that the host holds open. When the host is
gone, however it went, the zygote is killed, and with it every process of its sandboxes; their
control groups are removed. Only the standard library: it is run as a bundle.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from typing import Any

from palestra.tools.sandboxes.group_removal import remove_groups
from palestra.tools.sandboxes.kernel import (
    CLONE_NEW,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    SYS_PIVOT_ROOT,
    check,
    libc,
    map_user,
    mount,
)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}


def watch(settings: dict[str, Any], lifeline_fd: int, control_fd: int) -> None:
    """Start the zygote, wait for the end of the host or of the zygote, clean up."""
    os.setsid()
    pid = os.fork()
    if pid == 0:
        os.close(lifeline_fd)
        try:
            enter(settings["uid"])
            run_zygote(settings, control_fd)
        except OSError as error:
            sys.stderr.write(f"{error.strerror} {error.filename or ''}\n")
            sys.stderr.flush()
        finally:
            os._exit(1)
    os.close(control_fd)
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(lifeline_fd, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    remove_groups(settings["groups"])


def enter(dedicated_uid: int | None) -> None:
    """Become the dedicated user, if one is given, then root of new namespaces."""
    if (uid := dedicated_uid) is not None:
        # Never the host's root inside: an owner of host files needs no capability to write them.
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")  # its /proc files are its own
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(CLONE_NEW), "creating namespaces")
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    map_user(0, uid, gid)


def run_zygote(settings: dict[str, Any], control_fd: int) -> None:
    """Fork the first process of the pid namespace; stay as its parent."""
    child = os.fork()
    if child == 0:
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
        mount("", "/", "", MS_REC | MS_PRIVATE)
        build_root(settings["rootfs"])
        os.set_inheritable(control_fd, True)
        # Through a file in memory: an argument would stand in the list of processes.
        source = os.memfd_create("zygote")
        os.write(source, settings["source"].encode())
        os.lseek(source, 0, os.SEEK_SET)
        os.dup2(source, 0)
        python = settings["python"]
        # All symbols are found at once, by the zygote, and not one by one by each clone.
        environment = {"LD_BIND_NOW": "1"}
        os.execve(python, [python, "-I", "-", str(control_fd)], environment)
    os.close(control_fd)
    os.waitpid(child, 0)


def build_root(rootfs: str) -> None:
    """Make the folder the root, read-only, with a few devices and a /proc of this namespace."""
    mount(rootfs, rootfs, "", MS_BIND)
    dev = f"{rootfs}/dev"
    mount("tmpfs", dev, "tmpfs", MS_NOSUID, "size=64k,nr_inodes=64,mode=755")
    for name in DEVICES:
        with open(f"{dev}/{name}", "w"):
            pass
        mount(f"/dev/{name}", f"{dev}/{name}", "", MS_BIND)
    for name, target in LINKS.items():
        os.symlink(target, f"{dev}/{name}")
    os.mkdir(f"{dev}/shm")
    mount("", dev, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC)
    mount("proc", f"{rootfs}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # The old root comes to lie on top of the new one, from where it is taken away.
    os.chdir(rootfs)
    check(libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "making the root file system the root")
    check(libc.umount2(b".", MNT_DETACH), "umount of the host's files")
    os.chdir("/")
    mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def probe(uid: int | None) -> None:
    """Do what a kernel or a container may refuse, or exit with what was refused."""
    try:
        enter(uid)
        child = os.fork()
        if child == 0:
            try:
                mount("", "/", "", MS_REC | MS_PRIVATE)
                mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
            except OSError as error:
                sys.stderr.write(f"{error.strerror}\n")
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    except OSError as error:
        sys.exit(str(error.strerror))


def main(task: str, *numbers: str) -> None:
    """`probe [UID]` or `watch LIFELINE_FD CONTROL_FD`, with the settings on standard input."""
    if task == "probe":
        probe(int(numbers[0]) if numbers else None)
    else:
        lifeline_fd, control_fd = map(int, numbers)
        watch(json.loads(sys.stdin.readline()), lifeline_fd, control_fd)
