"""`WorkerProcess`: a Python process that answers requests and can be killed with its offspring."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any, cast
from weakref import WeakSet

from palestra.tools.trouble import TimedOut

_BOOTSTRAP = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from palestra.tools.isolation_worker import main
main()
"""


class WorkerProcess:
    """A process in a session of its own that reads and writes lines of JSON.

    It does not outlive this process: when its input ends, it kills its group.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            # glibc would reserve 64 MB of address space for each thread that allocates, at a moment
            # of its own choosing: that must not count as the memory of the tool that runs then.
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self._lock = threading.Lock()
        self._reaped = False
        self._received = b""
        _all.add(self)

    def send(self, request: dict[str, Any]) -> None:
        """Raises OSError if the process has ended."""
        line = json.dumps(request).encode() + b"\n"
        while line:
            line = line[self._requests.write(line) :]

    def receive(self, timeout_s: float) -> dict[str, str]:
        """The next answer. Raises TimedOut, or OSError if the process ends before it comes."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._poll.poll(left_s * 1000):
                raise TimedOut
            received = self._answers.read(1 << 16)
            if not received:
                raise BrokenPipeError
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return cast(dict[str, str], json.loads(line))

    def kill(self) -> None:
        """Kill it and every process of its group, without waiting for their end."""
        with self._lock:  # once reaped, the number may be another group's
            if not self._reaped:
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> str:
        """Kill it, wait for its end and say how it ended, e.g. "killed by SIGSEGV"."""
        self.kill()
        with self._lock:
            status = self._process.wait()
            self._reaped = True
        self._requests.close()
        self._answers.close()
        return (
            f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        )

    def disown(self) -> None:
        """In a forked process: it is the parent's to kill and to wait for."""
        self._reaped = True
        self._process.returncode = 0


_all: WeakSet[WorkerProcess] = WeakSet()


def _kill_all() -> None:
    for worker in list(_all):
        worker.kill()


def _disown_all() -> None:
    for worker in list(_all):
        worker.disown()
    _all.clear()


atexit.register(_kill_all)
os.register_at_fork(after_in_child=_disown_all)
