"""`LandlockSandbox`: Landlock and seccomp, through sandlock, where namespaces are denied."""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import signal
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from palestra.tools.sandboxes import control_groups
from palestra.tools.sandboxes.blocking import run_blocking
from palestra.tools.sandboxes.channel import Channel, SocketChannel
from palestra.tools.sandboxes.guest_sandbox import Death, GuestSandbox, bundle
from palestra.tools.sandboxes.landlock_filter import narrow_program
from palestra.tools.sandboxes.landlock_launcher import (
    END_TIMEOUT_S,
    PYTHON,
    environment_in,
    launcher_in,
)
from palestra.tools.sandboxes.limits import Capabilities, Guarantee, Limits
from palestra.tools.sandboxes.rootfs import prepare_rootfs
from palestra.tools.sandboxes.seccomp import filter_program
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.tools.sandboxes.system_calls import NUMBERS
from palestra.types import Failure

LEAST_ABI = 6
# What the guest needs beside the sandbox's own processes, where a user's threads are counted: the
# keeper's.
KEEPER_THREADS = 8
# How many more threads the user of palestra may run outside of a sandbox than when it was started.
OTHERS_THREADS = 1024
# Of the host's files, what programs name by these paths: the loaders, and interpreters of scripts.
_HOST_FILES = (
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/bin/sh",
    "/bin/bash",
    "/usr/bin/env",
)


class LandlockSandbox(GuestSandbox):
    """One process tree under Landlock and two seccomp filters, watched by a keeper outside.

    See landlock_keeper.py. It sees the host's paths and is refused almost all of them: its programs
    are those of palestra's root file system, where that lies, and are found by the environment
    ($PATH, $LD_LIBRARY_PATH). That a path exists, and what `stat` says of it, is not hidden. There
    is no /proc, /tmp, /dev/shm or socket; `home` and $TMPDIR are private. Unless palestra is root,
    `chmod`, `chown` and `utime` of a path do nothing. With `Limits.network` sandlock starts the
    sandbox and makes its connections: outgoing TCP only.
    """

    backend: ClassVar[str] = "landlock"

    def __init__(self, spec: SandboxSpec) -> None:
        super().__init__(spec)
        self.guest_pid = -1
        self._link: socket.socket | None = None
        self._heard: dict[str, Any] = {}
        self._group: control_groups.ControlGroup | None = None

    @classmethod
    def capabilities(cls, spec: SandboxSpec) -> Capabilities:
        if problem := _problem():
            return Capabilities(backend=cls.backend, problem=problem)
        if spec.image is not None:
            return Capabilities(
                backend=cls.backend,
                problem=f"it cannot start from an image ({spec.image}): use namespace or docker",
            )
        held = {
            Guarantee.HOST_FILES_HIDDEN: "Landlock (paths can be guessed)",
            Guarantee.ROOT_READ_ONLY: "Landlock and seccomp",
            Guarantee.HOST_PROCESSES_HIDDEN: "Landlock and seccomp (ids can be guessed)",
            Guarantee.SIBLINGS_HIDDEN: "Landlock, private folders and no sockets",
            Guarantee.SYSTEM_CALLS_FILTERED: "seccomp, default-deny",
            Guarantee.MEMORY_PER_PROCESS: "rlimit on private memory",
            Guarantee.TREE_KILLED: "a keeper that inherits every orphan",
        }
        if spec.limits.network:
            held[Guarantee.NETWORK_ALLOW_LIST] = "a supervisor that makes the TCP connections"
        else:
            held[Guarantee.NETWORK_OFF] = "seccomp: no sockets but connected pairs"
        if cls._hierarchy() is not None:
            grouped = (Guarantee.MEMORY_TOTAL, Guarantee.PROCESSES, Guarantee.CPU)
            held |= dict.fromkeys(grouped, "control group")
        else:
            watched = "a watchdog outside that adds up all processes 20 times a second"
            bounded = f"rlimit of a user of its own, and {watched}"
            if os.getuid() != 0:
                bounded = f"{watched}, and an rlimit above what this user runs"
            held |= {Guarantee.MEMORY_TOTAL: watched, Guarantee.PROCESSES: bounded}
        return Capabilities(backend=cls.backend, guarantees=held)

    @staticmethod
    def _hierarchy() -> control_groups.Hierarchy | None:
        """The control groups to use."""
        return control_groups.writable_hierarchy()

    async def _launch(self) -> Channel:
        return await run_blocking(self._start_keeper)

    def _start_keeper(self) -> Channel:
        hierarchy = self._hierarchy()
        self._rootfs = prepare_rootfs(self.spec.packages)
        settings = _keeper_settings(self.spec.limits, self._rootfs, grouped=hierarchy is not None)
        self._link, their_link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.settimeout(END_TIMEOUT_S)
        ours, theirs = socket.socketpair()
        try:
            with their_link, theirs:
                launcher = launcher_in(self._rootfs, hierarchy)
                launcher.start(settings, their_link, theirs)
            self._listen(until="pid")
            if "pid" not in self._heard:
                how = self._end_of_guest().how if launcher.alive else launcher.said()
                raise Failure("sandbox:landlock", f"it did not start: {how}")
            self.guest_pid, self._folder = int(self._heard["pid"]), str(self._heard["folder"])
            self.home = f"{self._folder}/work"
            if launcher.groups is not None:
                self._group = launcher.groups.make(self.spec.limits, files_mb=0)
                with contextlib.suppress(ProcessLookupError):  # why it ended is asked for later
                    self._group.add(self.guest_pid)
        except BaseException:
            ours.close()
            raise
        return SocketChannel(ours)

    def _listen(self, until: str = "") -> None:
        """Take what keeper and launcher say, as far as this key or to the end."""
        assert self._link is not None
        while until not in self._heard and (data := self._link.recv(1 << 16)):
            self._heard |= json.loads(data)

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        environment = settings["env"]
        environment |= environment_in(self._rootfs) | dict(self.spec.env)
        environment["PATH"] = f"{self._folder}/bin:{environment['PATH']}"
        environment["TMPDIR"] = f"{self._folder}/tmp"
        processes = self.spec.limits.processes
        if os.getuid() == 0:  # the sandbox's user is its own
            settings["rlimits"]["NPROC"] = processes + KEEPER_THREADS
        else:  # the kernel counts all that this user runs, which must have room to grow
            settings["rlimits"]["NPROC"] = _count_own_threads() + processes + OTHERS_THREADS
        return settings

    async def _terminate(self) -> None:
        if self._link is not None:
            await run_blocking(self._kill_tree)

    def _kill_tree(self) -> None:
        assert self._link is not None
        with self._link, contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)
            self._listen()
        if self._group is not None:
            self._group.remove()

    async def _find_cause(self) -> Death:
        return await run_blocking(self._end_of_guest)

    def _end_of_guest(self) -> Death:
        with contextlib.suppress(OSError):
            self._listen()
        heard = self._heard
        if self._group is not None and self._group.memory_kills():
            return Death(own=True, how="it ran out of memory")
        if "exceeded" in heard:
            return Death(own=True, how=f"it took more {heard['exceeded']} than it may")
        if "status" in heard:
            # Its own processes may send it any signal.
            return Death(own=True, how=f"its first process ended with status {heard['status']}")
        if "error" in heard:
            return Death(own=False, how=heard["error"])
        status = heard.get("keeper", 0)
        if status == 0:
            return Death(own=False, how="it was ended with its launcher")
        if status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
            # Nothing inside can send the keeper a signal.
            return Death(own=False, how="its keeper was killed from outside of it")
        return Death(own=True, how=f"its keeper ended with status {status}")


