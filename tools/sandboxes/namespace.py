"""`NamespaceSandbox`: a clone of a warm interpreter in Linux namespaces of its own."""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from palestra.tools.sandboxes import control_groups
from palestra.tools.sandboxes.channel import Channel, SocketChannel
from palestra.tools.sandboxes.guest_sandbox import Death, GuestSandbox, bundle
from palestra.tools.sandboxes.limits import Capabilities, Guarantee
from palestra.tools.sandboxes.rootfs import MOUNT_POINTS, prepare_rootfs
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.types import Failure

START_TIMEOUT_S = 60.0
# The host's user that sandboxes of a host's root belong to: nobody else's.
DEDICATED_UID = 200_001
SHM_MB = 16
_PYTHONS = ("/usr/local/bin/python3", "/usr/bin/python3")


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
        return await asyncio.to_thread(self._clone)

    def _clone(self) -> Channel:
        limits = self.spec.limits
        zygote = self._zygote = zygote_for(self.spec)
        request = {
            "op": "spawn",
            "disk_mb": limits.disk_mb,
            "inodes": limits.inodes,
            "shm_mb": min(SHM_MB, limits.disk_mb),
            "processes": limits.processes,
        }
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            self._pid, self._pidfd = zygote.spawn(request, theirs)
            if zygote.groups is not None:
                files_mb = limits.disk_mb + min(SHM_MB, limits.disk_mb)
                self._group = zygote.groups.make(limits, files_mb=files_mb)
                self._group.add(_host_pid(self._pidfd))
            undo.pop_all()
        return SocketChannel(ours)

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        if self._group is None:
            settings["watched_mb"] = self.spec.limits.memory_mb
        return settings

    async def _terminate(self) -> None:
        if self._pidfd >= 0:
            await asyncio.to_thread(self._kill_tree)

    def _kill_tree(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        # It ends when everything in its namespace has ended.
        select.select([self._pidfd], [], [], 10)
        os.close(self._pidfd)
        if self._group is not None:
            self._group.remove()

    async def _find_cause(self) -> Death:
        return await asyncio.to_thread(self._ask_zygote)

    def _ask_zygote(self) -> Death:
        select.select([self._pidfd], [], [], 1)
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


class ZygoteProcess:
    """The host's side of a zygote and its warden. Thread-safe."""

    def __init__(self, rootfs: Path, preload: tuple[str, ...]) -> None:
        from palestra.tools.sandboxes.seccomp import filter_program

        python = _python_of(rootfs)
        hierarchy = control_groups.writable_hierarchy()
        self.groups = control_groups.GroupFolder(hierarchy) if hierarchy else None
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        lifeline, self._lifeline = os.pipe()
        settings = {
            "rootfs": str(rootfs),
            "uid": _dedicated_uid() if os.getuid() == 0 else None,
            "python": python,
            "source": bundle("zygote") + "import sys\nmain(int(sys.argv[1]))\n",
            "groups": [str(path) for path in self.groups.paths] if self.groups else [],
        }
        with theirs:
            self._warden = subprocess.Popen(
                [*_warden_command(), "watch", str(lifeline), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(lifeline, theirs.fileno()),
                cwd="/",
            )
        os.close(lifeline)
        assert self._warden.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._warden.stdin.write(json.dumps(settings).encode() + b"\n")
            self._warden.stdin.close()
        seccomp = base64.b64encode(filter_program()).decode()
        first = {"preload": list(preload), "seccomp": seccomp}
        try:
            self._control.settimeout(START_TIMEOUT_S)
            self._control.send(json.dumps(first).encode())
            ready = self._control.recv(1 << 16)
        except OSError:
            ready = b""
        if not ready:
            said = self.close()
            raise Failure(
                "sandbox:namespace",
                f"its zygote did not start: {said.splitlines()[-1] if said else 'no word from it'}",
            )

    def spawn(self, request: dict[str, Any], theirs: socket.socket) -> tuple[int, int]:
        """Clone a sandbox that serves this socket: (its pid in the zygote's eyes, its pidfd)."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
        answer, fds = self._ask(request, rights)
        if not fds:
            raise Failure("sandbox:namespace", str(answer.get("error"))[:300])
        return int(answer["pid"]), fds[0]

    def status(self, pid: int) -> int | None:
        """How a clone has ended: its exit status, negative for a signal; None if it has not."""
        answer, _ = self._ask({"op": "status", "pid": pid}, [])
        status = answer["status"]
        return None if status is None else int(status)

    @property
    def alive(self) -> bool:
        """Whether it can clone."""
        return self._warden.poll() is None

    def close(self) -> str:
        """End it, and with it all of its sandboxes; returns what it has complained of."""
        with self._lock:
            if self._lifeline >= 0:
                os.close(self._lifeline)
            self._lifeline = -1
            self._control.close()
        try:
            self._warden.wait(10)
        except subprocess.TimeoutExpired:
            self._warden.kill()
            self._warden.wait()
        assert self._warden.stderr is not None
        with self._warden.stderr as stream:
            return stream.read(10_000).decode("utf-8", "replace").strip()

    def disown(self) -> None:
        """In a forked process: it is the parent's."""
        os.close(self._lifeline)
        self._control.close()
        assert self._warden.stderr is not None
        self._warden.stderr.close()
        self._warden.returncode = 0

    def _ask(self, request: dict[str, Any], rights: list[Any]) -> tuple[dict[str, Any], list[int]]:
        with self._lock:
            try:
                self._control.sendmsg([json.dumps(request).encode()], rights)
                data, ancillary, _, _ = self._control.recvmsg(1 << 16, socket.CMSG_SPACE(4))
            except OSError as error:
                raise Failure("sandbox:namespace", f"its zygote is gone: {error}") from None
        if not data:
            raise Failure("sandbox:namespace", "its zygote is gone")
        fds = array.array("i", b"".join(item[2] for item in ancillary))
        return json.loads(data), list(fds)


_zygotes: dict[tuple[Path, tuple[str, ...]], ZygoteProcess] = {}
_zygotes_lock = threading.Lock()


def zygote_for(spec: SandboxSpec) -> ZygoteProcess:
    """The zygote of these files and modules, started if there is none or it has died."""
    rootfs = rootfs_for(spec)
    key = (rootfs, spec.preload)
    with _zygotes_lock:
        zygote = _zygotes.get(key)
        if zygote is None or not zygote.alive:
            if zygote is not None:
                zygote.close()
            zygote = _zygotes[key] = ZygoteProcess(rootfs, spec.preload)
        return zygote


def close_zygotes() -> None:
    """End all zygotes of this process and their sandboxes."""
    with _zygotes_lock:
        for zygote in _zygotes.values():
            zygote.close()
        _zygotes.clear()


def _forget_after_fork() -> None:
    global _zygotes_lock
    _zygotes_lock = threading.Lock()
    for zygote in _zygotes.values():
        zygote.disown()
    _zygotes.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def rootfs_for(spec: SandboxSpec) -> Path:
    """The folder that becomes the root: palestra's own, a given one, or an unpacked image."""
    path = prepare_rootfs(spec.packages) if spec.image is None else Path(spec.image).resolve()
    if not path.exists():
        raise ValueError(f"no root file system or image archive at {path}")
    if not path.is_dir() or (path / "oci-layout").exists():
        from palestra.tools.sandboxes.oci import rootfs_from_image

        path = rootfs_from_image(path)
    for name in MOUNT_POINTS:
        (path / name).mkdir(exist_ok=True)
        if (path / name).is_symlink():  # what is mounted there would lie outside of the folder
            raise ValueError(f"/{name} of the root file system {path} is a link: make it a folder")
    return path


def _python_of(rootfs: Path) -> str:
    for python in _PYTHONS:
        if (rootfs / python.lstrip("/")).exists() or (rootfs / python.lstrip("/")).is_symlink():
            return python
    raise ValueError(f"the root file system {rootfs} has no Python at {' or '.join(_PYTHONS)}")


def _host_pid(pidfd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise Failure("sandbox:namespace", "its process ended at once")


def _dedicated_uid() -> int:
    """A user that exists for this alone; within what a container maps."""
    first, _, count = map(int, Path("/proc/self/uid_map").read_text().split()[:3])
    return DEDICATED_UID if first + count > DEDICATED_UID else first + count - 2


def _warden_command() -> list[str]:
    return [sys.executable, "-I", "-S", "-c", bundle("warden") + "import sys\nmain(*sys.argv[1:])"]


@cache
def _problem() -> str:
    """Why there can be no such sandbox here, with the remedy; "" if there can."""
    if sys.platform != "linux":
        return f"namespaces are Linux's, this is {platform.system()}: use docker"
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"no system call table for {platform.machine()}: use docker"
    uid = [str(_dedicated_uid())] if os.getuid() == 0 else []
    probe = [*_warden_command(), "probe", *uid]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return (
            f"user namespaces are refused here ({said[:200]}): allow them "
            "(sysctl kernel.unprivileged_userns_clone=1 or "
            "kernel.apparmor_restrict_unprivileged_userns=0), or use landlock or docker"
        )
    return ""
