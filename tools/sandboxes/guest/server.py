"""`Guest`: serves the host's requests, one at a time, on one connection.

The Python session and the commands are processes of their own and never hold the connection: what
they do to themselves or to each other, this process goes on, unless the kernel lets them kill it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from palestra.tools.sandboxes.guest import commands, files
from palestra.tools.sandboxes.guest.children import Children
from palestra.tools.sandboxes.guest.files import Refused
from palestra.tools.sandboxes.guest.frames import MAX_PAYLOAD_BYTES, Gone, receive, send
from palestra.tools.sandboxes.guest.interpreter import run_session, set_limits
from palestra.tools.sandboxes.guest.memory import Census, KillOrder
from palestra.tools.sandboxes.guest.output import Output
from palestra.tools.sandboxes.guest.protection import set_dumpable
from palestra.tools.sandboxes.guest.session import Session
from palestra.tools.sandboxes.guest.signals import ALARM, DEFAULT, set_handler
from palestra.tools.sandboxes.guest.waiting import Waiting

if TYPE_CHECKING:
    import tarfile

    from palestra.tools.sandboxes.guest.interpreter import Streams

# Beside the texts of an answer: its framing and the notes of what was cut.
SLACK_BYTES = 1 << 12


class Guest:
    """Serves one connection until it closes.

    `environment` is that of this process; `streams` are for the session, if they were made before.
    """

    def __init__(self, environment: dict[str, str], streams: Streams | None = None) -> None:
        self._inherited = environment
        self._streams = streams
        self._read_fd = self._write_fd = -1
        self._children = Children()
        self._waiting = Waiting(-1, self._children)
        self._kill_order = KillOrder()
        self._census = Census()
        self._session: Session | None = None
        self._session_lost = False
        self._home = "/"
        self._output_bytes = 1 << 18
        self._environment = environment
        self._rlimits: dict[str, int] = {}
        self._operations: dict[str, Callable[[Any, bytes], tuple[dict[str, Any], bytes]]] = {
            "hello": self._hello,
            "ping": lambda request, payload: ({}, b""),
            "run": self._run,
            "python": self._python,
            "read": self._read,
            "write": self._write,
            "list": self._list,
            "snapshot": self._snapshot,
            "restore": self._restore,
        }

    def connect(self, read_fd: int, write_fd: int) -> None:
        """Take the connection, which nothing that is started here inherits."""
        os.set_inheritable(read_fd, False)
        os.set_inheritable(write_fd, False)
        self._read_fd, self._write_fd = read_fd, write_fd
        self._waiting.host_fd = read_fd

    def fork_session(self) -> None:
        """When the host says something, have a process ready for the session.

        Otherwise it is forked after the first answer. The less this process has done before, the
        more of its memory the other shares; but only what the host has put into a control group by
        then passes the group on.
        """
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        poll.poll()
        self._session = Session(self._waiting, self._run_session)

    def serve_and_end(self) -> None:
        """Answer requests until the host closes the connection, then leave nothing running."""
        try:
            self.serve()
        finally:
            self._end()

    def serve(self) -> None:
        """Answer requests until the host closes the connection."""
        try:
            self._children.watch()
            self._kill_order.open()
            self._census.open()
            while True:
                self._waiting.wait_for_host()
                request, payload = receive(self._read_fd)
                send(self._write_fd, *self._answer(request, payload))
                if self._session is None and request.get("op") == "hello":
                    self._start_session()
        except (Gone, OSError):
            pass

    def disconnect(self) -> None:
        """Be as before `connect`, to serve another."""
        if self._session is not None:
            self._end_session()
        self._session_lost = False
        self._let_go()
        signal.setitimer(signal.ITIMER_REAL, 0)
        set_handler(ALARM, DEFAULT)

    def _end(self) -> None:
        if os.getpid() != 1:  # else the kernel kills the rest of the namespace
            self._children.kill_all()
        os._exit(0)

    def _answer(self, request: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            operation = self._operations.get(str(request.get("op")))
            if operation is None:
                raise Refused("unknown operation")
            return operation(request, payload)
        except Gone:
            raise
        except Refused as refusal:
            return {"refused": str(refusal)}, b""
        except OSError as error:
            return {"errno": error.errno or 0, "path": str(error.filename or "")}, b""
        except MemoryError:
            return {"refused": "out of memory"}, b""
        except Exception as error:  # a name that no system call takes, a snapshot that is none
            return {"refused": f"{type(error).__name__}: {error}"}, b""

    def _hello(self, request: Any, payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Settings, which the session waits for, or starts with once they are answered."""
        self._home = request["home"]
        self._output_bytes = request["output_bytes"]
        self._waiting.watch_memory(request["watched_mb"])
        self._environment = {**self._inherited, **request["env"]}
        self._rlimits = request["rlimits"]
        set_limits(self._rlimits)
        if request["protect"]:
            set_dumpable(False)
        # Even as the first process of a namespace, to which signals do nothing by default.
        set_handler(ALARM, lambda number, frame: self._end())
        signal.setitimer(signal.ITIMER_REAL, request["wall_s"])
        if not os.access(self._home, os.F_OK):
            os.makedirs(self._home, exist_ok=True)
        os.chdir("/")
        for module in request["preload"]:
            __import__(module)
        if self._session is not None:
            self._tell_session(self._session)
        return {"python": sys.version.split()[0], "pid": os.getpid()}, b""

    def _run(self, request: Any, payload: bytes) -> tuple[dict[str, Any], bytes]:
        """A command to its end, or to its deadline."""
        deadline = time.monotonic() + request["timeout_s"]
        out, err = Output(self._output_bytes), Output(self._output_bytes)
        environment = dict(self._environment, **request["env"])
        folder = os.path.join(self._home, request["cwd"])
        command = commands.start(request["argv"], environment, folder, self._kill_order)
        status, reason = commands.attend(command, self._waiting, payload, out, err, deadline)
        out_bytes, out_counts = out.parts()
        err_bytes, err_counts = err.parts()
        return {
            "exit_code": status,
            "ended": reason,
            "stdout": out_counts,
            "stderr": err_counts,
            "left_running": self._count_others(),
        }, out_bytes + err_bytes

    def _python(self, request: Any, payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Code in the session; its variables live on."""
        deadline = time.monotonic() + request["timeout_s"]
        session, restarted = self._start_session()
        output = Output(self._output_bytes)
        most_bytes = 2 * self._output_bytes + SLACK_BYTES
        answer, texts = session.ask({"op": "execute"}, payload, output, deadline, most_bytes)
        reason, died = session.reason, ""
        value_counts, error_counts = answer.get("value"), answer.get("error")
        if not answer or not _fits(texts, value_counts, error_counts):
            reason = reason or "died"
            value_counts, error_counts, texts = [0, 0, 0], [0, 0, 0], b""
            died = self._end_session()
        written, output_counts = output.parts()
        return {
            "value": value_counts,
            "error": error_counts,
            "output": output_counts,
            "ended": reason,
            "died": died,
            "restarted": restarted,
            "left_running": self._count_others(),
        }, written + texts

    def _read(self, request: Any, payload: bytes) -> tuple[dict[str, Any], bytes]:
        """A regular file, whole."""
        path, within = request["path"], request["within"]
        return {}, files.read_file(self._home, path, within, request["max_bytes"])

    def _write(self, request: Any, payload: bytes) -> tuple[dict[str, Any], bytes]:
        """A regular file, made with its folders or overwritten."""
        files.write_file(self._home, request["path"], request["within"], payload)
        return {}, b""

    def _list(self, request: Any, payload: bytes) -> tuple[dict[str, Any], bytes]:
        """The entries of a folder."""
        path, within = request["path"], request["within"]
        entries = files.list_folder(self._home, path, within, request["max_entries"])
        return {}, json.dumps(entries).encode()

    def _snapshot(self, request: Any, payload: bytes) -> tuple[dict[str, Any], bytes]:
        """The home folder as a tar, then the session's variables, pickled."""
        import tarfile

        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            archive.add(self._home, arcname=".", filter=_plain_members)
        files_bytes = data.getvalue()
        answer, variables = self._ask_session({"op": "dump"}, b"", request["timeout_s"])
        most_bytes = min(request["max_bytes"], MAX_PAYLOAD_BYTES)
        if len(files_bytes) + len(variables) > most_bytes:
            raise Refused(f"the files and variables have more than {most_bytes:,} bytes")
        sizes = {"files": len(files_bytes), "dropped": answer.get("dropped")}
        return sizes, files_bytes + variables

    def _restore(self, request: Any, payload: bytes) -> tuple[dict[str, Any], bytes]:
        """What `_snapshot` gave, into this sandbox."""
        import tarfile

        files_bytes, variables = payload[: request["files"]], payload[request["files"] :]
        with tarfile.open(fileobj=io.BytesIO(files_bytes)) as archive:
            # In a sandbox of its own it can overwrite nothing but its own files.
            archive.extraction_filter = lambda member, path: member
            archive.extractall(self._home)
        _, error_text = self._ask_session({"op": "load"}, variables, request["timeout_s"])
        if error_text:
            text = error_text.decode("utf-8", "replace")
            raise Refused("the snapshot's variables cannot be loaded: " + text)
        return {}, b""

    def _ask_session(
        self, question: dict[str, Any], payload: bytes, timeout_s: float
    ) -> tuple[dict[str, Any], bytes]:
        session, _ = self._start_session()
        answer, data = session.ask(question, payload, Output(0), time.monotonic() + timeout_s)
        if session.reason:
            self._end_session()
            raise Refused("the session did not answer: " + session.reason)
        return answer, data

    def _start_session(self) -> tuple[Session, bool]:
        """The session, and whether the one before it has been lost since the last call."""
        if self._session is not None:
            if not self._children.has_ended(self._session.pid):
                return self._session, False
            self._end_session()
        self._session = Session(self._waiting, self._run_session)
        self._tell_session(self._session)
        lost, self._session_lost = self._session_lost, False
        return self._session, lost

    def _tell_session(self, session: Session) -> None:
        environment = None if self._environment == self._inherited else self._environment
        with contextlib.suppress(OSError):  # it has ended: the next call sees that
            session.tell(
                {
                    "env": environment,
                    "home": self._home,
                    "output_bytes": self._output_bytes,
                    "rlimits": self._rlimits,
                }
            )

    def _run_session(self, control_fd: int, output_fd: int) -> None:
        """In the forked process: nothing of the guest's own stays open."""
        self._let_go()
        for fd in {self._read_fd, self._write_fd}:
            os.close(fd)
        run_session(control_fd, output_fd, self._streams)

    def _let_go(self) -> None:
        self._children.close()
        self._kill_order.close()
        self._census.close()

    def _end_session(self) -> str:
        """Kill it with its group; how it had ended."""
        assert self._session is not None
        session, self._session = self._session, None
        self._session_lost = True
        return session.end()

    def _count_others(self) -> int:
        """How many processes are there beside this one and the session, if that can be told."""
        if os.getpid() != 1:
            return 0
        others = self._census.count() - 1 - (self._session is not None)
        if others > 0:  # one may only wait to be collected
            self._children.reap()
            others = self._census.count() - 1 - (self._session is not None)
        self._waiting.others = max(0, others)
        return self._waiting.others


def _fits(texts: bytes, *all_counts: Any) -> bool:
    """Whether the counts, which come from hostile code, are those of these texts."""
    for counts in all_counts:
        if not (isinstance(counts, list) and len(counts) == 3):
            return False
        if not all(type(count) is int and count >= 0 for count in counts):
            return False
    return len(texts) == sum(int(counts[0]) for counts in all_counts)


def _plain_members(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    plain = member.isreg() or member.isdir() or member.issym() or member.islnk()
    return member if plain else None


def main(read_fd: int, write_fd: int) -> None:
    """Serve on two file descriptors, which nothing that is started here inherits."""
    fds = [os.dup(read_fd), os.dup(write_fd)]  # the copies are not inheritable
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    if nothing > 2:
        os.close(nothing)
    for fd in {read_fd, write_fd} - {0, 1, 2}:
        os.close(fd)
    guest = Guest(dict(os.environ))
    guest.connect(*fds)
    guest.serve_and_end()
