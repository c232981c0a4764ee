"""Rows 53 to 55: replies are forged and broken in vain, nothing is left for the next episode."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from palestra.tools.sandboxes import PythonResult, Sandbox, SandboxDied, SandboxSpec
from palestra.tools.sandboxes.pool import SandboxPool
from palestra.types import Failure

Attack = Callable[..., PythonResult]
Start = Callable[..., Sandbox]

# Finds the connections that this process and its parent have.
FIND = """
import json, os, stat, struct
def mine():
    for fd in range(1024):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                yield fd
        except OSError:
            pass
def frame(answer, payload=b""):
    text = json.dumps(answer).encode()
    return struct.pack(">II", len(text), len(payload)) + text + payload
def forged(number):
    return frame({"id": number, "exit_code": 0, "ended": "", "value": [6, 6, 0],
                  "error": [0, 0, 0], "output": [6, 6, 0], "stdout": [6, 6, 0],
                  "stderr": [0, 0, 0], "died": "", "restarted": False, "left_running": 0},
                 b"FORGED")
"""


@pytest.mark.row(53)
def test_the_connection_to_the_host_is_out_of_reach(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    parent = os.getppid()
    pidfd = call("pidfd_open", parent, 0)
    for fd in range(64):
        attempt(("pidfd_getfd", fd), lambda: pidfd >= 0 and call("pidfd_getfd", pidfd, fd, 0) >= 0)
        for pid in {parent, 1}:
            def write_there():
                there = os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY)
                return os.write(there, forged(1))
            if pid != os.getpid():
                attempt((pid, fd), write_there)
        attempt(("link", fd), lambda: os.readlink(f"/proc/{parent}/fd/{fd}"))
    breaches"""
    from textwrap import dedent

    assert attack(sandbox, FIND + dedent(code)).value == "[]"
    assert sandbox.sync.run("echo real").stdout == "real\n"


@pytest.mark.row(53)
def test_a_command_has_no_connection_to_forge_on(sandbox: Sandbox) -> None:
    """What a command writes wherever it can is not taken for an answer."""
    code = (
        FIND + "for fd in range(3, 1024):\n  try: os.write(fd, forged(1))\n  except OSError: pass"
    )
    sandbox.sync.write("forge.py", code)
    result = sandbox.sync.run(["python3", "forge.py"])
    assert (result.stdout, result.exit_code) == ("", 0)
    assert sandbox.sync.run("echo real").stdout == "real\n"


@pytest.mark.row(53)
def test_a_forged_answer_changes_only_what_its_own_code_is_said_to_print(
    sandbox: Sandbox, attack: Attack
) -> None:
    sandbox.sync.write("file", "real")
    attack(sandbox, FIND + "for fd in mine():\n  for n in range(50): os.write(fd, forged(n))")
    assert sandbox.sync.run("echo real").stdout == "real\n"
    assert sandbox.sync.read("file") == b"real"
    assert [entry.name for entry in sandbox.sync.list()] == ["file"]


BREAK = [
    "os.write(fd, struct.pack('>II', 0xFFFFFFFF, 0xFFFFFFFF) + b'x' * 1000)",
    "os.write(fd, struct.pack('>II', 100, 1 << 27) + b'x' * 1000)",
    "os.write(fd, os.urandom(10_000))",
    "os.write(fd, frame([1]) + frame({}) + frame({'id': None}))",
    "os.write(fd, struct.pack('>II', 200_000, 0) + b'[' * 200_000)",
    "os.write(fd, forged(1)[:-3]); import time; time.sleep(60)",
    "os.close(fd); import time; time.sleep(60)",
    "os.dup2(1, fd)",
    "os.write(fd, frame({'id': 1, 'value': [10**400, -1, 1e308], 'error': 3}))",
    "import ctypes; ctypes.string_at(0)",
    "os.kill(os.getppid(), 9)",
    "os.kill(os.getppid(), 19); os.kill(1, 19)",
    "os.kill(-1, 9)",
]


@pytest.mark.row(54)
@pytest.mark.parametrize("code", BREAK)
def test_a_broken_connection_is_the_sandbox_s_own_loss(
    spec: SandboxSpec,
    start: Start,
    attack: Attack,
    code: str,
    memory_growth_mb: Callable[[], Any],
) -> None:
    sandbox, other = start(spec), start(spec)
    other.sync.python("x = 1")
    with memory_growth_mb() as growth:
        try:
            attack(sandbox, f"{FIND}\nfd = next(mine())\n{code}", timeout_s=1)
            for _ in range(3):
                assert sandbox.sync.run("echo on", timeout_s=5).stdout == "on\n"
                sandbox.sync.python("1 + 1", timeout_s=1)
            assert sandbox.sync.python("1 + 1", timeout_s=5).value == "2"
        except SandboxDied:
            with pytest.raises((SandboxDied, Failure)):
                sandbox.sync.run("true")
    assert growth[0] < 64
    assert other.sync.python("x").value == "1"


@pytest.mark.row(54)
def test_a_pool_replaces_one_that_has_died(spec: SandboxSpec) -> None:
    import asyncio

    async def run() -> None:
        pool = SandboxPool(spec)
        try:
            for _ in range(3):
                sandbox = await pool.acquire()
                with contextlib.suppress(SandboxDied):
                    await sandbox.python(
                        "import os\ntry: os.kill(os.getppid(), 9)\nexcept OSError: pass\n"
                        "os.kill(-1, 9)",
                        timeout_s=2,
                    )
                await pool.release(sandbox)
            sandbox = await pool.acquire()
            assert (await sandbox.python("1 + 1")).value == "2"
            await pool.release(sandbox)
        finally:
            await pool.aclose()

    asyncio.run(run())


@pytest.mark.row(55)
def test_nothing_is_left_for_the_next_episode(
    spec: SandboxSpec, processes_with: Callable[[str], list[int]]
) -> None:
    import asyncio
    import dataclasses

    token = secrets.token_hex(8)
    leave = f"""
import builtins, os, subprocess, sys
builtins.token = x = "{token}"
os.environ["TOKEN"] = "{token}"
sys.path.append("/{token}")
for folder in (os.environ["HOME"], "/tmp", "/dev/shm", "/var/tmp"):
    try:
        open(folder + "/{token}", "w").write("{token}")
    except OSError:
        pass
child = subprocess.Popen(["sh", "-c", "sleep 600; : {token}"], start_new_session=True)
"""
    find = f"""
import builtins, os, sys
found = [hasattr(builtins, "token"), "x" in globals(), "TOKEN" in os.environ]
found += ["/{token}" in sys.path]
for folder in (os.environ["HOME"], "/tmp", "/dev/shm", "/var/tmp"):
    found.append(os.path.exists(folder + "/{token}"))
any(found)
"""

    async def run() -> None:
        pool = SandboxPool(dataclasses.replace(spec, warm=0, max_live=1))
        try:
            one = await pool.acquire()
            assert (await one.python(leave)).error == ""
            await pool.release(one)
            assert not processes_with(token)
            other = await pool.acquire()
            assert other is not one
            result = await other.python(find)
            assert (result.value, result.error) == ("False", "")
            assert token not in (await other.run("ps aux; ls -R /tmp /dev/shm; env")).stdout
            await pool.release(other)
        finally:
            await pool.aclose()

    asyncio.run(run())
