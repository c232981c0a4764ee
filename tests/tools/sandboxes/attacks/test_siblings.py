"""Row 30: two sandboxes that live at the same time cannot reach each other."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable

import pytest

from palestra.tools.sandboxes import PythonResult, Sandbox, SandboxDied, SandboxSpec

Attack = Callable[..., PythonResult]
Start = Callable[..., Sandbox]

# Listens on whatever it may, in the background; `heard` tells who came.
LISTEN = """
import os, socket, threading
heard = []
def listen(family, kind, address):
    try:
        server = socket.socket(family, kind)
        server.bind(address)
        if kind == socket.SOCK_STREAM:
            server.listen()
    except OSError:
        return
    def wait():
        while True:
            if kind == socket.SOCK_STREAM:
                client, _ = server.accept()
                client.sendall(TOKEN.encode())
            else:
                server.recv(100)
            heard.append(str(address))
    threading.Thread(target=wait, daemon=True).start()
for address in ("127.0.0.1", "0.0.0.0"):
    listen(socket.AF_INET, socket.SOCK_STREAM, (address, 45671 + (address == "0.0.0.0")))
    listen(socket.AF_INET, socket.SOCK_DGRAM, (address, 45671 + (address == "0.0.0.0")))
for path in ("\\0" + TOKEN, "/tmp/" + TOKEN, os.environ["HOME"] + "/" + TOKEN):
    listen(socket.AF_UNIX, socket.SOCK_STREAM, path)
"""
CONNECT = """
import os, socket
found = []
def reach(family, kind, address):
    try:
        with socket.socket(family, kind) as client:
            client.settimeout(1)
            client.connect(address)
            client.sendall(b"hello")
            found.append((address, client.recv(100)))
    except OSError:
        pass
for port in (45671, 45672):
    reach(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port))
    reach(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", port))
for path in ("\\0" + TOKEN, "/tmp/" + TOKEN, os.environ["HOME"] + "/" + TOKEN):
    reach(socket.AF_UNIX, socket.SOCK_STREAM, path)
found
"""
# System V and POSIX shared memory, message queues, semaphores and plain files.
SHARE = """
shared = []
def note(name, result):
    shared.append((name, result >= 0))
segment = call("shmget", 0x5EED, 4096, 0o1666 if CREATE else 0o666)
note("shm", segment)
note("msg", call("msgget", 0x5EED, 0o1666 if CREATE else 0o666))
note("sem", call("semget", 0x5EED, 1, 0o1666 if CREATE else 0o666))
note("mq", call("mq_open", TOKEN.encode(), 0o102 if CREATE else 2, 0o666, None))
for folder in ("/dev/shm", "/tmp", "/var/tmp", "/dev/mqueue", "/run/lock", os.environ["HOME"]):
    path = f"{folder}/{TOKEN}-file"
    try:
        if CREATE:
            with open(path, "w") as file:
                file.write("left here")
        note(path, 0 if os.path.exists(path) else -1)
    except OSError:
        pass
[name for name, is_there in shared if is_there]
"""


@pytest.mark.row(30)
def test_no_socket_of_another_sandbox_can_be_reached(spec: SandboxSpec, start: Start) -> None:
    token = "sibling-" + secrets.token_hex(8)
    one, other = start(spec), start(spec)
    assert one.sync.python(f"TOKEN = {token!r}\n{LISTEN}").error == ""
    result = other.sync.python(f"TOKEN = {token!r}\n{CONNECT}")
    assert result.value == "[]"
    assert one.sync.python("heard").value == "[]"


@pytest.mark.row(30)
def test_nothing_shared_is_shared_with_another_sandbox(
    spec: SandboxSpec, start: Start, attack: Attack
) -> None:
    token = "sibling-" + secrets.token_hex(8)
    one, other = start(spec), start(spec)
    made = attack(one, f"TOKEN, CREATE = {token!r}, True\n{SHARE}")
    assert "-file" in made.value  # at least the files
    assert attack(other, f"TOKEN, CREATE = {token!r}, False\n{SHARE}").value == "[]"


@pytest.mark.row(30)
def test_no_process_of_another_sandbox_is_seen_or_signalled(
    spec: SandboxSpec,
    start: Start,
    attack: Attack,
    processes_with: Callable[[str], list[int]],
) -> None:
    token = "sibling-" + secrets.token_hex(8)
    one, other = start(spec), start(spec)
    one.sync.python(
        "import os, subprocess; x = 1\n"
        f"child = subprocess.Popen(['sh', '-c', 'sleep 600; : {token}'],"
        f" env={{**os.environ, 'T': {token!r}}})"
    )
    code = """
    import glob, signal
    texts = []
    for path in glob.glob("/proc/[0-9]*/*"):
        if path.endswith(("/cmdline", "/environ")):
            try:
                with open(path, "rb") as file:
                    texts.append(file.read())
            except OSError:
                pass
    print(texts)
    for pid in pids:
        attempt(("kill", pid), lambda: os.kill(pid, signal.SIGKILL) or True)
        attempt(("trace", pid), lambda: call("ptrace", 16, pid, 0, 0) == 0)
        attempt(("root", pid), lambda: os.listdir(f"/proc/{pid}/root/"))
    breaches"""
    # gVisor's processes are not the host's, but its numbers start small in every sandbox.
    pids = [pid for pid in processes_with(token) if pid > 1000]
    from textwrap import dedent

    result = attack(other, f"pids = {pids}\n{dedent(code)}")
    assert token not in result.output and result.value == "[]"
    with contextlib.suppress(SandboxDied):
        other.sync.run("kill -9 -1", timeout_s=5)
    assert one.sync.python("x, child.poll()").value == "(1, None)"


@pytest.mark.row(30)
def test_one_sandbox_s_end_is_not_another_s(spec: SandboxSpec, start: Start) -> None:
    sandboxes = [start(spec) for _ in range(3)]
    for sandbox in sandboxes:
        sandbox.sync.python("x = 1")
    results: list[str] = []
    thread = threading.Thread(
        target=lambda: results.append(sandboxes[0].sync.run("sleep 1; echo done").stdout)
    )
    thread.start()
    sandboxes[1].sync.kill()
    thread.join()
    assert results == ["done\n"]
    assert sandboxes[0].sync.python("x").value == sandboxes[2].sync.python("x").value == "1"
