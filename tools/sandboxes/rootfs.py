"""The root file system of sandboxes: built from this host's Python and programs, once, and cached.

It needs neither root nor a registry: the interpreter that runs palestra, a shell, coreutils, git
and the libraries that they load are copied, packages of PyPI are installed beside them. Nothing
else of the host comes along: no configuration, no link that leads out, no setuid program.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from palestra.tools.sandboxes.folder_cache import (
    build_once,
    cached,
    check_reachable,
    make_public,
)
from palestra.tools.sandboxes.rootfs_packages import install_packages
from palestra.tools.sandboxes.rootfs_programs import SYSTEM_PATH, copy_git, copy_programs
from palestra.tools.sandboxes.shared_libraries import is_elf, shared_libraries
from palestra.tools.sandboxes.spec import DEFAULT_PACKAGES

# Sandboxes mount something of their own on each, so all of them exist in a read-only root.
MOUNT_POINTS = ("dev", "proc", "sys", "tmp", "work")

# Part of the cache key: raise it with every change of what is built.
_RECIPE = 2

# Loaded by name while a program runs, so that no program lists them.
_LOADED_LATER = ("libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2")
_TERMINALS = ("ansi", "dumb", "linux", "screen", "vt100", "xterm", "xterm-256color")

_NOT_OF_STDLIB = shutil.ignore_patterns(
    *("__pycache__", "site-packages", "dist-packages", "sitecustomize.py", "usercustomize.py"),
    *("test", "tests", "idle_test", "idlelib", "tkinter", "turtledemo", "ensurepip", "config-*"),
    *("*.a", "*.o", "_tkinter.*", "_test*.so", "_ctypes_test*", "_xxtestfuzz*", "xxlimited*"),
)

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\n"
    "agent:x:1000:1000:agent:/work:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/resolv.conf": "",
    "etc/profile": "export PATH=/usr/local/bin:/usr/bin:/bin\n",
}
# The time of every file: two builds of the same are equal. Zip archives know none before 1980.
_MTIME_S = 946_684_800  # 2000-01-01


def prepare_rootfs(
    packages: Sequence[str] = DEFAULT_PACKAGES,
    *,
    folder: Path | None = None,
    constraints: Path | None = None,
) -> Path:
    """The folder of a root file system with these packages of PyPI, built if there is none yet.

    It is cached by interpreter and packages (see `folder_cache`), or made as `folder`. Packages may
    carry versions ("numpy==2.4.0"); `constraints` is a file of versions, as pip takes it. Python is
    /usr/local/bin/python3, and Path(sys.base_prefix) becomes /usr/local.

    Raises:
        ValueError: something that it needs is missing here, a package cannot be installed, the
            cache cannot be used, or `folder` is something else.
    """
    if sys.platform != "linux":
        raise ValueError(f"root file systems are built on Linux, not on {sys.platform}: use docker")
    packages = sorted(set(packages))
    try:
        key = _key(packages, constraints)
        build = partial(_build, packages=packages, constraints=constraints, key=key)
        if folder is None:
            return cached("rootfs", key, build)
        folder = folder.absolute()
        if folder.exists() and f"BUILD_ID={key}\n" not in _read(folder / "etc/os-release"):
            raise ValueError(
                f"{folder} exists and is not this root file system: remove it, or name another"
            )
        make_public(folder.parent)
        check_reachable(folder.parent)
        return build_once(folder, build)
    except OSError as error:
        raise ValueError(f"cannot build a root file system for sandboxes: {error}") from error


def rootfs_tar(folder: Path, archive: Path) -> None:
    """Write the folder as an uncompressed tar owned by root, the same bytes for the same folder.

    `docker import` makes an image of it.
    """

    def of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = int(member.mtime)
        return member

    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(folder, arcname=".", filter=of_root)  # in the order of the names


def _key(packages: Sequence[str], constraints: Path | None) -> str:
    pins = None if constraints is None else constraints.read_text()
    made_of = [_RECIPE, sys.version, sys.base_prefix, platform.machine(), *platform.libc_ver()]
    digest = hashlib.sha256(json.dumps([*made_of, packages, pins]).encode()).hexdigest()
    return f"python{sys.version_info.major}.{sys.version_info.minor}-{digest[:16]}"


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _build(root: Path, packages: Sequence[str], constraints: Path | None, key: str) -> None:
    """Fill the empty folder `root`."""
    for name in (
        *MOUNT_POINTS,
        "etc",
        "root",
        "run",
        "usr/bin",
        "usr/sbin",
        "usr/lib64",
        "var/tmp",
    ):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    host_files = [*copy_programs(root), *copy_git(root), *_copy_interpreter(root)]
    stdlib = root / "usr/local" / sys.platlibdir / _stdlib().name
    site_packages = stdlib / "site-packages"
    site_packages.mkdir()
    # Where Debian's interpreter looks instead.
    (stdlib / "dist-packages").symlink_to("site-packages")
    if packages:
        scripts = root / "usr/local/bin"
        install_packages(packages, site_packages, scripts, constraints=constraints)
    installed = [*site_packages.rglob("*.so*"), *(root / "usr/local/bin").iterdir()]
    _copy_libraries(root, [*host_files, *(file for file in installed if is_elf(file))])
    _strip([*root.glob("usr/local/bin/python3.*"), *root.glob("usr/local/lib*/libpython*.so.*")])
    _strip((stdlib / "lib-dynload").glob("*.so"))
    _copy_data(root)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    (root / "etc/os-release").write_text(
        f'NAME="palestra sandbox"\nID=palestra\nVERSION_ID={_RECIPE}\nBUILD_ID={key}\n'
    )
    _settle(root)
    _compile(root, stdlib)
    _settle(root)


def _stdlib() -> Path:
    return Path(os.__file__).parent


def _copy_interpreter(root: Path) -> list[Path]:
    """Copy the running interpreter to /usr/local; returns the ELF files that it is made of."""
    stdlib = _stdlib()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(sys.base_prefix, "bin", version)
    if not program.exists():
        program = Path(os.path.realpath(sys.executable))
    folder = root / "usr/local/bin"
    folder.mkdir(parents=True)
    shutil.copyfile(program, folder / version)
    (folder / version).chmod(0o755)
    for name in ("python3", "python"):
        (folder / name).symlink_to(version)
    target = root / "usr/local" / sys.platlibdir / stdlib.name
    shutil.copytree(stdlib, target, ignore=_NOT_OF_STDLIB, ignore_dangling_symlinks=True)
    for file in target.glob("_sysconfigdata*.py"):
        text = file.read_text()
        if sys.base_prefix != "/usr":
            file.write_text(text.replace(sys.base_prefix, "/usr/local"))
    modules = [stdlib / file.relative_to(target) for file in target.rglob("*.so")]
    return [program, *filter(is_elf, modules)]


def _copy_libraries(root: Path, files: Iterable[Path]) -> None:
    """Copy what the files load to where the sandbox's loader looks for it."""
    libraries = shared_libraries(files)
    libc = next((file for name, file in libraries.items() if name.startswith("libc.")), None)
    if libc is None:
        raise ValueError(
            "the interpreter and the programs of this host load no libc that ldd can show"
        )
    for name in _LOADED_LATER:
        if (file := libc.parent / name).exists():
            libraries.setdefault(name, file)
    placed = {
        name: _in_sandbox(root, file)
        for name, file in libraries.items()
        if not file.is_relative_to(root)  # else a package brought it, and finds it beside itself
    }
    for name, target in placed.items():
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(libraries[name], target)
            target.chmod(0o755)  # the loader is a program
    # Others were found by an absolute path or by /etc/ld.so.conf, neither of which is there.
    usual = _in_sandbox(root, libc).parent
    usual.mkdir(parents=True, exist_ok=True)
    for name, target in placed.items():
        if "/" not in name and not (usual / name).exists():
            (usual / name).symlink_to(os.path.relpath(target, usual))


