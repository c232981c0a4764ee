"""The host's side of the launchers of `landlock` sandboxes (see landlock_keeper.py)."""

from __future__ import annotations

import array
import atexit
import contextlib
import importlib.util
import json
import os
import platform
import socket
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

from palestra.tools.sandboxes import control_groups
from palestra.tools.sandboxes.folder_cache import check_reachable
from palestra.tools.sandboxes.guest_sandbox import bundle
from palestra.types import Failure

END_TIMEOUT_S = 15.0
PYTHON = "/usr/local/bin/python3"  # below the root file system


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
                [f"{rootfs}{PYTHON}", "-I", "-c", source, *arguments, *groups],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                stderr=self._errors,
                env={**environment_in(rootfs), "HOME": "/"},  # sandlock asks for a home
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
_killed: list[LauncherProcess] = []  # whose sandboxes may live on
_launchers_lock = threading.Lock()


def launcher_in(rootfs: Path, hierarchy: control_groups.Hierarchy | None) -> LauncherProcess:
    """The launcher for these files and groups, started if there is none or it has died."""
    with _launchers_lock:
        launcher = _launchers.get((rootfs, hierarchy))
        if launcher is None or not launcher.alive:
            if launcher is not None:
                _killed.append(launcher)
            launcher = _launchers[rootfs, hierarchy] = LauncherProcess(rootfs, hierarchy)
        return launcher


def close_launchers() -> None:
    """End this process's launchers; the next sandbox starts another."""
    with _launchers_lock:
        for launcher in (*_launchers.values(), *_killed):
            launcher.close()
        _launchers.clear()
        _killed.clear()


def _forget_after_fork() -> None:
    global _launchers_lock
    _launchers_lock = threading.Lock()
    for launcher in (*_launchers.values(), *_killed):
        launcher.disown()
    _launchers.clear()
    _killed.clear()


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
def environment_in(rootfs: Path) -> dict[str, str]:
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
