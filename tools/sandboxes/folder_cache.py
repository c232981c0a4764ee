"""Folders that are made once and cached: built under a lock, renamed into place when complete.

A process holds what it uses; what nobody has used for weeks is removed when another is built.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

UNUSED_DAYS = 30

_held: dict[Path, int] = {}  # open folders, by path: a shared lock on each, until the process ends


def cache_folder(kind: str) -> Path:
    """Where palestra caches folders of a kind ("rootfs"); it is made if missing.

    That is below $PALESTRA_CACHE if set, else /var/cache/palestra for root (whose sandboxes run as
    a user who cannot enter root's home), else $XDG_CACHE_HOME/palestra or ~/.cache/palestra.

    Raises:
        ValueError: it cannot be made, or we are root and other users could not reach it.
    """
    folder = _cache() / kind
    try:
        make_public(folder)
    except OSError as error:
        raise ValueError(
            f"cannot make the cache {folder} ({error.strerror}): set PALESTRA_CACHE to a folder "
            "that can be written"
        ) from None
    check_reachable(folder)
    return folder


def check_reachable(folder: Path) -> None:
    """Raises ValueError if we are root and the users that sandboxes run as cannot reach it."""
    if os.geteuid() != 0:
        return
    for parent in (folder, *folder.parents):
        if not parent.stat().st_mode & 0o001:
            raise ValueError(
                f"{folder} is out of reach of the unprivileged users that sandboxes run as: "
                f"chmod o+x {parent}, or set PALESTRA_CACHE to a folder elsewhere"
            )


def make_public(folder: Path) -> None:
    """Make the folder, and the parents it lacks, so that every user may enter. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)  # whatever the umask says


def cached(kind: str, name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder of that kind and name, made by `build` if there is none (see `build_once`).

    Nobody removes it while this process lives. Raises ValueError as `cache_folder` does.
    """
    folder = cache_folder(kind) / name
    while folder not in _held or not folder.is_dir():
        is_new = not folder.is_dir()
        build_once(folder, build)
        _hold(folder)
        if is_new:
            remove_unused(folder.parent)
    return folder


def _hold(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # it has just been removed
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if folder.is_dir() and os.path.samestat(os.fstat(fd), folder.stat()):
            _held[folder] = fd
        else:
            os.close(fd)
    with contextlib.suppress(OSError):  # another user's cache
        _last_use(folder).touch()


def _last_use(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.used")


def remove_unused(parent: Path, days: float = UNUSED_DAYS) -> list[Path]:
    """Remove the folders that nobody holds and nobody has begun to use for so long."""
    removed = []
    for folder in [path for path in parent.iterdir() if path.is_dir() and path.name[0] != "."]:
        mark = _last_use(folder)
        # The time of the folder itself says nothing: the builder sets it.
        used_s = mark.stat().st_mtime if mark.exists() else folder.stat().st_ctime
        if time.time() - used_s < days * 86_400:
            continue
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Under another name first: nobody shall find half of it.
            doomed = folder.with_name(f".{folder.name}.removed")
            folder.rename(doomed)
            shutil.rmtree(doomed)
            mark.unlink(missing_ok=True)
            removed.append(folder)
        except OSError:  # held, or another user's
            continue
        finally:
            os.close(fd)
    return removed


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, which `build` fills if it does not exist yet.

    Of several processes or threads at once, one builds and the others wait for it. `build` gets an
    empty sibling that takes the folder's name when it returns: an interrupted build leaves at most
    a `.partial` folder, which the next one removes.
    """
    if folder.is_dir():
        return folder
    lock_file = folder.with_name(f".{folder.name}.lock")
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        partial = folder.with_name(f".{folder.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        make_public(partial)
        try:
            build(partial)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial)
            raise
        # Whoever waits for this lock, or makes the file anew, finds the folder first.
        lock_file.unlink(missing_ok=True)
    return folder


def _cache() -> Path:
    if chosen := os.environ.get("PALESTRA_CACHE"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/palestra")
    if (home := os.environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return Path(home) / "palestra"
    return Path.home() / ".cache" / "palestra"
