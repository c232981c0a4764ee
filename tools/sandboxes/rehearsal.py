"""The zygote does what its clones will do, so that they find it done.

CPython adapts code while it runs and remembers where attributes were found. A clone that did so
would write to some hundred pages of memory, and get a copy of each. Only the standard library:
bundled into the zygote.
"""

from __future__ import annotations

import linecache
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from palestra.tools.sandboxes.clone_steps import bring_up_loopback, take, write_if_there
from palestra.tools.sandboxes.guest.frames import pack
from palestra.tools.sandboxes.guest.interpreter import Interpreter
from palestra.tools.sandboxes.guest.memory import enforce_total
from palestra.tools.sandboxes.guest.server import Guest
from palestra.tools.sandboxes.kernel import libc, write_text

if TYPE_CHECKING:
    from palestra.tools.sandboxes.clone_steps import Step
    from palestra.tools.sandboxes.guest.interpreter import Streams

ROUNDS = 20  # code is adapted after eight runs
OUTPUT_BYTES = 1 << 18
WATCHED_MB = 1 << 20  # more than there is: nothing shall be killed
STEPS: list[Step] = [
    (libc.getpid, (), "getpid"),
    (write_text, (os.devnull, ""), ""),
    (write_if_there, ("/proc/none", ""), ""),
    (bring_up_loopback, (), ""),
]
CELLS = (
    b"1 + 1",
    b"x = 1\nx",
    b"def square(a):\n    return [b * b for b in a]\nprint(square([1, 2]))",
    b"1 / 0",
)


def rehearse(guest: Guest, streams: Streams) -> None:
    """Serve a host that says little, as a guest and as its session, many times."""
    modules, path, argv = dict(sys.modules), list(sys.path), list(sys.argv)
    for _ in range(ROUNDS):
        take(STEPS)
        enforce_total(WATCHED_MB)
        _serve(guest)
        _answer(streams)
    sys.modules["__main__"] = modules["__main__"]
    sys.path[:], sys.argv = path, argv
    linecache.clearcache()


def _serve(guest: Guest) -> None:
    hello = {
        "op": "hello",
        "home": "/",
        "env": dict(os.environ),
        "output_bytes": OUTPUT_BYTES,
        "wall_s": 0,
        "watched_mb": WATCHED_MB,
        "protect": False,
        "preload": [],
        "rlimits": {},
    }
    call: dict[str, Any] = {"op": "python", "timeout_s": 30}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for request, payload in ((hello, b""), *((call, cell) for cell in CELLS)):
            ours.sendall(pack(request, payload))
        ours.shutdown(socket.SHUT_WR)
        guest.connect(theirs.fileno(), theirs.fileno())
        guest.fork_session()
        guest.serve()
        guest.disconnect()


def _answer(streams: Streams) -> None:
    interpreter = Interpreter()
    settings: dict[str, Any] = {
        "env": None,
        "home": "/",
        "output_bytes": OUTPUT_BYTES,
        "rlimits": {},
    }
    interpreter.settle(os.open(os.devnull, os.O_RDWR), settings, streams)
    for number, cell in enumerate(CELLS):
        interpreter.answer({"op": "execute", "id": number}, cell)
