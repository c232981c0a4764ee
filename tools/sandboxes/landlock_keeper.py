"""The processes around `landlock` sandboxes: a launcher, and a keeper for each sandbox.

palestra starts a launcher for a root file system, in its interpreter, and sends it, for each
sandbox, settings and two sockets: the guest's connection and a link to its owner. The launcher
makes the sandbox's private folder and forks a keeper, which becomes a user of its own where the
launcher is root, forks the guest, which shuts itself in, and watches. The kernel gives the keeper
every orphan of its sandbox, so at the end, which may be the end of its owner, nothing is left: it
kills all that descends from it and removes the folder. The launcher does so for a keeper that was
killed, and tells the owner how each keeper has ended.

sandlock, the guest and the standard library: it is run as a bundle.
"""

from __future__ import annotations

import array
import base64
import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from typing import Any

from palestra.tools.sandboxes import kernel
from palestra.tools.sandboxes.group_removal import remove_groups
from palestra.tools.sandboxes.guest import server
from palestra.tools.sandboxes.guest.memory import holds_more_than
from palestra.tools.sandboxes.kernel import check, libc
from palestra.tools.sandboxes.process_tree import (
    END_S,
    descendants,
    kill_descendants,
    reap_orphans,
    wake_at_ends,
)

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
PREFIX = "palestra-landlock-"
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
WRITABLE = ("work", "tmp")
# Users that belong to nobody (systemd leaves the range unused), so that the kernel's count of a
# user's processes is one sandbox's.
FIRST_UID = 0x7000_0000
TICK_S = 0.05
FILES_TICK_S = 0.5
# A folder is locked by its keeper from a moment after it was made.
UNLOCKED_S = 30.0


