"""Every backend: files are read and written whole, by any name, and nothing that is no file is."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest

from palestra.tools.sandboxes import FileInfo, FileRefused, Sandbox, SandboxSpec

NAMES = [
    "two words",
    "line\nbreak",
    "tab\tand\rreturn",
    "\u202egnp.exe",  # shown from right to left
    "\u200bzero\ufeffwidth",
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    "byte-\udcff",  # no text in any encoding
    "-rf",
    "*?[a]",
    "$HOME `id` ;",
    "'\"",
    "~",
    "...",
    "\\",
    "x" * 255,
]


def home_of(sandbox: Sandbox) -> str:
    return sandbox.sync.run('printf %s "$HOME"').stdout


@pytest.mark.parametrize("data", [b"", b"text\n", bytes(range(256)) * 100, "ü\udcff\0"], ids=len)
def test_what_is_written_is_read(sandbox: Sandbox, data: str | bytes) -> None:
    sandbox.sync.write("file", data)
    expected = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    assert sandbox.sync.read("file") == expected
    assert sandbox.sync.read(home_of(sandbox) + "/file") == expected


def test_a_shorter_text_replaces_a_longer_one(sandbox: Sandbox) -> None:
    sandbox.sync.write("file", "a long text")
    sandbox.sync.write("file", "short")
    assert sandbox.sync.run("cat file").stdout == "short"


def test_folders_are_made_on_the_way(sandbox: Sandbox) -> None:
    sandbox.sync.write("a/b/../c/file", "text")
    assert sandbox.sync.run("cat a/c/file").stdout == "text"


def test_a_folder_s_entries_are_listed_by_name_and_kind(sandbox: Sandbox) -> None:
    sandbox.sync.run("mkdir d; printf text > f; ln -s nowhere l; mkfifo p; touch .hidden")
    entries = sandbox.sync.list()
    assert [(entry.name, entry.kind) for entry in entries] == [
        (".hidden", "file"),
        ("d", "folder"),
        ("f", "file"),
        ("l", "link"),
        ("p", "other"),
    ]
    assert FileInfo(name="f", kind="file", size_bytes=4) in entries
    assert sandbox.sync.list("d") == ()


@pytest.mark.parametrize("is_within", [False, True])
def test_any_name_is_written_listed_and_read(sandbox: Sandbox, is_within: bool) -> None:
    within = home_of(sandbox) if is_within else None
    for name in NAMES:
        sandbox.sync.write(name, name.encode("utf-8", "surrogateescape"), within=within)
    assert [entry.name for entry in sandbox.sync.list(within=within)] == sorted(NAMES)
    for name in NAMES:
        expected = name.encode("utf-8", "surrogateescape")
        assert sandbox.sync.read(name, within=within) == expected


def test_composed_and_decomposed_names_are_two_files(sandbox: Sandbox) -> None:
    for form in ("NFC", "NFD"):
        sandbox.sync.write(unicodedata.normalize(form, "é"), form)
    assert len(sandbox.sync.list()) == 2
    assert sandbox.sync.read(unicodedata.normalize("NFD", "é")) == b"NFD"


@pytest.mark.parametrize("name", ["a\0b", "", "\ud800", "x" * 256, "a/" * 3000], ids=len)
def test_a_name_that_no_file_can_have_is_refused(sandbox: Sandbox, name: str) -> None:
    for within in (None, home_of(sandbox)):
        with pytest.raises(OSError, match=r".") as refusal:
            sandbox.sync.read(name, within=within)
        str(refusal.value).encode()  # can be shown
        with pytest.raises(OSError, match=r"."):
            sandbox.sync.write(name, "text", within=within)
    assert sandbox.sync.run("echo on").stdout == "on\n"


def test_a_refusal_shows_odd_names_escaped(sandbox: Sandbox) -> None:
    name = "line\nbreak\u202e"
    sandbox.sync.run(["mkdir", name])
    with pytest.raises(FileRefused) as refusal:
        sandbox.sync.read(name)
    assert "\n" not in str(refusal.value) and "\u202e" not in str(refusal.value)


def test_what_is_not_there_is_told_as_open_tells_it(sandbox: Sandbox) -> None:
    sandbox.sync.run("mkdir folder; touch file; mkdir locked; touch locked/f; chmod 0 locked")
    with pytest.raises(FileNotFoundError):
        sandbox.sync.read("nothing")
    with pytest.raises(FileNotFoundError):
        sandbox.sync.list("nothing")
    with pytest.raises(NotADirectoryError):
        sandbox.sync.list("file")
    with pytest.raises(OSError, match="file"):
        sandbox.sync.write("file/below", "text")
    with pytest.raises(FileRefused, match="folder"):
        sandbox.sync.read("folder")
    with pytest.raises(OSError, match="folder"):
        sandbox.sync.write("folder", "text")


def test_permissions_hold(sandbox: Sandbox) -> None:
    if sandbox.sync.run("id -u").stdout == "0\n":
        pytest.skip("it runs as root, to whom permissions mean nothing")
    sandbox.sync.run("mkdir locked; touch locked/f; chmod 0 locked")
    with pytest.raises(PermissionError):
        sandbox.sync.read("locked/f")


def test_files_above_the_limit_are_refused_both_ways(
    spec: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    sandbox = start(spec, file_bytes=4096)
    sandbox.sync.write("file", b"x" * 4096)
    assert len(sandbox.sync.read("file")) == 4096
    with pytest.raises(FileRefused, match="4,096"):
        sandbox.sync.write("file", b"x" * 4097)
    sandbox.sync.run("printf y >> file; truncate -s 1M sparse")
    for name in ("file", "sparse"):
        with pytest.raises(FileRefused, match="4,096"):
            sandbox.sync.read(name)


@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem"])
def test_what_is_no_regular_file_is_never_waited_for(sandbox: Sandbox, name: str) -> None:
    sandbox.sync.run("mkfifo fifo")
    with pytest.raises(OSError, match=r"."):
        sandbox.sync.read(name)
    if not name.startswith("/proc"):
        with pytest.raises(OSError, match=r"."):
            sandbox.sync.write(name, "text")
    assert sandbox.sync.run("echo on").stdout == "on\n"


def test_a_fifo_with_a_writer_is_refused_too(sandbox: Sandbox) -> None:
    sandbox.sync.run("mkfifo fifo; (yes > fifo) > /dev/null 2>&1 & (cat fifo) > /dev/null 2>&1 &")
    with pytest.raises(OSError, match=r"."):
        sandbox.sync.read("fifo")
    with pytest.raises(OSError, match=r"."):
        sandbox.sync.write("fifo", "text")


def test_files_without_a_size_are_read(sandbox: Sandbox) -> None:
    if sandbox.sync.run("cat /proc/self/status").exit_code != 0:
        pytest.skip("it has no /proc")
    assert sandbox.sync.read("/proc/self/status").startswith(b"Name:")


class TestWithin:
    """With `within`, nothing outside of a folder is touched."""

    @pytest.fixture
    def home(self, sandbox: Sandbox) -> str:
        return home_of(sandbox)

    @pytest.mark.parametrize(
        "path", ["/etc/passwd", "../x", "a/../../x", "a/../../../etc/passwd", "{home}x", "/"]
    )
    def test_a_path_that_leads_out_is_refused(self, sandbox: Sandbox, home: str, path: str) -> None:
        path = path.format(home=home)
        with pytest.raises(FileRefused, match="outside"):
            sandbox.sync.read(path, within=home)
        with pytest.raises(FileRefused, match="outside"):
            sandbox.sync.write(path, "text", within=home)
        with pytest.raises(FileRefused, match="outside"):
            sandbox.sync.list(path, within=home)

    def test_a_path_that_comes_back_in_is_served(self, sandbox: Sandbox, home: str) -> None:
        sandbox.sync.write(f"{home}/a/../b/./c", "text", within=home)
        assert sandbox.sync.read("b/c", within=home) == b"text"
        assert [entry.name for entry in sandbox.sync.list(".", within=home)] == ["b"]

    @pytest.mark.parametrize("target", ["/etc", "..", "inside", "/proc/self/root", "loop"])
    def test_links_are_not_followed(self, sandbox: Sandbox, home: str, target: str) -> None:
        sandbox.sync.run(f"mkdir inside; echo secret > inside/passwd; ln -s {target} loop")
        for path in ("loop", "loop/passwd"):
            with pytest.raises(FileRefused, match="symbolic link"):
                sandbox.sync.read(path, within=home)
            with pytest.raises(FileRefused, match="symbolic link"):
                sandbox.sync.write(path, "text", within=home)
        with pytest.raises(FileRefused, match="symbolic link"):
            sandbox.sync.list("loop", within=home)
        assert sandbox.sync.read("inside/passwd") == b"secret\n"

    def test_the_folder_itself_may_not_be_a_link(self, sandbox: Sandbox, home: str) -> None:
        sandbox.sync.run("mkdir real; echo secret > real/f; ln -s real link")
        with pytest.raises(OSError, match=r"."):
            sandbox.sync.read(f"{home}/link/f", within=f"{home}/link")
        assert sandbox.sync.read(f"{home}/real/f", within=f"{home}/real") == b"secret\n"

    def test_a_write_through_a_dangling_link_makes_nothing(
        self, sandbox: Sandbox, home: str
    ) -> None:
        sandbox.sync.run("ln -s /tmp/made link; mkdir d; ln -s /tmp d/out")
        for path in ("link", "d/out/made"):
            with pytest.raises(FileRefused, match="symbolic link"):
                sandbox.sync.write(path, "text", within=home)
        assert sandbox.sync.run("ls /tmp/made").exit_code != 0

    def test_fifos_and_folders_are_refused(self, sandbox: Sandbox, home: str) -> None:
        sandbox.sync.run("mkfifo fifo; mkdir folder")
        for path in ("fifo", "folder"):
            with pytest.raises(FileRefused):
                sandbox.sync.read(path, within=home)
            with pytest.raises(OSError, match=path):
                sandbox.sync.write(path, "text", within=home)

    def test_a_folder_swapped_for_a_link_again_and_again_leads_nowhere(
        self, sandbox: Sandbox, home: str
    ) -> None:
        """Thousands of times a second, while the host reads."""
        sandbox.sync.run("mkdir a; echo inside > a/passwd; ln -s /etc b")
        swap = f"""
import ctypes, os
libc = ctypes.CDLL(None)
os.chdir({home!r})
open("ready", "w").close()
while True:
    # At once, or in three steps where the kernel (gVisor's) cannot.
    if libc.renameat2(-100, b"a", -100, b"b", 2):
        os.rename("a", "c")
        os.rename("b", "a")
        os.rename("c", "b")
"""
        sandbox.sync.write("swap.py", swap)
        sandbox.sync.run("python3 swap.py > /dev/null 2>&1 &")
        while not any(entry.name == "ready" for entry in sandbox.sync.list()):
            pass
        seen = set()
        for _ in range(400):
            try:
                seen.add(sandbox.sync.read("a/passwd", within=home))
            except OSError as error:
                seen.add(type(error).__name__.encode())
        assert b"inside\n" in seen
        assert seen <= {b"inside\n", b"FileRefused", b"NotADirectoryError", b"FileNotFoundError"}