def _keeper_settings(limits: Limits, rootfs: Path, *, grouped: bool) -> dict[str, Any]:
    has_network = bool(limits.network)
    filters = [
        base64.b64encode(program).decode()
        for program in (
            filter_program(),
            narrow_program(network=has_network, own_user=os.getuid() == 0),
        )
    ]
    source = bundle("landlock_guest") + f"main({filters!r})\n" if has_network else ""
    return {
        "argv": [f"{rootfs}{PYTHON}", "-I", "-c", source],
        "env": environment_in(rootfs),
        "readable": [str(rootfs), *_host_files(rootfs)],
        "scripts": _scripts(rootfs),
        "filters": filters,
        "network": [f"tcp://{entry}" for entry in limits.network],
        "grouped": grouped,
        "memory_mb": limits.memory_mb,
        "processes": limits.processes,
        "disk_mb": limits.disk_mb,
        "inodes": limits.inodes,
    }


@cache
def _host_files(rootfs: Path) -> list[str]:
    """Of the host's files, those that programs find by their paths; the sandbox has copies."""
    libraries = (rootfs / "usr/lib" / f"{platform.machine()}-linux-gnu").glob("*.so*")
    found = [f"/{file.relative_to(rootfs)}" for file in libraries]
    return [path for path in (*_HOST_FILES, *found) if os.path.exists(path)]


@cache
def _scripts(rootfs: Path) -> dict[str, str]:
    """Replacements for the Python scripts of packages, which name an interpreter below /."""
    folder = rootfs / "usr/local/bin"
    return {
        file.name: f'#!/bin/sh\nexec python3 {file} "$@"\n'
        for file in folder.iterdir()
        if file.read_bytes()[:2] == b"#!"
    }


def _count_own_threads() -> int:
    """Of all processes of this user."""
    count = 0
    for process in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid == os.getuid():
                count += os.stat(f"{process.path}/task").st_nlink - 2
    return count


@cache
def _problem() -> str:
    """Why there can be no such sandbox here, with the remedy; "" if there can."""
    if sys.platform != "linux":
        return f"Landlock is Linux's, this is {platform.system()}: use docker"
    if platform.machine() not in NUMBERS:
        return f"no system call table for {platform.machine()}: use docker"
    if importlib.util.find_spec("sandlock") is None:
        return "the package sandlock is missing: pip install 'palestra[sandbox]'"
    abi = importlib.import_module("sandlock").landlock_abi_version()
    if abi < LEAST_ABI:
        has = "no Landlock" if abi < 1 else f"version {abi} of Landlock"
        return (
            f"this kernel ({platform.release()}) has {has}, and {LEAST_ABI} is needed: use Linux "
            "6.12 or newer with landlock in its lsm= list, or docker"
        )
    return ""