class Launcher:
    """Forks keepers on request, until its owner is gone."""

    def __init__(self, control: socket.socket, folder: str) -> None:
        self.control = control
        self.folder = folder
        self.keepers: dict[int, tuple[socket.socket, str]] = {}

    def serve(self) -> None:
        """Answer requests and notice the end of keepers."""
        woken = wake_at_ends()
        while True:
            ready, _, _ = select.select([self.control.fileno(), woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                self._notice_ends()
            if self.control.fileno() in ready and not self._serve_one():
                break
        for link, _ in self.keepers.values():
            link.shutdown(socket.SHUT_RD)  # as if its owner had closed the other end
        deadline = time.monotonic() + END_S
        while self.keepers and time.monotonic() < deadline:
            select.select([woken], [], [], END_S)
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
            self._notice_ends()

    def _serve_one(self) -> bool:
        text, ancillary, _, _ = self.control.recvmsg(1 << 19, socket.CMSG_SPACE(8))
        if not text:
            return False
        fds = array.array("i", b"".join(item[2] for item in ancillary))
        link, channel = (socket.socket(fileno=fd) for fd in fds)
        try:
            folder = tempfile.mkdtemp(prefix=PREFIX, dir=self.folder)
            pid = os.fork()
        except OSError as error:
            with channel, link:
                tell(link, {"error": str(error)})
            return True
        if pid == 0:
            self._become_keeper(json.loads(text), link, channel, folder)
        channel.close()
        self.keepers[pid] = link, folder
        return True

    def _become_keeper(
        self, settings: dict[str, Any], link: socket.socket, channel: socket.socket, folder: str
    ) -> None:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            for other, _ in self.keepers.values():
                other.close()
            Keeper(settings, link, folder).keep(channel)
        except BaseException as error:
            tell(link, {"error": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(1)

    def _notice_ends(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] not in self.keepers:
                    continue
                link, folder = self.keepers.pop(ended[0])
                status = os.waitstatus_to_exitcode(ended[1])
                if status:
                    # What the keeper would have done; its orphans are this process's now.
                    kill_descendants(spared=self.keepers.keys())
                    remove_folder(folder)
                with link:
                    tell(link, {"keeper": status})


class Keeper:
    """One sandbox's: starts it, watches it, ends it."""

    def __init__(self, settings: dict[str, Any], link: socket.socket, folder: str) -> None:
        self.settings = settings
        self.link = link
        self.folder = folder

    def keep(self, channel: socket.socket) -> None:
        """The sandbox's whole life; does not return."""
        os.setsid()
        fcntl.flock(os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_EX)
        check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "becoming a subreaper")
        try:
            if os.getuid() == 0:
                become(own_uid(), self.folder)
            for name in (*WRITABLE, "bin"):
                os.mkdir(f"{self.folder}/{name}")
            for name, text in self.settings["scripts"].items():
                with open(f"{self.folder}/bin/{name}", "w") as file:
                    file.write(text)
                os.chmod(file.name, 0o755)
            guest = self._supervise(channel) if self.settings["network"] else self._fork(channel)
            tell(self.link, {"pid": guest.pid, "folder": self.folder})
            # The kernel, out of memory, is to take the sandbox first.
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{guest.pid}/oom_score_adj", "w") as file,
            ):
                file.write("1000")
            self._watch(guest)
        finally:
            kill_descendants()
            remove_folder(self.folder)
        os._exit(0)

    def _rules(self) -> dict[str, list[str]]:
        return {
            "fs_readable": [*self.settings["readable"], f"{self.folder}/bin"],
            "fs_writable": [*DEVICES, *(f"{self.folder}/{name}" for name in WRITABLE)],
        }

    def _fork(self, channel: socket.socket) -> ForkedGuest:
        """A guest that has no network needs no supervisor: it confines itself and serves."""
        pid = os.fork()
        if pid:
            channel.close()
            return ForkedGuest(pid)
        try:
            os.setsid()
            os.chdir(f"{self.folder}/work")
            os.environ.clear()
            os.environ.update(self.settings["env"])
            sandlock = importlib.import_module("sandlock")
            sandlock.confine(sandlock.Sandbox(**self._rules()))
            for program in self.settings["filters"]:
                kernel.load_filter(base64.b64decode(program))
            fd = channel.detach()
            os.dup2(fd, 3)
            os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            server.main(3, 3)
        except BaseException as error:
            tell(self.link, {"error": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(1)

    def _supervise(self, channel: socket.socket) -> SupervisedGuest:
        """A guest whose connections are made by sandlock's supervisor, a thread of this process.

        The channel is its standard input and output.
        """
        sandbox = importlib.import_module("sandlock").Sandbox(
            **self._rules(),
            net_allow=self.settings["network"],
            cwd=f"{self.folder}/work",
            clean_env=True,
            env=self.settings["env"],
            name=f"sandbox-{os.getpid()}",
        )
        with channel:
            for fd in (0, 1):
                os.dup2(channel.fileno(), fd)
        try:
            return SupervisedGuest(sandbox.popen(self.settings["argv"]))
        finally:
            nothing = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1):
                os.dup2(nothing, fd)
            os.close(nothing)

    def _watch(self, guest: ForkedGuest | SupervisedGuest) -> None:
        """Until the guest ends, takes too much, or its owner wants no more of it."""
        pidfd = os.pidfd_open(guest.pid)
        woken = wake_at_ends()
        poll = select.poll()
        for fd in (pidfd, woken, self.link.fileno()):
            poll.register(fd, select.POLLIN)
        grouped = self.settings["grouped"]
        files_at = 0.0
        while True:
            ready = dict(poll.poll(1000 * (FILES_TICK_S if grouped else TICK_S)))
            if self.link.fileno() in ready:
                return
            if pidfd in ready:
                tell(self.link, {"status": guest.wait()})
                return
            if woken in ready:
                os.read(woken, 4096)
            reap_orphans(spared=guest.pid)
            exceeded = "" if grouped else self._exceeded_by_processes()
            if not exceeded and (now := time.monotonic()) >= files_at:
                exceeded = self._exceeded_by_files()
                files_at = now + max(FILES_TICK_S, 20 * (time.monotonic() - now))
            if exceeded:
                tell(self.link, {"exceeded": exceeded})
                return

    def _exceeded_by_processes(self) -> str:
        pids = descendants()
        if len(pids) > self.settings["processes"]:
            return "processes"
        return "memory" if holds_more_than(pids, self.settings["memory_mb"]) else ""

    def _exceeded_by_files(self) -> str:
        blocks, count = files_below(self.folder)
        if blocks > self.settings["disk_mb"] << 11:
            return "disk"
        return "inodes" if count > self.settings["inodes"] else ""


class ForkedGuest:
    """A guest that is a child of the keeper."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> int:
        """Its exit status, or the negative number of a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class SupervisedGuest:
    """A guest that sandlock has started."""

    def __init__(self, process: Any) -> None:
        self.pid: int = process.pid
        self._process = process

    def wait(self) -> int:
        """Its exit status, or the negative number of a signal."""
        result = self._process.wait(timeout=1)
        return -result.signal if result.signal > 0 else int(result.exit_code)


def tell(link: socket.socket, message: dict[str, Any]) -> None:
    """Send the owner a message, if there still is one."""
    with contextlib.suppress(OSError):
        link.send(json.dumps(message).encode())


def own_uid() -> int:
    """A user for this process alone, within what a container maps."""
    with open("/proc/self/uid_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    first, _, count = max(ranges)
    uid = FIRST_UID + os.getpid()
    return uid if uid < first + count else first + count - 2 - os.getpid() % max(1, count // 2)


def become(uid: int, folder: str) -> None:
    """Give up the host's root: an owner of its files needs no capability to write them."""
    os.chown(folder, uid, uid)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")  # its /proc files are its own


def sweep(parent: str) -> None:
    """Remove the folders whose keepers are gone."""
    for entry in os.scandir(parent):
        if not entry.name.startswith(PREFIX):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(fd).st_mtime >= UNLOCKED_S:
                    remove_folder(entry.path)
            finally:
                os.close(fd)


def remove_folder(path: str) -> None:
    """Remove it with all in it, whatever the code inside has forbidden its owner."""
    for folder, below, _ in os.walk(path):  # a folder is opened after it was allowed
        for name in below:
            if not os.path.islink(inner := f"{folder}/{name}"):
                with contextlib.suppress(OSError):
                    os.chmod(inner, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def files_below(folder: str) -> tuple[int, int]:
    """How many blocks of 512 bytes they take, and how many there are."""
    blocks = count = 0
    waiting = [folder]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                count += 1
                with contextlib.suppress(OSError):
                    blocks += entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return blocks, count


def main(control_fd: str, packages: str, folder: str, *groups: str) -> None:
    """Be the launcher; `packages` is where sandlock is, `groups` are to be removed at the end."""
    os.setsid()
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "becoming a subreaper")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sys.path.append(packages)
    importlib.import_module("sandlock")
    sys.path.remove(packages)
    with contextlib.suppress(OSError):
        sweep(folder)
    control = socket.socket(fileno=int(control_fd))
    control.set_inheritable(False)
    # The collector would write to every page that the guests share.
    gc.collect()
    gc.freeze()
    try:
        Launcher(control, folder).serve()
    finally:
        remove_groups(list(groups))
