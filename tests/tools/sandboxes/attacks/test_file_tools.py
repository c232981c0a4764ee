"""Rows 48 to 52: the host's way to the sandbox's files cannot be turned against anybody."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from palestra.tools.sandboxes import Sandbox

Names = Callable[[Sandbox], str]


def home_of(sandbox: Sandbox) -> str:
    return sandbox.sync.run('printf %s "$HOME"').stdout


def refused(call: Callable[..., object], *arguments: object, **options: object) -> bool:
    began = time.monotonic()
    with pytest.raises(OSError, match=r"."):
        call(*arguments, **options)
    return time.monotonic() - began < 4  # nor does it wait for anything


@pytest.mark.row(48)
def test_a_link_to_a_file_of_the_host_leads_nowhere(sandbox: Sandbox, host: Any) -> None:
    sandbox.sync.run(["ln", "-s", str(host.file), "link"])
    sandbox.sync.run(["ln", "-s", "/proc/self/root" + str(host.file), "magic"])
    sandbox.sync.run(["ln", "-s", str(host.folder / "made"), "dangling"])
    for name in ("link", "magic"):
        assert refused(sandbox.sync.read, name)
        for within in (None, home_of(sandbox)):
            assert refused(sandbox.sync.read, name, within=within)
    for within in (None, home_of(sandbox)):
        assert refused(sandbox.sync.write, "dangling", "x", within=within)
    assert host.file.read_text() == host.secret and not (host.folder / "made").exists()


@pytest.mark.row(49)
def test_no_path_leads_out(sandbox: Sandbox, host: Any) -> None:
    home = home_of(sandbox)
    sandbox.sync.run(["ln", "-s", str(host.folder), "folder"])
    sandbox.sync.run(["ln", "-s", "/", "root"])
    paths = [f"folder/{host.file.name}", "root/etc/passwd", f"root{host.file}"]
    paths += ["../" * 20 + str(host.file), f"{home}/../../../../{host.file}", str(host.file)]
    for path in paths:
        assert refused(sandbox.sync.read, path, within=home)
        assert refused(sandbox.sync.write, path, "x", within=home)
        if "etc" not in path:
            assert refused(sandbox.sync.read, path)
    assert refused(sandbox.sync.list, "folder", within=home)
    assert refused(sandbox.sync.list, str(host.folder))
    assert host.file.read_text() == host.secret
    assert {path.name for path in host.folder.iterdir()} <= {"secret.txt", "later.txt", "socket"}


@pytest.mark.row(50)
def test_fifos_and_devices_are_refused_without_waiting(sandbox: Sandbox) -> None:
    sandbox.sync.run("mkfifo fifo; ln -s fifo to-fifo; ln -s /dev/zero zero; ln -s /dev/tty tty")
    for within in (None, home_of(sandbox)):
        for path in ("fifo", "to-fifo", "zero", "tty"):
            assert refused(sandbox.sync.read, path, within=within)
            assert refused(sandbox.sync.write, path, "x", within=within)
    for path in ("/dev/zero", "/dev/random", "/dev/stdin", "/dev/stdout"):
        assert refused(sandbox.sync.read, path)
    assert sandbox.sync.run("echo on").stdout == "on\n"


@pytest.mark.row(51)
def test_a_file_swapped_for_a_link_while_it_is_read_gives_itself_or_nothing(
    sandbox: Sandbox, host: Any
) -> None:
    home = home_of(sandbox)
    sandbox.sync.run(["ln", "-s", str(host.file), "b"])
    sandbox.sync.run(["ln", "-s", str(host.folder), "e"])
    sandbox.sync.write("a", "mine")
    sandbox.sync.write(f"d/{host.file.name}", "mine")
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
os.close(os.open("ready", os.O_CREAT))
def swap(one, other):
    # At once, or in three steps where the kernel (gVisor's) cannot.
    if libc.renameat2(-100, one, -100, other, 2):
        os.rename(one, b"third")
        os.rename(other, one)
        os.rename(b"third", other)
while True:
    swap(b"a", b"b")
    swap(b"d", b"e")
"""
    sandbox.sync.write("swap.py", code)
    sandbox.sync.run("python3 swap.py > /dev/null 2>&1 &")
    while "ready" not in [entry.name for entry in sandbox.sync.list()]:
        time.sleep(0.01)
    seen = set()
    for _ in range(250):
        for path in ("a", f"d/{host.file.name}"):
            for within in (home, None):
                try:
                    seen.add(sandbox.sync.read(path, within=within))
                except OSError:
                    seen.add(b"")
                try:
                    sandbox.sync.write(path, "mine", within=within)
                except OSError:
                    seen.add(b"")
    assert seen == {b"", b"mine"}
    assert host.file.read_text() == host.secret


@pytest.mark.row(52)
@pytest.mark.parametrize(
    "name",
    ["line\nbreak", "\u202egnp.exe", "\udcff\udcfe", "e\u0301", "\u00e9", "\x1b[31mred", "-rf"],
    ids=ascii,
)
def test_odd_names_are_handled_and_shown_escaped(sandbox: Sandbox, name: str) -> None:
    make = "import sys, os; os.mkdir(os.fsencode(sys.argv[1]) + b'')"
    assert sandbox.sync.run(["python3", "-c", make, name]).exit_code == 0
    assert [entry.name for entry in sandbox.sync.list()] == [name]
    with pytest.raises(OSError, match=r".") as refusal:
        sandbox.sync.read(name)
    text = str(refusal.value)
    text.encode()
    assert not set(text) & set("\n\x1b\u202e")
    sandbox.sync.write(f"{name}/file", "text")
    assert sandbox.sync.read(f"{name}/file") == b"text"


@pytest.mark.row(52)
@pytest.mark.parametrize("name", ["a\0b", "\0", "a\0/../../etc/passwd", "\ud800"], ids=ascii)
def test_names_that_no_file_has_are_refused(sandbox: Sandbox, name: str) -> None:
    for within in (None, home_of(sandbox)):
        assert refused(sandbox.sync.read, name, within=within)
        assert refused(sandbox.sync.write, name, "x", within=within)
    assert sandbox.sync.list() == ()
