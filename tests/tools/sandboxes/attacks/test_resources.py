"""Rows 1 to 8: using up memory, processes and disks hurts nobody else."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from palestra.tools.sandboxes import PythonResult, Sandbox, SandboxDied, SandboxSpec

Start = Callable[..., Sandbox]
Attack = Callable[..., PythonResult]

# Fills folders with files until nothing more fits; prints the bytes that did.
FILL = """
import os
total = 0
def fill(folder):
    global total
    for number in range(1000):
        try:
            with open(f"{folder}/fill-{number}", "wb", buffering=0) as file:
                for _ in range(8):
                    total += file.write(bytes(1 << 20))
        except OSError:
            return
        if total > 600 << 20:
            return
for folder in FOLDERS:
    fill(folder)
total >> 20
"""


def processes_of_the_host() -> int:
    return sum(name.isdigit() for name in os.listdir("/proc"))


@pytest.mark.row(1)
def test_a_fork_bomb_stays_within_its_processes(spec: SandboxSpec, start: Start) -> None:
    sandbox = start(spec, processes=64)
    before = processes_of_the_host()
    code = """
import os, time
end = time.monotonic() + 3
peak = 0
while time.monotonic() < end:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
    try:
        sandbox.sync.python(code, timeout_s=1)
        # What it left is still there; others work on this machine, too.
        assert processes_of_the_host() - before < 64 + 200
        sandbox.sync.run("true", timeout_s=5)
    except SandboxDied:
        pass
    sandbox.sync.kill()
    assert processes_of_the_host() - before < 100
    assert start(spec).sync.python("1 + 1").value == "2"


@pytest.mark.row(2)
def test_a_memory_bomb_stops_at_the_limit(spec: SandboxSpec, start: Start) -> None:
    sandbox, other = start(spec, memory_mb=128, disk_mb=8), start(spec)
    other.sync.python("x = b'x' * (1 << 20)")
    code = "held = []\nwhile True:\n    held.append(b'x' * (16 << 20))\n    print(len(held))"
    try:
        result = sandbox.sync.python(code, timeout_s=20)
        assert result.died or "MemoryError" in result.error or result.ended == "memory"
        assert max(map(int, result.output.split() or ["0"])) * 16 <= 128 + 32
    except SandboxDied:
        pass
    assert other.sync.python("len(x) >> 20").value == "1"


@pytest.mark.row(3)
def test_memory_spread_over_processes_is_added_up(spec: SandboxSpec, start: Start) -> None:
    sandbox, other = start(spec, memory_mb=256, disk_mb=8), start(spec)
    other.sync.python("x = 1")
    code = """
import os, time
for _ in range(12):
    if os.fork() == 0:
        held = b"x" * (100 << 20)
        time.sleep(1)
        os.write(1, b"alive\\n")
        os._exit(0)
time.sleep(3)
"""
    try:
        result = sandbox.sync.run(["python3", "-c", code])
        assert result.stdout.count("alive") * 100 <= 256
    except SandboxDied:
        pass
    assert other.sync.python("x").value == "1"


@pytest.mark.row(4)
def test_a_full_disk_is_full_at_the_limit(spec: SandboxSpec, start: Start) -> None:
    sandbox = start(spec, disk_mb=64, memory_mb=512)
    code = f"FOLDERS = [os.environ['HOME'], '/tmp', '/var/tmp', '/run']\n{FILL}"
    try:
        result = sandbox.sync.python(f"import os\n{code}", timeout_s=30)
        assert 0 < int(result.value) <= 66, result
        assert sandbox.sync.run("rm -f fill-* /tmp/fill-*; echo on > file; cat file").stdout == (
            "on\n"
        )
    except SandboxDied:
        pass


@pytest.mark.row(5)
def test_shared_memory_is_full_at_the_limit(spec: SandboxSpec, start: Start) -> None:
    sandbox = start(spec, disk_mb=64, memory_mb=512)
    try:
        result = sandbox.sync.python(f"FOLDERS = ['/dev/shm', '/dev/mqueue']\n{FILL}", timeout_s=30)
        assert int(result.value) <= 66, result
    except SandboxDied:
        pass


@pytest.mark.row(6)
def test_entries_run_out_at_the_limit(spec: SandboxSpec, start: Start) -> None:
    sandbox = start(spec, inodes=1024)
    code = """
import os
made = 0
for folder in (os.environ["HOME"], "/tmp", "/dev/shm"):
    try:
        for number in range(8000):
            os.mkdir(f"{folder}/{number}")
            made += 1
    except OSError:
        pass
made"""
    with contextlib.suppress(SandboxDied):
        # /dev/shm has a number of its own.
        assert 0 < int(sandbox.sync.python(code).value) <= 2 * 1024 + 64


@pytest.mark.row(7)
def test_a_zip_bomb_fills_the_sandbox_s_disk_and_no_more(spec: SandboxSpec, start: Start) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(40):
            archive.writestr(f"{number}", bytes(8 << 20))
    sandbox = start(spec, disk_mb=64)
    sandbox.sync.write("bomb.zip", data.getvalue())
    try:
        result = sandbox.sync.run(["python3", "-m", "zipfile", "-e", "bomb.zip", "out"])
        assert result.exit_code != 0
        assert int(sandbox.sync.run("du -sk out").stdout.split()[0]) <= 66 << 10
    except SandboxDied:
        pass


@pytest.mark.row(8)
def test_the_host_reads_no_huge_file(sandbox: Sandbox, memory_growth_mb: Callable[[], Any]) -> None:
    code = """
import os, resource
sizes = [1 << 40, sandbox_bytes - 1]
for size in sizes:
    try:
        with open("huge", "wb") as file:
            file.truncate(size)
    except OSError:
        pass
os.stat("huge").st_size"""
    limits = sandbox.spec.limits
    size = int(sandbox.sync.python(f"sandbox_bytes = {limits.disk_mb << 20}\n{code}").value)
    assert limits.file_bytes < size
    with memory_growth_mb() as growth:
        for path in ("huge", "/proc/kcore"):
            with pytest.raises(OSError, match=r"."):
                sandbox.sync.read(path)
    assert growth[0] < 64
    assert sandbox.sync.run("echo on").stdout == "on\n"
