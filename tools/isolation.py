"""Run isolated tools in worker processes that can be killed.

Workers are started when first needed, kept, and shared by all isolated tools: a call costs two
messages over pipes. One that runs out of time or memory is killed with all the processes it has
started, and the next call gets a new one. What happens inside is in `isolation_worker.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from palestra.tools.threads import TimedOut, run_in_thread
from palestra.tools.tool import Tool
from palestra.types import Failure, ToolError

# Each takes some 50 MB: enough to keep the cores busy while a few calls hang until their timeout.
MAX_WORKERS = max(4, 2 * (os.cpu_count() or 1))
# Importing the module that defines a tool may mean importing torch.
START_TIMEOUT_S = 120.0
# Set in workers: a script that starts rollouts when it is imported would start more workers there.
WORKER_VARIABLE = "PALESTRA_ISOLATION_WORKER"


class ProvokedDeath(Exception):
    """The arguments exhausted the worker's memory or killed it."""


async def run_isolated(tool: Tool, arguments: str) -> str:
    """The text that the tool returns for arguments (JSON) that fit its schema.

    Raises:
        TimedOut, ToolError, ProvokedDeath: as the call went.
        Failure: the tool is broken, or cannot be imported.
    """
    async with _slots():
        call = _IsolatedCall(tool, arguments)
        try:
            return await run_in_thread(call.run)
        except asyncio.CancelledError:
            call.cancel()
            raise


class _IsolatedCall:
    """One call on its way through a worker; `cancel` may be called from another thread."""

    def __init__(self, tool: Tool, arguments: str) -> None:
        self._tool = tool
        self._request = {
            "function": tool.function.__qualname__,
            **_home(tool.function),
            "arguments": arguments,
            "memory_mb": tool.memory_mb,
        }
        self._worker: _Worker | None = None
        self._cancelled = False
        self._lock = threading.Lock()

    def run(self) -> str:
        worker = _take_worker()
        with self._lock:
            self._worker = worker
            cancelled = self._cancelled
        try:
            answer = {"cancelled": ""} if cancelled else self._ask(worker)
        except BaseException:
            worker.kill()
            raise
        with self._lock:
            self._worker = None
            reusable = not self._cancelled and "resources" not in answer
        if reusable:
            _idle.append(worker)
        else:
            worker.kill()
        return self._text(answer)

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._worker is not None:
                self._worker.kill_group()  # `run` then reads the end of the worker's answers

    def _ask(self, worker: _Worker) -> dict[str, str]:
        cause = f"tool:{self._tool.name}"
        try:
            worker.send(self._request)
            # The tool is imported before its time starts to run.
            answer = worker.receive(START_TIMEOUT_S)
        except TimedOut:
            raise Failure(cause, f"not imported after {START_TIMEOUT_S:g} s") from None
        except (EOFError, OSError):
            raise Failure(cause, f"its process died at start: {worker.kill()}") from None
        if "started" not in answer:
            return answer
        try:
            return worker.receive(self._tool.timeout_s)
        except EOFError:
            return {"resources": f"its process died: {worker.kill()}"}

    def _text(self, answer: dict[str, str]) -> str:
        ((kind, text),) = answer.items()
        if kind == "tool_error":
            raise ToolError(text)
        if kind == "resources":
            raise ProvokedDeath(text)
        if kind == "raised":
            raise Failure(f"tool:{self._tool.name}", text)
        return text


class _Worker:
    """A worker process, in a session and process group of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "palestra.tools.isolation_worker", json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, WORKER_VARIABLE: "1"},
        )
        self._unread = b""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def send(self, request: dict[str, Any]) -> None:
        line = json.dumps(request).encode() + b"\n"
        while line:
            line = line[self._requests.write(line) :]
