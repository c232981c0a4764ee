"""The process of the Python session: executes what comes, in one namespace."""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import os
import resource
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

from palestra.tools.sandboxes.guest.frames import Gone, pack, receive
from palestra.tools.sandboxes.guest.memory import KillOrder
from palestra.tools.sandboxes.guest.output import cut
from palestra.tools.sandboxes.guest.protection import set_dumpable
from palestra.tools.sandboxes.guest.signals import (
    ALARM,
    CHILD_ENDED,
    DEFAULT,
    INTERRUPT,
    set_handler,
)
from palestra.tools.sandboxes.guest.variables import dump_variables, load_variables

if TYPE_CHECKING:
    Streams = tuple[io.TextIOWrapper, io.TextIOWrapper, io.TextIOWrapper]


def run_session(control_fd: int, output_fd: int, streams: Streams | None) -> None:
    """Take the settings, then answer questions, until the connection closes.

    `streams` may have been made before, by `open_streams`.
    """
    try:
        interpreter = Interpreter()
        set_handler(INTERRUPT, interpreter.interrupt)
        os.setsid()
        settings, _ = receive(control_fd)
        set_dumpable(True)
        _go_first_when_memory_is_short()
        interpreter.settle(output_fd, settings, streams)
        while True:
            question, payload = receive(control_fd)
            answer = memoryview(interpreter.answer(question, payload))
            while answer:
                answer = answer[os.write(control_fd, answer) :]
    except (Gone, OSError):
        os._exit(0)


def _go_first_when_memory_is_short() -> None:
    kill_order = KillOrder()
    kill_order.open()
    kill_order.expose()
    kill_order.close()


class Interpreter:
    """What a session consists of, but for its process."""

    def __init__(self) -> None:
        self.main = types.ModuleType("__main__")
        self._output_bytes = 0
        self._running = False
        self._count = 0

    def settle(
        self, output_fd: int, settings: dict[str, Any], streams: Streams | None = None
    ) -> None:
        """Make the process one that runs a program: its streams, environment and folder.

        `env` is None where the environment is the right one already.
        """
        self._output_bytes = settings["output_bytes"]
        sys.modules["__main__"] = self.main
        set_limits(settings["rlimits"])
        set_handler(ALARM, DEFAULT)
        set_handler(CHILD_ENDED, DEFAULT)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        os.close(output_fd)
        if settings["env"] is not None:
            os.environ.clear()
            os.environ.update(settings["env"])
        with contextlib.suppress(OSError):
            os.chdir(settings["home"])
        sys.path[:0] = [""]
        sys.argv = [""]
        sys.stdin, sys.stdout, sys.stderr = streams or open_streams()
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = (  # type: ignore[misc]
            *(sys.stdin, sys.stdout, sys.stderr),
        )

    def interrupt(self, number: int, frame: types.FrameType | None) -> None:
        """The handler of SIGINT."""
        if self._running:  # a late one must not end the session
            raise KeyboardInterrupt

    def answer(self, question: dict[str, Any], payload: bytes) -> bytes:
        """The frame that answers a question."""
        answer: dict[str, Any] = {}
        value, error, data = "", "", b""
        try:
            self._running = True
            if question["op"] == "execute":
                self._count += 1
                name = f"<cell {self._count}>"
                value, error = execute(payload.decode(), self.main.__dict__, name)
            elif question["op"] == "dump":
                data, answer["dropped"] = dump_variables(self.main.__dict__)
            else:
                error = load_variables(payload, self.main.__dict__)
            _flush(sys.stdout)
            _flush(sys.stderr)
        except KeyboardInterrupt:
            error = error or "KeyboardInterrupt"
        finally:
            self._running = False
        value_bytes, answer["value"] = cut(value, self._output_bytes)
        error_bytes, answer["error"] = cut(error, self._output_bytes)
        answer["id"] = question["id"]
        return pack(answer, value_bytes + error_bytes + data)


def _flush(stream: Any) -> None:
    with contextlib.suppress(Exception):  # whatever the code has put in its place
        stream.flush()


def open_streams() -> Streams:
    """Standard input, output and error, as text, on what the descriptors 0 to 2 are then."""
    return _text_from(0), _text_to(1), _text_to(2)


def set_limits(limits: dict[str, int]) -> None:
    """Of this process, by the names that `resource` gives them; never beyond the hard ones."""
    for name, value in limits.items():
        kind = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


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
