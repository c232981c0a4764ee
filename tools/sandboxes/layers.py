"""Layers of a container image, applied to a folder that none of their entries can leave.

An image is untrusted: its names, links, sizes and headers are whatever its maker wrote. A path is
resolved as it would be with the folder as the root: absolute links and `..` stay inside.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import os
import shutil
import stat
import tarfile
from collections import deque
from collections.abc import Iterator
from typing import IO, Any, cast

MAX_BYTES = 8 << 30

_MAX_ENTRIES = 1_000_000
_MAX_DEPTH = 200  # of folders
_MAX_LINKS = 40  # as in the kernel
# tarfile holds in memory the headers before an entry, and those that count for all entries.
_MAX_HEADER_BYTES = 1 << 19
_MAX_PAX_HEADERS = 100
_CHUNK_BYTES = 1 << 17
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MAX_MTIME_S = 1 << 33


class Budget:
    """What is left of the bytes and entries that an image may unpack to."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._bytes = max_bytes
        self._entries = _MAX_ENTRIES

    def spend(self, count: int) -> None:
        """Raises ValueError if that many more bytes are too many."""
        self._bytes -= count
        if self._bytes < 0:
            raise ValueError(
                f"it unpacks to more than {self._max_bytes} bytes: raise max_bytes if you trust it"
            )

    def spend_entry(self) -> None:
        """Raises ValueError if one more entry is too many."""
        self._entries -= 1
        if self._entries < 0:
            raise ValueError(f"it has more than {_MAX_ENTRIES} entries")


class TarStream:
    """What tarfile reads from: forward only, and no more of headers than fits in memory.

    The digest of what was read is kept if `hashed`, for which nothing can be skipped.
    """

    def __init__(self, stream: IO[bytes], budget: Budget, *, hashed: bool) -> None:
        self._stream = stream
        self._budget = budget
        self._hash = hashlib.sha256() if hashed else None
        self._position = 0
        self.header_bytes_left: int | None = _MAX_HEADER_BYTES  # None: contents are read

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise ValueError("its contents are not in order")
        if self._hash is None:
            self._budget.spend(position - self._position)
            self._position = self._stream.seek(position)
        while self._position < position:
            if not self._take(min(position - self._position, _CHUNK_BYTES)):
                break

    def read(self, count: int) -> bytes:
        if self.header_bytes_left is not None:
            self.header_bytes_left -= count
            if count < 0 or self.header_bytes_left < 0:
                raise ValueError(f"it has a header of more than {_MAX_HEADER_BYTES} bytes")
        return self._take(count)

    def finish(self) -> str:
        """Read what is left; returns "sha256:" and the digest of everything."""
        while self._take(_CHUNK_BYTES):
            pass
        assert self._hash is not None
        return f"sha256:{self._hash.hexdigest()}"

    def _take(self, count: int) -> bytes:
        parts = []
        while count and (part := self._stream.read(count)):
            self._budget.spend(len(part))
            parts.append(part)
            count -= len(part)
        data = b"".join(parts)
        if self._hash is not None:
            self._hash.update(data)
        self._position += len(data)
        return data


