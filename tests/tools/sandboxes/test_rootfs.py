import hashlib
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from palestra.tools.sandboxes.rootfs import MOUNT_POINTS, prepare_rootfs, rootfs_tar

IMPORTS = (
    "asyncio, bz2, ctypes, decimal, hashlib, json, lzma, multiprocessing, socket, sqlite3, ssl, "
    "unittest, uuid, venv, xml.etree.ElementTree, zlib, zoneinfo"
)
USER = 200001  # a user of the host who owns nothing


def make_wheel(folder: Path) -> None:
    """A wheel of the package `greeting`, which has a command: nothing may reach a network."""
    info = "greeting-1.0.dist-info"
    files = {
        "greeting/__init__.py": "def greet() -> None:\n    print('hello from a package')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ngreet = greeting:greet\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "greeting-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(name, text)


@pytest.fixture(scope="module")
def cache() -> Iterator[Path]:
    """A cache that every user can reach, with an index of packages beside it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    make_wheel(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PALESTRA_CACHE", str(folder / "cache"))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
        mask = os.umask(0o077)  # the strictest: what is built is readable all the same
        try:
            yield folder
        finally:
            os.umask(mask)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def rootfs(cache: Path) -> Path:
    return prepare_rootfs(["greeting"])


def run_inside(
    rootfs: Path, *command: str, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command with the folder as its root, with /dev, /proc and /tmp as sandboxes have."""
    script = """
        set -e
        mount --bind "$1" "$1"
        mount -o remount,bind,ro "$1"
        mount -t tmpfs -o mode=755 none "$1/dev"
        for device in null urandom; do
            touch "$1/dev/$device"
            mount --bind "/dev/$device" "$1/dev/$device"
        done
        mount -t proc proc "$1/proc"
        mount -t tmpfs -o mode=1777 none "$1/tmp"
        root="$1"; shift
        exec chroot "$root" "$@"
    """
    enter = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"]
    if user is not None:
        enter = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *enter]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp"}
    return subprocess.run(
        [*enter, "sh", "-c", script, "sh", str(rootfs), *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )


def output_inside(rootfs: Path, *command: str, user: int | None = None) -> str:
    result = run_inside(rootfs, *command, user=user)
    assert result.returncode == 0, result.stderr
    return result.stdout


def python_inside(rootfs: Path, code: str) -> str:
    return output_inside(rootfs, "/usr/local/bin/python3", "-I", "-c", code)


def test_its_python_is_this_one_and_has_the_standard_library(rootfs: Path) -> None:
    shown = python_inside(rootfs, f"import sys, {IMPORTS}; print(sys.version, sys.prefix)")
    assert shown == f"{sys.version} /usr/local\n"


def test_its_python_looks_for_modules_only_inside(rootfs: Path) -> None:
    paths = python_inside(rootfs, "import sys; print(*sys.path)").split()
    assert paths and all(path.startswith("/usr/local/lib") for path in paths)


def test_packages_and_their_commands_work(rootfs: Path) -> None:
    assert python_inside(rootfs, "import greeting; greeting.greet()") == "hello from a package\n"
    assert output_inside(rootfs, "greet") == "hello from a package\n"


def test_the_shell_and_the_tools_of_text_work(rootfs: Path) -> None:
    script = "printf 'b\\na\\n' | sort | sed s/a/A/ | grep A | awk '{print $1, length($1)}'"
    assert output_inside(rootfs, "bash", "-c", script) == "A 1\n"
    script = "echo 1 > /tmp/a; cp /tmp/a /tmp/b; echo 2 >> /tmp/b; cd /tmp"
    script += "; diff -u a b > p; patch -s a p; tar czf t.tgz a; rm a; tar xzf t.tgz; cat a"
    assert output_inside(rootfs, "sh", "-c", script) == "1\n2\n"
    found = output_inside(rootfs, "sh", "-c", "find /etc -name passwd | xargs -n1 echo found")
    assert found == "found /etc/passwd\n"


def test_git_commits_clones_and_rebases(rootfs: Path) -> None:
    script = """
        set -e; git init -q /tmp/a; cd /tmp/a
        echo 1 > f; git add f; git commit -qm first
        git checkout -qb other; echo 2 > g; git add g; git commit -qm second
        git checkout -q main; echo 3 >> f; git commit -qam third; git rebase -q main other
        git clone -q /tmp/a /tmp/b; cd /tmp/b; git log --format=%s; git submodule status
    """
    assert output_inside(rootfs, "bash", "-c", script) == "second\nthird\nfirst\n"


def test_names_of_users_and_hosts_are_known(rootfs: Path) -> None:
    code = "import pwd, socket; print(pwd.getpwuid(1000).pw_dir, socket.gethostbyname('localhost'))"
    assert python_inside(rootfs, code) == "/work 127.0.0.1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_any_user_of_the_host_can_use_it(rootfs: Path) -> None:
    code = f"import {IMPORTS}, greeting; greeting.greet()"
    shown = output_inside(rootfs, "/usr/local/bin/python3", "-I", "-c", code, user=USER)
    assert shown == "hello from a package\n"
    assert output_inside(rootfs, "git", "--version", user=USER).startswith("git version")


def test_everything_is_readable_and_nothing_is_setuid_or_leads_out(rootfs: Path) -> None:
    seen = 0
    for folder, folders, files in os.walk(rootfs):
        for path in (Path(folder, name) for name in (*folders, *files)):
            seen += 1
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                assert path.resolve(strict=True).is_relative_to(rootfs), path
                assert not path.readlink().is_absolute(), path
                continue
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
            assert mode & 0o044 == 0o044, path
            assert not mode & (stat.S_ISUID | stat.S_ISGID), path
            if path.name != "tmp":
                assert not mode & 0o022, path
    assert seen > 1000
    assert (rootfs / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert all((rootfs / name).is_dir() for name in MOUNT_POINTS)


def test_it_holds_nothing_of_this_environment_or_of_the_hosts_configuration(rootfs: Path) -> None:
    places = [os.fsencode(place) for place in {sys.prefix, sys.base_prefix} if place != "/usr"]
    for file in rootfs.rglob("*"):
        if file.is_file() and file.suffix in (".py", ".pyc", ".pth", ".cfg", ".json", ".conf", ""):
            content = file.read_bytes()
            # The interpreter itself was compiled with its prefix inside.
            if not content.startswith(b"\x7fELF"):
                assert not any(place in content for place in places), file
    assert not list(rootfs.rglob("pyvenv.cfg")) and not list(rootfs.rglob("direct_url.json"))
    assert {path.name for path in (rootfs / "etc").iterdir()} == {
        *("gitconfig", "group", "hosts", "nsswitch.conf", "os-release"),
        *("passwd", "profile", "resolv.conf"),
    }


def test_modules_are_compiled_and_their_bytecode_is_current(rootfs: Path) -> None:
    stdlib = next(rootfs.glob("usr/local/lib*/python3*/os.py")).parent
    for source in (stdlib / "os.py", stdlib / "site-packages/greeting/__init__.py"):
        compiled = (
            source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        )
        flags, mtime_s, size = struct.unpack("<III", compiled.read_bytes()[4:16])
        found = source.stat()
        assert (flags, mtime_s, size) == (0, int(found.st_mtime), found.st_size)


def test_it_is_built_once_for_the_same_packages(cache: Path, rootfs: Path) -> None:
    before = rootfs.stat()
    assert prepare_rootfs(["greeting", "greeting"]) == rootfs
    assert rootfs.stat() == before


def test_it_can_be_made_as_a_folder_of_choice_which_nothing_else_holds(cache: Path) -> None:
    folder = prepare_rootfs([], folder=cache / "chosen" / "root")
    assert folder == cache / "chosen" / "root"
    assert "No module named greeting" in run_inside(folder, "python3", "-m", "greeting").stderr
    assert prepare_rootfs([], folder=folder) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["root"]
    with pytest.raises(ValueError, match=r"root exists and is not this root file system"):
        prepare_rootfs(["greeting"], folder=folder)


def test_pins_are_kept(cache: Path, rootfs: Path) -> None:
    constraints = cache / "constraints.txt"
    constraints.write_text("greeting==2.0\n")  # which the index lacks
    with pytest.raises(ValueError, match=r"cannot install greeting for sandboxes: Cannot install"):
        prepare_rootfs(["greeting"], constraints=constraints)


def test_a_package_that_pip_cannot_install_is_named_with_the_remedy(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"no-such-package.*: check the names, the network") as it:
        prepare_rootfs(["no-such-package"])
    assert "\n" not in str(it.value)
    left = [path.name for path in (cache / "cache/rootfs").iterdir() if "partial" in path.name]
    assert left == []


def test_an_option_of_pip_is_not_a_package(cache: Path) -> None:
    with pytest.raises(ValueError, match=r'"--pre" is not a package of PyPI'):
        prepare_rootfs(["--pre"])


def test_its_tar_is_the_same_every_time_and_owned_by_root(rootfs: Path, tmp_path: Path) -> None:
    archive, copy = tmp_path / "a.tar", tmp_path / "b.tar"
    rootfs_tar(rootfs, archive)
    os.utime(rootfs / "usr/bin/bash", ns=(1, rootfs.stat().st_mtime_ns))  # access times differ
    rootfs_tar(rootfs, copy)
    digests = {hashlib.sha256(path.read_bytes()).digest() for path in (archive, copy)}
    assert len(digests) == 1
    with tarfile.open(archive, "r:") as tar:
        members = {member.name: member for member in tar}
    assert {(member.uid, member.gid, member.uname) for member in members.values()} == {(0, 0, "")}
    assert members["./tmp"].mode == 0o1777
    assert members["./usr/bin/bash"].mode == 0o755
    assert members["./lib"].linkname == "usr/lib"
