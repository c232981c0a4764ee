"""Files of the sandbox, read and written for the host in spite of links, FIFOs and devices."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

PATH_MAX = 4096


class Refused(Exception):
    """A request that is not served; the text is for whoever made it."""


def read_file(home: str, path: str, within: str, max_bytes: int) -> bytes:
    """A regular file, whole."""
    fd = _open(home, path, within, os.O_RDONLY)
    with open(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > max_bytes:
            raise Refused(f"it has {size:,} bytes, more than the {max_bytes:,} that may be read")
        data = file.read(max_bytes + 1)
    if data is None:
        raise Refused("it has nothing to read now")
    if len(data) > max_bytes:
        raise Refused(f"it has more than the {max_bytes:,} bytes that may be read")
    return data


def write_file(home: str, path: str, within: str, content: bytes) -> None:
    """A regular file, made with its folders or overwritten."""
    fd = _open(home, path, within, os.O_WRONLY | os.O_CREAT)
    with open(fd, "wb") as file:
        os.ftruncate(fd, 0)
        file.write(content)


def list_folder(home: str, path: str, within: str, max_entries: int) -> list[list[object]]:
    """[name, first letter of the mode as `ls -l` prints it, bytes] of a folder's entries."""
    fd = _open(home, path, within, os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries: list[list[object]] = []
        with os.scandir(fd) as scan:
            for entry in scan:
                if len(entries) == max_entries:
                    break
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    kind = stat.filemode(status.st_mode)[0]
                    entries.append([entry.name, kind, status.st_size])
    finally:
        os.close(fd)
    return sorted(entries, key=lambda entry: str(entry[0]))


def _open(home: str, path: str, within: str, flags: int) -> int:
    """A regular file or a folder; never waits for a FIFO, follows no link if it is to stay within.

    Raises Refused or OSError.
    """
    path = os.path.normpath(os.path.join(home, path))
    if len(os.fsencode(path)) >= PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if within:
        fd = _open_within(os.path.normpath(os.path.join(home, within)), path, flags)
    else:
        if flags & os.O_CREAT:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, flags, 0o644)
    mode = os.fstat(fd).st_mode
    wanted = stat.S_ISDIR if flags & os.O_DIRECTORY else stat.S_ISREG
    if not wanted(mode):
        os.close(fd)
        raise Refused("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
    return fd


def _open_within(root: str, path: str, flags: int) -> int:
    """Open below `root`, one component after the other, through no symbolic link at all."""
    relative = os.path.relpath(path, root)
    if relative == ".." or relative.startswith("../"):
        raise Refused("it is outside of " + root)
    *folders, name = relative.split("/")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = _step_into(fd, folder, bool(flags & os.O_CREAT))
            os.close(fd)
            fd = below
        if flags & os.O_DIRECTORY:
            # In two steps: gVisor minds O_NOFOLLOW for a folder only together with O_PATH.
            below = _step_into(fd, name, False)
            os.close(fd)
            fd = below
            return os.open(".", flags, dir_fd=fd)
        if flags & os.O_DIRECTORY:
            below = _step_into(fd, name, False)
            os.close(fd)
            fd = below
            # gVisor follows a link to a folder in spite of O_NOFOLLOW, but not with O_PATH.
            return os.open(".", flags, dir_fd=fd)
        try:
            return os.open(name, flags | os.O_NOFOLLOW, 0o644, dir_fd=fd)
        except OSError as error:
            raise _explained(error, name, fd) from None
    finally:
        os.close(fd)


def _step_into(fd: int, name: str, create: bool) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=fd)
        return os.open(name, flags, dir_fd=fd)
    except OSError as error:
        raise _explained(error, name, fd) from None


def _explained(error: OSError, name: str, fd: int) -> Exception:
    """O_NOFOLLOW answers ELOOP or, for a folder, ENOTDIR: say which."""
    with contextlib.suppress(OSError):
        if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            return Refused(f"{name!a} is a symbolic link: name the file it points to")
    return error
