"""Rows 21 to 27: nothing of the host's can be read, and nothing outside can be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palestra.tools.sandboxes import PythonResult, Sandbox

Attack = Callable[..., PythonResult]

READ_ALL_OF_PROC = """
import os
found = []
for pid in os.listdir("/proc"):
    if pid.isdigit():
        for name in ("environ", "cmdline"):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    found.append(file.read().decode("utf-8", "replace"))
            except OSError:
                pass
print(found)
"""


@pytest.mark.row(21)
def test_no_process_s_environment_has_a_secret(
    sandbox: Sandbox, attack: Attack, canary: str
) -> None:
    result = attack(sandbox, READ_ALL_OF_PROC)
    seen = sandbox.sync.run("cat /proc/*/environ /proc/$PPID/environ | tr '\\0' '\\n'; env")
    assert "HOME=" in seen.stdout
    for text in (result.output, seen.stdout, seen.stderr):
        assert canary not in text


@pytest.mark.row(22)
def test_other_processes_are_not_seen(sandbox: Sandbox, attack: Attack, host: Any) -> None:
    assert host.token not in attack(sandbox, READ_ALL_OF_PROC).output
    assert host.token not in sandbox.sync.run("ps aux; ls -l /proc/*/exe /proc/*/cwd").stdout
    code = """
    for pid in (host["victim"], host["pid"]):
        for name in ("exe", "cwd", "root"):
            attempt((pid, name), lambda: os.readlink(f"/proc/{pid}/{name}"))
        for name in ("", "fd", "task", "ns", "map_files"):
            attempt((pid, name), lambda: os.listdir(f"/proc/{pid}/{name}"))
        for name in ("cmdline", "environ", "maps", "status", "comm", "stat", "limits", "io"):
            attempt((pid, name), lambda: open(f"/proc/{pid}/{name}").read())
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(23)
def test_the_memory_of_the_host_cannot_be_read(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    size = 64
    buffer = ctypes.create_string_buffer(size)
    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    def by_file(pid):
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        return os.pread(fd, size, host["address"])

    def by_call(pid):
        mine = Vector(ctypes.addressof(buffer), size)
        theirs = Vector(host["address"], size)
        got = call("process_vm_readv", pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
        return got > 0 and buffer.raw

    def by_trace(pid):
        return call("ptrace", 16, pid, 0, 0) == 0

    for pid in (host["pid"], host["victim"], 1, os.getppid()):
        for function in (by_file, by_call, by_trace):
            attempt((function.__name__, pid), lambda: pid != os.getpid() and function(pid))
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(24)
def test_no_file_of_the_host_can_be_read(sandbox: Sandbox, attack: Attack, host: Any) -> None:
    code = """
    def read(path):
        with open(path, "rb") as file:
            return file.read(100_000)

    for path in host["files"]:
        for root in ("", "/proc/1/root", "/proc/self/root", f"/proc/{host['pid']}/root", "/../.."):
            attempt(root + path, lambda: read(root + path))
    for folder in ("/proc/1/cwd", f"/proc/{host['pid']}/cwd"):
        attempt(folder, lambda: os.listdir(folder) and "pyproject.toml" in os.listdir(folder))
    breaches"""
    assert attack(sandbox, code).value == "[]"
    for path in (host.file, host.shm, Path(__file__)):
        with pytest.raises(OSError, match=r"."):
            sandbox.sync.read(str(path))
        assert sandbox.sync.run(["cat", str(path)]).stdout == ""
    assert str(host.folder) not in sandbox.sync.run("find / -xdev -name 'palestra-att*'").stdout


@pytest.mark.row(24)
def test_a_file_that_the_host_makes_later_is_not_there(
    sandbox: Sandbox, attack: Attack, host: Any
) -> None:
    later = host.folder / "later.txt"
    later.write_text(host.secret)
    later.chmod(0o644)
    attack(sandbox, f"attempt('later', lambda: open({str(later)!r}).read())\nbreaches")
    assert sandbox.sync.run(["cat", str(later)]).stdout == ""


@pytest.mark.row(25)
def test_nothing_open_is_inherited(sandbox: Sandbox, attack: Attack, host: Any) -> None:
    code = """
    kinds, content = [], []
    for fd in range(1024):
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        import stat
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            kinds.append((fd, status.st_mode))
            try:
                content.append(os.pread(fd, 1000, 0))
            except OSError:
                pass
        if stat.S_ISSOCK(status.st_mode):
            kinds.append("socket")
    print(content)
    kinds"""
    result = attack(sandbox, code)
    # The session's own connection to the guest, and nothing else.
    assert result.value == "['socket']"
    command = """
import os
found = []
for fd in range(3, 1024):
    try:
        os.fstat(fd)
        found.append(fd)
    except OSError:
        pass
print(found)"""
    assert sandbox.sync.run(["python3", "-c", command]).stdout == "[]\n"


@pytest.mark.row(26)
def test_nothing_outside_of_its_folders_can_be_written(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    import sys, sysconfig
    own = [os.path.realpath(path) for path in (os.environ["HOME"], "/tmp", "/dev/shm")]
    own += ["/proc/self", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]
    own += ["/dev/tty", "/dev/fd", "/dev/ptmx", "/dev/pts", "/dev/mqueue"]

    def make(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.close(fd)
        return True

    folders = ["/", "/etc", "/usr", "/usr/bin", "/usr/lib", "/var", "/root", "/run", "/home"]
    folders += ["/dev", "/mnt", "/sys", "/proc", "/var/tmp", "/usr/local/bin", "/opt"]
    folders += [path for path in sys.path if path] + list(sysconfig.get_paths().values())
    for folder in folders:
        attempt(folder, lambda: make(folder + "/palestra-was-here"))
        attempt("mkdir " + folder, lambda: os.mkdir(folder + "/palestra-was-there") or True)
    for path in (sys.executable, os.path.realpath(sys.executable), os.__file__, "/etc/passwd"):
        attempt(path, lambda: os.path.exists(path) and make(path))
        attempt("chmod " + path, lambda: os.chmod(path, 0o777) or True)
        attempt("rename " + path, lambda: os.rename(path, path + "x") or True)

    for top, names, files in os.walk("/"):
        names[:] = [n for n in names if os.path.join(top, n) not in (*own, "/proc", "/sys")
                    and not os.path.islink(os.path.join(top, n))]
        if top not in own and os.access(top, os.W_OK):
            attempt("found " + top, lambda: make(top + "/palestra-was-here"))
    breaches"""
    assert attack(sandbox, code, timeout_s=60).value == "[]"
    assert not list(Path("/").glob("palestra-was-*"))


@pytest.mark.row(27)
def test_the_kernel_s_settings_cannot_be_opened_for_writing(
    sandbox: Sandbox, attack: Attack
) -> None:
    code = """
    paths = ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe"]
    paths += ["/proc/sys/vm/overcommit_memory", "/proc/sys/fs/binfmt_misc/register"]
    paths += ["/sys/kernel/uevent_helper", "/proc/sys/kernel/hostname", "/proc/mtrr"]
    for top, _, files in os.walk("/proc/sys"):
        paths += [os.path.join(top, name) for name in files]
    for top, _, files in os.walk("/sys"):
        paths += [os.path.join(top, name) for name in files][:20]
    for path in paths:
        def open_it():
            os.close(os.open(path, os.O_WRONLY))
            return True
        attempt(path, open_it)
    breaches[:20]"""
    assert attack(sandbox, code, timeout_s=60).value == "[]"
