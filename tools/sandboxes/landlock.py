"""`LandlockSandbox`: Landlock and seccomp, through sandlock, where namespaces are denied."""

from __future__ import annotations

import array
import asyncio
import atexit
import base64
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from palestra.tools.sandboxes import control_groups
from palestra.tools.sandboxes.channel import Channel, SocketChannel
from palestra.tools.sandboxes.folder_cache import check_reachable
from palestra.tools.sandboxes.guest_sandbox import Death, GuestSandbox, bundle
from palestra.tools.sandboxes.landlock_filter import narrow_program
from palestra.tools.sandboxes.limits import Capabilities, Guarantee, Limits
from palestra.tools.sandboxes.rootfs import prepare_rootfs
from palestra.tools.sandboxes.seccomp import filter_program
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.tools.sandboxes.system_calls import NUMBERS
from palestra.types import Failure

LEAST_ABI = 6
END_TIMEOUT_S = 15.0
# What the guest needs beside the sandbox's own processes, where a user's threads are counted: the
# keeper's.
KEEPER_THREADS = 8
_PYTHON = "/usr/local/bin/python3"
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
            held |= dict.fromkeys((Guarantee.MEMORY_TOTAL, Guarantee.PROCESSES), watched)
        return Capabilities(backend=cls.backend, guarantees=held)

    @staticmethod
    def _hierarchy() -> control_groups.Hierarchy | None:
        """The control groups to use."""
        return control_groups.writable_hierarchy()

    async def _launch(self) -> Channel:
        return await asyncio.to_thread(self._start_keeper)

    def _start_keeper(self) -> Channel:
        hierarchy = self._hierarchy()
        self._rootfs = prepare_rootfs(self.spec.packages)
        settings = _keeper_settings(self.spec.limits, self._rootfs, grouped=hierarchy is not None)
        self._link, their_link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.settimeout(END_TIMEOUT_S)
        ours, theirs = socket.socketpair()
        try:
            with their_link, theirs:
                launcher = _launcher_in(self._rootfs, hierarchy)
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
        environment |= _environment(self._rootfs) | dict(self.spec.env)
        environment["PATH"] = f"{self._folder}/bin:{environment['PATH']}"
        environment["TMPDIR"] = f"{self._folder}/tmp"
        if os.getuid() == 0:  # else other processes of this user would count
            settings["rlimits"]["NPROC"] = self.spec.limits.processes + KEEPER_THREADS
        return settings

    async def _terminate(self) -> None:
        if self._link is not None:
            await asyncio.to_thread(self._kill_tree)

    def _kill_tree(self) -> None:
        assert self._link is not None
        with self._link, contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)
            self._listen()
        if self._group is not None:
            self._group.remove()

    async def _find_cause(self) -> Death:
        return await asyncio.to_thread(self._end_of_guest)

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
        "argv": [f"{rootfs}{_PYTHON}", "-I", "-c", source],
        "env": _environment(rootfs),
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
def _environment(rootfs: Path) -> dict[str, str]:
    """How programs find below the root file system what they look for below /."""
    folders = ("local/lib", f"lib/{platform.machine()}-linux-gnu", "lib64", "lib")
    libraries = [f"{rootfs}/usr/{name}" for name in folders if (rootfs / "usr" / name).exists()]
    return {
        "PATH": ":".join(f"{rootfs}/usr/{name}" for name in ("local/bin", "bin", "sbin")),
        "LD_LIBRARY_PATH": ":".join(libraries),
        "GIT_EXEC_PATH": f"{rootfs}/usr/lib/git-core",
        "GIT_TEMPLATE_DIR": f"{rootfs}/usr/share/git-core/templates",
        "GIT_CONFIG_SYSTEM": f"{rootfs}/etc/gitconfig",
        "PYTHONTZPATH": f"{rootfs}/usr/share/zoneinfo",
        "TZDIR": f"{rootfs}/usr/share/zoneinfo",
        "TERMINFO": f"{rootfs}/usr/share/terminfo",
        "LOCPATH": f"{rootfs}/usr/lib/locale",
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


class LauncherProcess:
    """The host's side of a launcher. Thread-safe."""

    def __init__(self, rootfs: Path, hierarchy: control_groups.Hierarchy | None) -> None:
        check_reachable(rootfs)
        self.groups = control_groups.GroupFolder(hierarchy) if hierarchy else None
        groups = map(str, self.groups.paths) if self.groups else ()
        packages = importlib.util.find_spec("sandlock")
        assert packages is not None and packages.origin is not None
        self._lock = threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            source = bundle("landlock_keeper") + "import sys\nmain(*sys.argv[1:])\n"
            fd = theirs.fileno()
            arguments = [str(fd), str(Path(packages.origin).parents[1]), _temporary_folder()]
            self._process = subprocess.Popen(
                [f"{rootfs}{_PYTHON}", "-I", "-c", source, *arguments, *groups],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                stderr=self._errors,
                env={**_environment(rootfs), "HOME": "/"},  # sandlock asks for a home
            )

    def start(self, settings: dict[str, Any], link: socket.socket, channel: socket.socket) -> None:
        """Have a keeper forked, at the other end of the link. Raises Failure."""
        fds = array.array("i", [link.fileno(), channel.fileno()])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        try:
            with self._lock:
                self._control.sendmsg([json.dumps(settings).encode()], rights)
        except OSError as error:
            raise Failure("sandbox:landlock", f"its launcher is gone: {error}") from None

    @property
    def alive(self) -> bool:
        """Whether it can fork keepers."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def said(self) -> str:
        """The last line of what it has complained of."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"its launcher ended: {lines[-1][:500] if lines else 'no word from it'}"

    def close(self) -> None:
        """End it; it waits for the end of the sandboxes whose owners are gone."""
        self._control.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        for path in self.groups.paths if self.groups else ():
            with contextlib.suppress(OSError):  # the launcher has removed it, unless it was killed
                path.rmdir()

    def disown(self) -> None:
        """In a forked process: it is the parent's."""
        self._control.close()
        self._errors.close()
        self._process.returncode = 0


_launchers: dict[tuple[Path, control_groups.Hierarchy | None], LauncherProcess] = {}
_launchers_lock = threading.Lock()


def _launcher_in(rootfs: Path, hierarchy: control_groups.Hierarchy | None) -> LauncherProcess:
    with _launchers_lock:
        launcher = _launchers.get((rootfs, hierarchy))
        if launcher is None or not launcher.alive:
            if launcher is not None:
                launcher.close()
            launcher = _launchers[rootfs, hierarchy] = LauncherProcess(rootfs, hierarchy)
        return launcher


def close_launchers() -> None:
    """End this process's launchers; the next sandbox starts another."""
    with _launchers_lock:
        for launcher in _launchers.values():
            launcher.close()
        _launchers.clear()


def _forget_after_fork() -> None:
    global _launchers_lock
    _launchers_lock = threading.Lock()
    for launcher in _launchers.values():
        launcher.disown()
    _launchers.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(close_launchers)


def _temporary_folder() -> str:
    """Where the private folders are made: the user that a sandbox becomes must get there."""
    folder = tempfile.gettempdir()
    try:
        check_reachable(Path(folder))
    except ValueError:
        return "/tmp"
    return folder


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
