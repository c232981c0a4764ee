"""The process of the Python session: executes what comes, in one namespace."""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import os
import signal
import sys
import traceback
import types
from typing import Any

from palestra.tools.sandboxes.guest.frames import Gone, receive, send
from palestra.tools.sandboxes.guest.memory import KillOrder
from palestra.tools.sandboxes.guest.output import cut
from palestra.tools.sandboxes.guest.protection import set_dumpable
from palestra.tools.sandboxes.guest.variables import dump_variables, load_variables


def run_session(
    control_fd: int, output_fd: int, environment: dict[str, str], home: str, output_bytes: int
) -> None:
    """Answer questions until the connection closes."""
    _set_up_process(output_fd, environment, home)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    running = False
    count = 0

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        if running:  # a late one must not end the session
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    while True:
        try:
            question, payload = receive(control_fd)
        except (Gone, OSError):
            os._exit(0)
        answer: dict[str, Any] = {}
        value, error, data = "", "", b""
        try:
            running = True
            if question["op"] == "execute":
                count += 1
                value, error = execute(payload.decode(), main.__dict__, f"<cell {count}>")
            elif question["op"] == "dump":
                data, answer["dropped"] = dump_variables(main.__dict__)
            else:
                error = load_variables(payload, main.__dict__)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
        except KeyboardInterrupt:
            error = error or "KeyboardInterrupt"
        finally:
            running = False
        value_bytes, answer["value"] = cut(value, output_bytes)
        error_bytes, answer["error"] = cut(error, output_bytes)
        answer["id"] = question["id"]
        send(control_fd, answer, value_bytes + error_bytes + data)


def _set_up_process(output_fd: int, environment: dict[str, str], home: str) -> None:
    os.setsid()
    set_dumpable(True)
    kill_order = KillOrder()
    kill_order.expose()
    kill_order.close()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.close(output_fd)
    os.environ.clear()
    os.environ.update(environment)
    with contextlib.suppress(OSError):
        os.chdir(home)
    sys.path[:0] = [""]
    sys.argv = [""]
    sys.stdin = sys.__stdin__ = _text_from(0)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _text_to(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text_to(2)  # type: ignore[misc]


def execute(code: str, namespace: dict[str, Any], name: str) -> tuple[str, str]:
    """Run code; (the repr of its last expression, the traceback of its exception)."""
    try:
        tree = ast.parse(code, name)
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec", dont_inherit=True), namespace)
        if not isinstance(last, ast.Expr):
            return "", ""
        expression = compile(ast.Expression(last.value), name, "eval", dont_inherit=True)
        value = eval(expression, namespace)
        if value is None:
            return "", ""
        namespace["_"] = value
        return str(repr(value)), ""
    except BaseException as error:
        return "", _traceback(error, name)


def _traceback(error: BaseException, name: str) -> str:
    """Without the frames of this file, before and after those of the code."""
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != name:
            frames = frames.tb_next
        last = frames
        while last is not None and last.tb_next is not None:
            if last.tb_next.tb_frame.f_code.co_filename == execute.__code__.co_filename:
                last.tb_next = None
            last = last.tb_next
        return "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    except BaseException:  # an exception whose own __str__ raises
        return type(error).__name__


def _text_from(fd: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(io.FileIO(fd, closefd=False)), encoding="utf-8")


def _text_to(fd: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.FileIO(fd, "w", closefd=False),
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )
