"""Commands: started in a session of their own, fed, read, and ended at their deadline."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time

from palestra.tools.sandboxes.guest.memory import KillOrder
from palestra.tools.sandboxes.guest.output import PIPE_BYTES, Output
from palestra.tools.sandboxes.guest.waiting import OutOfMemory, Waiting

# How long a command's pipes are read after its end: a process that it left behind may hold them.
LINGER_S = 0.05
# Of these the guest has its own idea.
DEFAULT_SIGNALS = [signal.SIGALRM, signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ]


class Command:
    """A running command."""

    def __init__(self, pid: int, stdin_fd: int, out_fd: int, err_fd: int) -> None:
        self.pid = pid
        self.stdin_fd, self.out_fd, self.err_fd = stdin_fd, out_fd, err_fd


def start(
    argv: list[str], environment: dict[str, str], folder: str, kill_order: KillOrder
) -> Command:
    """Start it in a folder. Raises OSError: no such program or folder, too many processes."""
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (stdin_read, stdin_write), (out_read, out_write), (err_read, err_write) = pipes
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin_read, 0),
        (os.POSIX_SPAWN_DUP2, out_write, 1),
        (os.POSIX_SPAWN_DUP2, err_write, 2),
    ]
    try:
        os.chdir(folder)
        program = _find(argv[0], environment.get("PATH", os.defpath))
        kill_order.expose()
        pid = os.posix_spawn(
            program,
            argv,
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=DEFAULT_SIGNALS,
        )
    except BaseException:
        for fd in (stdin_write, out_read, err_read):
            os.close(fd)
        raise
    finally:
        kill_order.restore()
        os.chdir("/")
        for fd in (stdin_read, out_write, err_write):
            os.close(fd)
    for fd in (stdin_write, out_read, err_read):
        os.set_blocking(fd, False)
    return Command(pid, stdin_write, out_read, err_read)


def _find(name: str, path: str) -> str:
    """A program, as a shell finds it. `shutil.which`, too, but that imports much else."""
    candidates = [name] if "/" in name else [f"{folder}/{name}" for folder in path.split(":")]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def attend(
    command: Command, waiting: Waiting, stdin: bytes, out: Output, err: Output, deadline: float
) -> tuple[int, str]:
    """Feed and read it until it ends; (exit status, "" or why it was killed)."""
    children = waiting.children
    children.add(command.pid)
    sources = {command.out_fd: out, command.err_fd: err}
    left = memoryview(stdin)
    ended, reason = 0.0, ""
    try:
        while sources or not children.has_ended(command.pid):
            now = time.monotonic()
            if not ended and children.has_ended(command.pid):
                ended = now
            until = min(deadline, ended + LINGER_S) if ended else deadline
            if now >= until:
                reason = "" if ended else "timeout"
                break
            if not left and command.stdin_fd >= 0:
                os.close(command.stdin_fd)
                command.stdin_fd = -1
            interest = dict.fromkeys(sources, select.POLLIN)
            if command.stdin_fd >= 0:
                interest[command.stdin_fd] = select.POLLOUT
            for fd in waiting.wait(interest, until):
                if fd == command.stdin_fd:
                    left = left[_write_some(fd, left) :]
                elif fd in sources and not sources[fd].read_from(fd):
                    del sources[fd]
    except OutOfMemory:
        reason = "memory"
    finally:
        if not children.has_ended(command.pid):
            children.kill(command.pid)
        for fd, kept in sources.items():
            kept.drain(fd)
        for fd in {command.out_fd, command.err_fd, command.stdin_fd} - {-1}:
            os.close(fd)
        children.forget_groups()
    return children.take_status(command.pid), reason


def _write_some(fd: int, data: memoryview) -> int:
    """How much of it is done with, which is all if nobody reads it any more."""
    with contextlib.suppress(BlockingIOError):
        try:
            return os.write(fd, data[:PIPE_BYTES])
        except BrokenPipeError:
            return len(data)
    return 0
