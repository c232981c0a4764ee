"""Rows 9 to 20: what never ends, ends at its deadline; what floods the host is cut."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest

from palestra.tools.sandboxes import Guarantee, Sandbox, SandboxDied
from palestra.tools.sandboxes.choose import backend_class

# The sandbox keeps a deadline itself; its host would wait five seconds longer.
LATE_S = 4.0


def ends_at_its_deadline(sandbox: Sandbox, code: str) -> None:
    """And the sandbox goes on, or its end is told as the code's own doing."""
    began = time.monotonic()
    try:
        result = sandbox.sync.python(code, timeout_s=0.5)
        assert result.timed_out
        assert time.monotonic() - began < 0.5 + LATE_S
        assert sandbox.sync.python("1 + 1").value == "2"
    except SandboxDied:
        assert time.monotonic() - began < 0.5 + 2 * LATE_S


@pytest.mark.row(9)
@pytest.mark.parametrize("command", ["yes", "python3 -c 'while True: print(\"y\" * 65536)'"])
def test_endless_output_is_cut(
    sandbox: Sandbox, command: str, memory_growth_mb: Callable[[], Any]
) -> None:
    with memory_growth_mb() as growth:
        result = sandbox.sync.run(command, timeout_s=1)
    assert result.timed_out
    assert len(result.stdout) < sandbox.spec.limits.output_bytes + 100
    assert growth[0] < 64


@pytest.mark.row(9)
def test_endless_output_of_the_session_is_cut(
    sandbox: Sandbox, memory_growth_mb: Callable[[], Any]
) -> None:
    with memory_growth_mb() as growth:
        result = sandbox.sync.python("while True: print('y' * 65536)", timeout_s=1)
    assert result.timed_out
    assert len(result.output) < sandbox.spec.limits.output_bytes + 100
    assert growth[0] < 64


@pytest.mark.row(10)
@pytest.mark.parametrize(
    "command",
    [
        "yes >&2",
        "head -c 500000000 /dev/zero | tr '\\0' x",
        "head -c 500000000 /dev/zero >&2",
        "cat /dev/urandom",
    ],
)
def test_errors_endless_lines_and_nuls_are_cut(
    sandbox: Sandbox, command: str, memory_growth_mb: Callable[[], Any]
) -> None:
    with memory_growth_mb() as growth:
        result = sandbox.sync.run(command, timeout_s=1.5)
    assert len(result.stdout) + len(result.stderr) < sandbox.spec.limits.output_bytes + 100
    assert growth[0] < 64
    assert sandbox.sync.run("echo on").stdout == "on\n"


@pytest.mark.row(11)
def test_a_loop_that_catches_everything_ends(sandbox: Sandbox) -> None:
    ends_at_its_deadline(
        sandbox,
        "import signal\n"
        "for n in range(1, 32):\n"
        "    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\n"
        "while True:\n"
        "    try:\n"
        "        while True: pass\n"
        "    except BaseException: pass",
    )


@pytest.mark.row(12)
@pytest.mark.parametrize(
    "code",
    [
        "9 ** 9 ** 9",
        "import sys; sys.set_int_max_str_digits(0); str(7 ** 9_999_999)",
        "import collections, itertools; collections.deque(itertools.count(), maxlen=0)",
    ],
)
def test_c_code_that_hears_no_interrupt_ends(sandbox: Sandbox, code: str) -> None:
    ends_at_its_deadline(sandbox, code)


@pytest.mark.row(13)
def test_a_backtracking_pattern_ends(sandbox: Sandbox) -> None:
    ends_at_its_deadline(sandbox, "import re; re.match(r'(a|a)*(a|aa)+$', 'a' * 60 + 'b')")


@pytest.mark.row(14)
def test_recursion_without_a_bound_is_contained(sandbox: Sandbox) -> None:
    code = "import sys; sys.setrecursionlimit(10**9)\ndef f(g): return repr([f(g)])\nf(f)"
    try:
        result = sandbox.sync.python(code, timeout_s=2)
        assert result.died or result.error or result.timed_out
        assert sandbox.sync.python("1 + 1").value == "2"
    except SandboxDied:
        pass