def _in_sandbox(root: Path, file: Path) -> Path:
    """Where a library of the host belongs: /lib is /usr/lib, and base_prefix is /usr/local."""
    if file.is_relative_to(sys.base_prefix) and sys.base_prefix != "/usr":
        return root / "usr/local" / file.relative_to(sys.base_prefix)
    if file.parts[1] in ("lib", "lib64"):
        return root / "usr" / file.relative_to("/")
    if file.parts[1:3] in (("usr", "lib"), ("usr", "lib64")):
        return root / file.relative_to("/")
    return root / "usr/local/lib" / file.name


def _strip(files: Iterable[Path]) -> None:
    """Take the debugging symbols from the interpreter's files, where binutils are installed."""
    if strip := shutil.which("strip", path=SYSTEM_PATH):
        # What it does not understand stays as it is.
        subprocess.run([strip, "--strip-unneeded", *files], capture_output=True)


def _copy_data(root: Path) -> None:
    """Copy the C.UTF-8 locale, the time zones and a few terminal descriptions, if the host's."""
    for locale in Path("/usr/lib/locale").glob("C.*"):
        if locale.is_dir():
            shutil.copytree(locale, root / "usr/lib/locale" / locale.name)
    zones = Path("/usr/share/zoneinfo")
    if zones.is_dir():
        # localtime is the host's own; right and posix repeat all zones.
        ours = shutil.ignore_patterns("localtime", "posixrules", "right", "posix")
        target = root / zones.relative_to("/")
        shutil.copytree(zones, target, ignore=ours, ignore_dangling_symlinks=True)
    for folder in ("/usr/share/terminfo", "/usr/lib/terminfo", "/lib/terminfo"):
        for terminal in _TERMINALS:
            file = Path(folder, terminal[0], terminal)
            target = root / "usr/share/terminfo" / terminal[0] / terminal
            if file.exists() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def _compile(root: Path, folder: Path) -> None:
    """Write the bytecode of all modules, with the paths that they have in the sandbox."""
    compiler = [sys.executable, "-I", "-m", "compileall", "-q", "-j", "0"]
    command = [*compiler, "-s", str(root), "-p", "/", str(folder)]
    # Its status is 1 if a single file, such as a template, is no Python: that one stays source.
    subprocess.run(command, capture_output=True, umask=0o022)


def _settle(root: Path) -> None:
    """Make all of it readable to all, writable to its owner, of one time, with no way out."""
    for folder, folders, files in os.walk(root, topdown=False):
        for path in (Path(folder, name) for name in (*folders, *files)):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                leads_to = os.path.normpath(path.parent / path.readlink())
                assert Path(leads_to).is_relative_to(root), f"{path} leads out of the sandbox"
                continue
            executable = stat.S_ISDIR(mode) or mode & 0o100
            path.chmod(0o755 if executable else 0o644)
            os.utime(path, (_MTIME_S, _MTIME_S))
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    os.utime(root, (_MTIME_S, _MTIME_S))