def each_member(stream: TarStream) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar in order, of which none is kept in memory."""
    file = cast("IO[bytes]", stream)
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            if len(tar.pax_headers) > _MAX_PAX_HEADERS:
                raise ValueError(f"it has more than {_MAX_PAX_HEADERS} global headers")
            stream.header_bytes_left = None
            yield tar, member
            stream.header_bytes_left = _MAX_HEADER_BYTES
            cast("Any", tar).members = []


def apply_layer(stream: IO[bytes], root: str, budget: Budget) -> str:
    """Apply one layer, a tar that may be compressed with gzip or zstd, to the folder `root`.

    Owners are dropped, and with them setuid bits: what only the owner could read, all may. Devices
    and FIFOs are skipped. Returns the digest of the tar, "sha256:...".

    Raises:
        ValueError, OSError, tarfile.TarError, zlib.error, EOFError: it is broken or hostile.
    """
    layer = TarStream(_decompressed(stream), budget, hashed=True)
    target = _Target(root, budget)
    for tar, member in each_member(layer):
        target.place(member, tar)
    return layer.finish()


def _decompressed(stream: IO[bytes]) -> IO[bytes]:
    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream, mode="rb"))
    if magic == b"\x28\xb5\x2f\xfd":
        return _unzstd(stream)
    return stream


def _unzstd(stream: IO[bytes]) -> IO[bytes]:
    for module in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return cast("IO[bytes]", importlib.import_module(module).ZstdFile(stream))
    with contextlib.suppress(ImportError):
        decompressor = importlib.import_module("zstandard").ZstdDecompressor()
        return cast("IO[bytes]", decompressor.stream_reader(stream, read_across_frames=True))
    raise ValueError("its layers are compressed with zstd: pip install zstandard")


class _Target:
    """The folder, for one layer."""

    def __init__(self, root: str, budget: Budget) -> None:
        self._root = root
        self._budget = budget
        self._placed: set[str] = set()  # by this layer: its whiteouts do not concern them

    def place(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        """Do what an entry says."""
        self._budget.spend_entry()
        parts = _parts(member.name)
        if not parts:
            return  # the root itself
        folder = self._resolve(parts[:-1])
        name = parts[-1]
        path = f"{folder}/{name}"
        if name.startswith(_WHITEOUT):
            self._white_out(folder, name)
            return
        mode = member.mode & 0o777
        mode |= (mode & 0o500) >> 3 | (mode & 0o500) >> 6
        if member.isdir():
            if not _is_folder(path):
                _remove(path)
                os.mkdir(path)
            os.chmod(path, mode | 0o700 | member.mode & stat.S_ISVTX)
        elif member.isreg():
            _remove(path)
            self._write(path, member, tar)
            os.chmod(path, mode | 0o600)
        elif member.issym():
            _remove(path)
            os.symlink(member.linkname, path)
        elif member.islnk():
            *folders, last = _parts(member.linkname) or [""]
            source = f"{self._resolve(folders)}/{last}"
            if source != path:
                _remove(path)
                os.link(source, path, follow_symlinks=False)
        else:
            return  # a device or a FIFO
        self._placed.add(path)

    def _write(self, path: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        if member.issparse():
            self._budget.spend(member.size)  # of which the stream holds a part
        source = tar.extractfile(member)
        assert source is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "wb") as file:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)
        # Python compares it with what its bytecode says.
        mtime_s = int(member.mtime) if 0 <= member.mtime <= _MAX_MTIME_S else 0
        os.utime(path, (mtime_s, mtime_s))

    def _white_out(self, folder: str, name: str) -> None:
        hidden = name.removeprefix(_WHITEOUT)
        if name == _OPAQUE:
            for child in os.listdir(folder):
                self._hide(f"{folder}/{child}")
        elif hidden in ("", ".", ".."):
            raise ValueError(f"its entry {name[:80]!r} hides nothing")
        elif not hidden.startswith(_WHITEOUT):  # else a note of the storage driver
            self._hide(f"{folder}/{hidden}")

    def _hide(self, path: str) -> None:
        """Remove what is there, but for what this layer has placed."""
        if _is_folder(path):
            for child in os.listdir(path):
                self._hide(f"{path}/{child}")
            if path not in self._placed and not os.listdir(path):
                os.rmdir(path)
        elif path not in self._placed and os.path.lexists(path):
            os.unlink(path)

    def _resolve(self, parts: list[str]) -> str:
        """The folder of that path seen from the root, through links; it is made if missing."""
        waiting = deque(parts)
        resolved: list[str] = []
        links = 0
        while waiting:
            part = waiting.popleft()
            if part == "..":
                del resolved[-1:]
                continue
            path = "/".join((self._root, *resolved, part))
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                os.mkdir(path, 0o755)
                os.chmod(path, 0o755)
                self._budget.spend_entry()
                mode = stat.S_IFDIR
            if stat.S_ISDIR(mode):
                resolved.append(part)
            elif stat.S_ISLNK(mode):
                links += 1
                target = os.readlink(path)
                if target.startswith("/"):
                    resolved.clear()
                waiting.extendleft(p for p in reversed(target.split("/")) if p not in ("", "."))
            else:
                raise ValueError(f"its entry {'/'.join(parts)[:80]!r} goes through a file")
            if links > _MAX_LINKS or len(resolved) > _MAX_DEPTH:
                raise ValueError("it has a path of too many links or folders")
        return "/".join((self._root, *resolved))


def _parts(name: str) -> list[str]:
    """The parts of an entry's name, which is seen from the root even if absolute."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"its entry {name[:80]!r} leads out of it")
    return parts


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _remove(path: str) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
