"""In the tests' sandbox: runs tests in a process of their own, whose questions go to the host."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import tempfile
from typing import Any

from palestra.verifiers.code.guest.plain import Text
from palestra.verifiers.code.guest.proxies import Client
from palestra.verifiers.code.guest.run_tests import run_tests

_LENGTH = struct.Struct(">I")
_PYTEST = "pytest"


class Relay:
    """Lives in the Python session of the tests' sandbox; one run at a time.

    What it returns is JSON: ["ask", question], ["done", {...}] or ["ended", status] for tests whose
    process has ended by itself.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._folder = ""
        self._socket: socket.socket | None = None

    def start(self, job: str) -> Text:
        """Begin to run tests; to the first question, or the end."""
        self.stop()
        if json.loads(job)["runner"] == _PYTEST:
            with contextlib.suppress(ImportError):  # said by the run, if it is missing
                __import__(_PYTEST)  # once for all runs
        self._folder = tempfile.mkdtemp(prefix="tests-")
        self._socket, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._socket.close()
                _run_in_child(theirs, json.loads(job), self._folder)
            finally:
                os._exit(1)
        theirs.close()
        return self._next()

    def resume(self, reply: str) -> Text:
        """Give the reply to the last question; to the next one, or the end."""
        assert self._socket is not None
        _send(self._socket, reply)
        return self._next()

    def stop(self) -> None:
        """End a run that is not over, and remove what it has left."""
        if self._pid:
            for kill, target in ((os.killpg, self._pid), (os.kill, self._pid)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(target, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        if self._socket is not None:
            self._socket.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._pid, self._folder, self._socket = 0, "", None

    def _next(self) -> Text:
        assert self._socket is not None
        message = _receive(self._socket)
        if message is None or message.startswith('["done"'):
            self.stop()
        return Text('["ended"]' if message is None else message)


def _run_in_child(connection: socket.socket, job: dict[str, Any], folder: str) -> None:
    """Run the tests and exit."""
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.chdir(folder)

    def exchange(question: str) -> dict[str, Any]:
        _send(connection, json.dumps(["ask", question]))
        reply = _receive(connection)
        if reply is None:
            os._exit(1)
        answer: dict[str, Any] = json.loads(reply)
        return answer

    result = run_tests(job, Client(exchange, job["max_chars"]))
    _send(connection, json.dumps(["done", result]))
    os._exit(0)


def _send(connection: socket.socket, text: str) -> None:
    data = text.encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _receive(connection: socket.socket) -> str | None:
    head = _receive_exactly(connection, _LENGTH.size)
    if head is None:
        return None
    data = _receive_exactly(connection, _LENGTH.unpack(head)[0])
    return None if data is None else data.decode()


def _receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(min(count - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)
