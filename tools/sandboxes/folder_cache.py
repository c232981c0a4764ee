"""Folders that are made once and cached: built under a lock, renamed into place when complete."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


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