@pytest.mark.row(15)
@pytest.mark.parametrize("code", ["(" * 100_000, "(" * 90 + ")" * 90, "-" * 100_000 + "1"])
def test_a_bomb_for_the_parser_is_contained(sandbox: Sandbox, code: str) -> None:
    sandbox.sync.python(code, timeout_s=5)
    assert sandbox.sync.python("1 + 1").value == "2"


@pytest.mark.row(16)
@pytest.mark.parametrize(
    "code", ["input()", "import sys; sys.stdin.read()", "import os; os.system('cat')"]
)
def test_reading_the_standard_input_is_answered_at_once(sandbox: Sandbox, code: str) -> None:
    assert not sandbox.sync.python(code, timeout_s=10).timed_out
    assert not sandbox.sync.run("cat; read x", timeout_s=10).timed_out


def seen_from_outside(sandbox: Sandbox) -> bool:
    """gVisor's processes are not the host's."""
    offered = backend_class(sandbox.backend).capabilities(sandbox.spec)
    return Guarantee.OWN_KERNEL not in offered.guarantees


@pytest.mark.row(17)
def test_ignoring_signals_saves_nobody(
    sandbox: Sandbox,
    processes_with: Callable[[str], list[int]],
    soon: Callable[[Callable[[], bool]], bool],
) -> None:
    token = secrets.token_hex(8)
    command = f"trap '' TERM INT HUP QUIT ALRM; while :; do sleep 0.1; done # {token}"
    assert sandbox.sync.run(command, timeout_s=0.5).timed_out
    assert soon(lambda: not processes_with(token))


DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
for fd in range(3): os.close(fd)
time.sleep(600)
"""


@pytest.mark.row(18)
def test_a_daemon_dies_with_its_sandbox(
    sandbox: Sandbox,
    processes_with: Callable[[str], list[int]],
    soon: Callable[[Callable[[], bool]], bool],
) -> None:
    token = secrets.token_hex(8)
    for _ in range(3):
        sandbox.sync.run(["python3", "-c", DAEMON, token])
    if seen_from_outside(sandbox):
        assert soon(lambda: len(processes_with(token)) == 3)
    sandbox.sync.kill()
    assert soon(lambda: not processes_with(token))


@pytest.mark.row(18)
def test_a_tree_that_grows_while_it_is_killed_dies(
    sandbox: Sandbox,
    processes_with: Callable[[str], list[int]],
    soon: Callable[[Callable[[], bool]], bool],
) -> None:
    token = secrets.token_hex(8)
    code = """
import os, time
while True:
    try:
        if os.fork(): os._exit(0)  # always another number
        os.setsid()
    except OSError: time.sleep(0.01)
"""
    for _ in range(4):
        sandbox.sync.run(["python3", "-c", code, token])
    sandbox.sync.kill()
    assert soon(lambda: not processes_with(token))


@pytest.mark.row(19)
def test_a_child_left_in_the_background_dies_with_its_sandbox(
    sandbox: Sandbox,
    processes_with: Callable[[str], list[int]],
    soon: Callable[[Callable[[], bool]], bool],
) -> None:
    token = secrets.token_hex(8)
    command = f"python3 -c 'import time; time.sleep(600)' {token} > /dev/null 2>&1 &"
    sandbox.sync.run(command)
    child = f"import subprocess; c = subprocess.Popen(['python3', '-c', {DAEMON!r}, {token!r}])"
    sandbox.sync.python(child)
    if seen_from_outside(sandbox):
        assert soon(lambda: len(processes_with(token)) >= 2)
    sandbox.sync.kill()
    assert soon(lambda: not processes_with(token))


@pytest.mark.row(20)
def test_a_child_that_holds_the_output_open_holds_nobody(sandbox: Sandbox) -> None:
    began = time.monotonic()
    assert sandbox.sync.run("(trap '' HUP; sleep 600) & echo said").stdout == "said\n"
    code = "import subprocess; c = subprocess.Popen(['sleep', '600']); print('said')"
    assert sandbox.sync.python(code).output == "said\n"
    assert time.monotonic() - began < 10
