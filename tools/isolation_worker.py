"""The process that runs isolated tools: one call at a time, under a limit on memory.

Its standard input carries requests and its standard output answers, as lines of JSON. Tools get
neither: they read nothing, and what they print goes to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import importlib
import importlib.util
import inspect
import json
import operator
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import ModuleType
from typing import IO, Any

from palestra.tools import isolation
from palestra.tools.output import as_text, shortened
from palestra.tools.schema import Arguments, ToolArguments
from palestra.tools.tool import Tool
from palestra.tools.trouble import RESOURCE_ERRORS, one_line
from palestra.types import ToolError

# How long after its timeout a call ends at the latest, whoever else is left to end it.
_GRACE_S = 10.0


def main() -> None:
    """Serve requests until the standard input ends, then kill this process's group."""
    isolation.in_worker = True
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        # The copies are not inherited by the processes that a tool starts.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()
        threading.Thread(target=_read, args=(requests, inbox), daemon=True).start()
        while True:
            request = inbox.get()
            for answer in _serve(request):
                answers.write(json.dumps(answer).encode() + b"\n")
                answers.flush()


def _read(requests: IO[bytes], inbox: SimpleQueue[dict[str, Any]]) -> None:
    """In a thread of its own, so as to notice that the parent is gone while a tool runs."""
    for line in requests:
        inbox.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


def _serve(request: dict[str, Any]) -> Iterator[dict[str, str]]:
    try:
        function, arguments = _find(request["module"], request["file"], request["qualname"])
    except BaseException as error:
        yield {"raised": one_line(error)}
        return
    yield {"started": ""}
    # Where even the reading thread cannot run (C code that keeps the interpreter's lock), a thread
    # of faulthandler's ends the process.
    faulthandler.dump_traceback_later(request["timeout_s"] + _GRACE_S, exit=True, file=_devnull())
    try:
        with _memory_limit(request["memory_mb"]):
            answer = {"returned": _call(function, arguments.parse(request["arguments"]))}
    except ToolError as error:
        answer = {"tool_error": shortened(str(error))}
    except RESOURCE_ERRORS as error:
        answer = {"resources": one_line(error)}
    except BaseException as error:
        answer = {"raised": one_line(error)}
    faulthandler.cancel_dump_traceback_later()
    yield answer


def _call(function: Callable[..., Any], given: dict[str, Any]) -> str:
    if inspect.iscoroutinefunction(function):
        return as_text(asyncio.run(function(**given)))
    return as_text(function(**given))


@functools.cache
def _devnull() -> IO[str]:
    return open(os.devnull, "w")


@functools.cache
def _find(module: str, file: str | None, qualname: str) -> tuple[Callable[..., Any], ToolArguments]:
    found = operator.attrgetter(qualname)(_import(module, file))
    if isinstance(found, Tool):
        return found.function, found.arguments
    return found, Arguments(found, tool_name=qualname)


def _import(name: str, file: str | None) -> ModuleType:
    """The module of this name, if it is the one in `file`; else what is in `file`."""
    if name in sys.modules:
        return sys.modules[name]
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of the package it is in
        spec = None
    if file is None or (spec is not None and _same(spec.origin, file)):
        return importlib.import_module(name)
    # A script, or a test that pytest imported by its path.
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _same(origin: str | None, file: str) -> bool:
    return origin is not None and os.path.realpath(origin) == os.path.realpath(file)


@contextlib.contextmanager
def _memory_limit(memory_mb: int) -> Iterator[None]:
    """Let the address space grow by so much: imports, torch's for one, may have made it large."""
    if sys.platform != "linux":  # nowhere else is the limit enforced
        yield
        return
    with open("/proc/self/statm") as pages:
        used_bytes = int(pages.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used_bytes + (memory_mb << 20)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
