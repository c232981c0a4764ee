"""Run isolated tools in worker processes that can be killed.

Workers start when first needed, are kept, and serve all isolated tools: a call costs a message over
a pipe each way. One that runs out of time or memory is killed with every process it has started,
and the next call gets a new one. Their side is in `isolation_worker.py`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from palestra.tools.threads import LoopLimit, run_in_thread
from palestra.tools.tool import Tool
from palestra.tools.trouble import OutOfResources, TimedOut
from palestra.tools.worker_process import WorkerProcess
from palestra.types import Failure, ToolError

# Each takes some 50 MB: enough to keep the cores busy while a few calls hang until their timeout.
MAX_WORKERS = max(4, 2 * (os.cpu_count() or 1))
# Importing the module that defines a tool may mean importing torch.
START_TIMEOUT_S = 120.0

in_worker = False  # set by isolation_worker

_limit = LoopLimit(MAX_WORKERS)
_idle: deque[WorkerProcess] = deque()


async def run_isolated(tool: Tool, arguments: str) -> str:
    """The text of what an isolated tool returns for arguments (JSON) that fit its schema.

    Raises:
        ToolError, TimedOut, OutOfResources: as the call went.
        Failure: the tool is broken, or its process cannot import it.
    """
    if in_worker:
        raise RuntimeError(
            "an isolated tool was called while its process imported the script: put what the "
            'script does under `if __name__ == "__main__":`'
        )
    async with _limit.slot():
        call = _IsolatedCall(tool, arguments)
        try:
            return await run_in_thread(call.run)
        except asyncio.CancelledError:
            call.cancel()
            raise


class _EndedEarly(Exception):
    """The process ended before the tool was called."""


class _IsolatedCall:
    """One call on its way through a worker. `run` blocks; `cancel` ends it from another thread."""

    def __init__(self, tool: Tool, arguments: str) -> None:
        self._tool = tool
        self._arguments = arguments
        self._worker: WorkerProcess | None = None
        self._cancelled = False
        self._lock = threading.Lock()

    def run(self) -> str:
        while True:
            with self._lock:
                if self._cancelled:
                    return ""
                idle = _idle_worker()
                worker = self._worker = idle or WorkerProcess()
            try:
                return self._read(self._run_in(worker))
            except _EndedEarly as end:
                # A worker may have died since its last call, e.g. for want of memory. A new one
                # that dies has a reason.
                if idle is None and not self._cancelled:
                    raise Failure(f"tool:{self._tool.name}", str(end)) from None

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._worker is not None:
                self._worker.kill()

    def _run_in(self, worker: WorkerProcess) -> dict[str, str]:
        answer: dict[str, str] = {}
        try:
            answer = self._ask(worker)
        finally:
            with self._lock:
                self._worker = None
                reusable = answer and not self._cancelled and "resources" not in answer
            if reusable:
                _idle.append(worker)
            else:
                worker.end()
        return answer

    def _ask(self, worker: WorkerProcess) -> dict[str, str]:
        request = {
            **_home(self._tool.function),
            "arguments": self._arguments,
            "timeout_s": self._tool.timeout_s,
            "memory_mb": self._tool.memory_mb,
        }
        try:
            worker.send(request)
            # The time that the worker takes to start and to import the tool is not the call's.
            answer = worker.receive(START_TIMEOUT_S)
        except TimedOut:
            raise _EndedEarly(f"its process was not ready in {START_TIMEOUT_S:g} s") from None
        except OSError:
            raise _EndedEarly(f"its process ended before the call, {worker.end()}") from None
        if "started" not in answer:
            return answer
        try:
            return worker.receive(self._tool.timeout_s)
        except OSError:
            return {"resources": f"its process ended, {worker.end()}"}

    def _read(self, answer: dict[str, str]) -> str:
        ((kind, text),) = answer.items()
        match kind:
            case "tool_error":
                raise ToolError(text)
            case "resources":
                raise OutOfResources(text)
            case "raised":
                raise Failure(f"tool:{self._tool.name}", text)
        return text


def _home(function: Callable[..., Any]) -> dict[str, Any]:
    """Where another process finds a function: module, file and qualified name."""
    module = sys.modules.get(function.__module__)
    name, file = function.__module__, getattr(module, "__file__", None)
    if name == "__main__":
        spec = getattr(module, "__spec__", None)
        # As multiprocessing does: the guard `if __name__ == "__main__":` holds under this name.
        name = "__mp_main__" if spec is None else spec.name
    return {
        "module": name,
        "file": None if file is None else os.path.abspath(file),
        "qualname": function.__qualname__,
    }


def _idle_worker() -> WorkerProcess | None:
    try:
        return _idle.pop()
    except IndexError:
        return None


# In a forked process the workers are the parent's.
os.register_at_fork(after_in_child=_idle.clear)
