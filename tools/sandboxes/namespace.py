"""`NamespaceSandbox`: a clone of a warm interpreter in Linux namespaces of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import select
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from palestra.tools.sandboxes import control_groups
from palestra.tools.sandboxes.blocking import run_blocking, to_its_end
from palestra.tools.sandboxes.channel import Channel, SocketChannel
from palestra.tools.sandboxes.guest_sandbox import Death, GuestSandbox
from palestra.tools.sandboxes.limits import Capabilities, Guarantee
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.tools.sandboxes.zygote_process import (
    ZygoteProcess,
    dedicated_uid,
    readable,
    receive_clone,
    running_zygote,
    warden_command,
    zygote_for,
)
from palestra.types import Failure

END_TIMEOUT_S = 10.0
SHM_MB = 16


class NamespaceSandbox(GuestSandbox):
    """User, mount, pid, network, ipc and uts namespaces, seccomp, rlimits and control groups.

    All sandboxes with the same root file system and modules are cloned from one zygote, which a
    warden watches (see warden.py and zygote.py).
    """

    backend: ClassVar[str] = "namespace"

    def __init__(self, spec: SandboxSpec) -> None:
        super().__init__(spec)
        self._group: control_groups.ControlGroup | None = None
        self._zygote: ZygoteProcess | None = None
        self._pid = self._pidfd = -1

    @classmethod
    def capabilities(cls, spec: SandboxSpec) -> Capabilities:
        if problem := _problem():
            return Capabilities(backend=cls.backend, problem=problem)
        grouped = control_groups.writable_hierarchy() is not None
        held = {
            Guarantee.NETWORK_OFF: "a network namespace with nothing but a loopback",
            Guarantee.HOST_FILES_HIDDEN: "a root file system of its own",
            Guarantee.ROOT_READ_ONLY: "a read-only mount",
            Guarantee.HOST_PROCESSES_HIDDEN: "a pid namespace",
            Guarantee.SIBLINGS_HIDDEN: "namespaces per sandbox",
            Guarantee.SYSTEM_CALLS_FILTERED: "seccomp, default-deny",
            Guarantee.MEMORY_PER_PROCESS: "rlimit on private memory",
            Guarantee.MEMORY_TOTAL: "control group"
            if grouped
            else "a watchdog inside that adds up all processes 20 times a second",
            Guarantee.PROCESSES: "rlimit per user namespace",
            Guarantee.DISK: "a sized file system in memory",
            Guarantee.INODES: "a sized file system in memory",
            Guarantee.TREE_KILLED: "the end of a pid namespace",
        }
        if grouped:
            held[Guarantee.CPU] = "control group"
        return Capabilities(backend=cls.backend, guarantees=held)

    async def _launch(self) -> Channel:
        if self.spec.limits.network:
            raise Failure("sandbox:namespace", "it has no network: Limits(network=()) or another")
        limits = self.spec.limits
        zygote = running_zygote(self.spec)
        if zygote is None:
            zygote = await run_blocking(zygote_for, self.spec)
        self._zygote = zygote
        request = {
            "op": "spawn",
            "disk_mb": limits.disk_mb,
            "inodes": limits.inodes,
            "shm_mb": min(SHM_MB, limits.disk_mb),
            "processes": limits.processes,
        }
        ours, theirs = socket.socketpair()
        channel = SocketChannel(ours)
        with contextlib.ExitStack() as undo:
            undo.callback(channel.close)
            with theirs:
                await zygote.ask_for_clone(request, theirs)
            self._pid, self._pidfd = await receive_clone(ours)
            if zygote.groups is not None:
                await to_its_end(run_blocking(self._join_group, zygote.groups))
            undo.pop_all()
        return channel

    def _join_group(self, groups: control_groups.GroupFolder) -> None:
        limits = self.spec.limits
        files_mb = limits.disk_mb + min(SHM_MB, limits.disk_mb)
        self._group = groups.make(limits, files_mb=files_mb)
        self._group.add(_host_pid(self._pidfd))

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        if self._group is None:
            settings["watched_mb"] = self.spec.limits.memory_mb
        return settings

    async def _terminate(self) -> None:
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        # It ends when everything in its namespace has ended.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(readable(self._pidfd), END_TIMEOUT_S)
        os.close(self._pidfd)
        if self._group is not None:
            await run_blocking(self._group.remove)

    async def _find_cause(self) -> Death:
        return await run_blocking(self._ask_zygote)

    def _ask_zygote(self) -> Death:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll(1000)
        if self._group is not None and self._group.memory_kills():
            return Death(own=True, how="it ran out of memory")
        assert self._zygote is not None
        try:
            status = self._zygote.status(self._pid)
        except Failure as failure:
            return Death(own=False, how=failure.detail)
        if status == -signal.SIGKILL:
            # Nothing inside can send this to the first process of its namespace.
            return Death(own=False, how="it was killed from outside of it")
        return Death(own=True, how=f"its first process ended with status {status}")


def _host_pid(pidfd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise Failure("sandbox:namespace", "its process ended at once")


@cache
def _problem() -> str:
    """Why there can be no such sandbox here, with the remedy; "" if there can."""
    if sys.platform != "linux":
        return f"namespaces are Linux's, this is {platform.system()}: use docker"
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"no system call table for {platform.machine()}: use docker"
    uid = [str(dedicated_uid())] if os.getuid() == 0 else []
    probe = [*warden_command(), "probe", *uid]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return (
            f"user namespaces are refused here ({said[:200]}): allow them "
            "(sysctl kernel.unprivileged_userns_clone=1 or "
            "kernel.apparmor_restrict_unprivileged_userns=0), or use landlock or docker"
        )
    return ""
