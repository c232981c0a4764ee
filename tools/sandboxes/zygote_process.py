"""`ZygoteProcess`: the host's side of a zygote and its warden, one for each root file system."""

from __future__ import annotations

import array
import asyncio
import atexit
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from palestra.tools.sandboxes import control_groups
from palestra.tools.sandboxes.blocking import run_blocking, to_its_end
from palestra.tools.sandboxes.guest_sandbox import WORK_FOLDER, bundle, environment_in
from palestra.tools.sandboxes.rootfs import MOUNT_POINTS, prepare_rootfs
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.types import Failure

START_TIMEOUT_S = 60.0
# The host's user that sandboxes of a host's root belong to: nobody else's.
DEDICATED_UID = 200_001
# Imported before the first clone, so that all share them: what is small, and has no hooks that run
# in every process that is forked. More is for `SandboxSpec.preload`.
WARM = (
    *("bisect", "collections", "copy", "dataclasses", "datetime", "functools", "heapq"),
    *("itertools", "json", "math", "operator", "re", "string", "textwrap", "typing"),
)
_PYTHONS = ("/usr/local/bin/python3", "/usr/bin/python3")


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
            "uid": dedicated_uid() if os.getuid() == 0 else None,
            "python": python,
            "source": bundle("zygote", dense_after=WARM) + "import sys\nmain(int(sys.argv[1]))\n",
            "groups": [str(path) for path in self.groups.paths] if self.groups else [],
        }
        with theirs:
            self._warden = subprocess.Popen(
                [*warden_command(), "watch", str(lifeline), str(theirs.fileno())],
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
        first = {
            "preload": list(preload),
            "seccomp": filter_program().hex(),
            "env": environment_in(WORK_FOLDER),
        }
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

    async def ask_for_clone(self, request: dict[str, Any], theirs: socket.socket) -> None:
        """Have a sandbox cloned that serves this socket, whose other end is told of it first."""
        message = [json.dumps(request).encode()]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
        try:
            try:
                self._control.sendmsg(message, rights, socket.MSG_DONTWAIT)
            except BlockingIOError:  # few requests fit into the queue
                await to_its_end(run_blocking(self._control.sendmsg, message, rights))
        except OSError as error:
            raise Failure("sandbox:namespace", f"its zygote is gone: {error}") from None

    def status(self, pid: int) -> int | None:
        """How a clone has ended: its exit status, negative for a signal; None if it has not."""
        with self._lock:
            try:
                self._control.send(json.dumps({"op": "status", "pid": pid}).encode())
                data = self._control.recv(1 << 16)
            except OSError as error:
                raise Failure("sandbox:namespace", f"its zygote is gone: {error}") from None
        if not data:
            raise Failure("sandbox:namespace", "its zygote is gone")
        status = json.loads(data)["status"]
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


async def readable(fd: int) -> None:
    """Wait until there is something to read, or its end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def receive_clone(connection: socket.socket) -> tuple[int, int]:
    """What the zygote tells of a clone: its pid in the zygote's eyes, and its pidfd."""
    await readable(connection.fileno())
    try:
        data, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(4))
    except OSError as error:
        raise Failure("sandbox:namespace", f"its zygote is gone: {error}") from None
    if len(data) < 4:
        raise Failure("sandbox:namespace", "its zygote is gone")
    (pid,) = struct.unpack("i", data)
    if pid < 0:
        raise Failure("sandbox:namespace", f"clone: {os.strerror(-pid)}")
    ((_, _, rights),) = ancillary
    return pid, struct.unpack("i", rights)[0]


_zygotes: dict[tuple[Path, tuple[str, ...]], ZygoteProcess] = {}
_by_spec: dict[tuple[str | None, tuple[str, ...], tuple[str, ...]], ZygoteProcess] = {}
_zygotes_lock = threading.Lock()


def running_zygote(spec: SandboxSpec) -> ZygoteProcess | None:
    """The zygote that was found before for such a specification, if it lives."""
    zygote = _by_spec.get(_files_and_modules(spec))
    return zygote if zygote is not None and zygote.alive else None


def _files_and_modules(
    spec: SandboxSpec,
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    return (spec.image, spec.packages, spec.preload)


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
        _by_spec[_files_and_modules(spec)] = zygote
        return zygote


def close_zygotes() -> None:
    """End all zygotes of this process and their sandboxes."""
    with _zygotes_lock:
        for zygote in _zygotes.values():
            zygote.close()
        _zygotes.clear()
        _by_spec.clear()


def _forget_after_fork() -> None:
    global _zygotes_lock
    _zygotes_lock = threading.Lock()
    for zygote in _zygotes.values():
        zygote.disown()
    _zygotes.clear()
    _by_spec.clear()


atexit.register(close_zygotes)
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


def dedicated_uid() -> int:
    """A user that exists for this alone; within what a container maps."""
    first, _, count = map(int, Path("/proc/self/uid_map").read_text().split()[:3])
    return DEDICATED_UID if first + count > DEDICATED_UID else first + count - 2


def warden_command() -> list[str]:
    """Runs warden.py in this interpreter."""
    return [sys.executable, "-I", "-S", "-c", bundle("warden") + "import sys\nmain(*sys.argv[1:])"]
