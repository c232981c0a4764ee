"""Reads image archives: OCI layouts (folder or tar) and what `docker save` writes, verified."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from palestra.tools.sandboxes.layers import Budget, TarStream, each_member

_MAX_JSON_BYTES = 4 << 20  # as registries have it
_MAX_INDEX_DEPTH = 4
_MAX_LINKS = 8
_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]{64}|[0-9a-f]{128})")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A tar in the archive: `diff_id` is the digest of the tar, uncompressed."""

    name: str
    diff_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """What an archive holds for this machine; `config` is the image's configuration as JSON."""

    digest: str
    architecture: str
    config: dict[str, Any]
    layers: tuple[Layer, ...]


class Archive(ABC):
    """The files of an image archive by name."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Raises ValueError if there is none."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.open(name).close()
        except ValueError:
            return False
        return True

    def read_json(self, name: str, digest: str | None = None) -> tuple[Any, str]:
        """The document and its digest, which must be the one given."""
        with self.open(name) as stream:
            data = stream.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise ValueError(f"its {name} has more than {_MAX_JSON_BYTES} bytes")
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if digest is not None:
            _verify(io.BytesIO(data), name, digest)
        try:
            return json.loads(data), found
        except (ValueError, RecursionError):
            raise ValueError(f"its {name} is not JSON") from None


class _Folder(Archive):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> IO[bytes]:
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"it names a file outside of it, {name[:80]!r}")
        try:
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError):
            raise ValueError(f"it lacks {name[:80]!r}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ValueError(f"its {name} is not a file")
        return open(fd, "rb")


class _Tar(Archive):
    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        budget = Budget(max_bytes)
        for _, member in each_member(TarStream(file, budget, hashed=False)):
            budget.spend_entry()
            name = os.path.normpath(member.name)
            if member.isreg() and not member.issparse():
                self._files[name] = (member.offset_data, member.size)
            elif member.issym():
                self._links[name] = os.path.join(os.path.dirname(name), member.linkname)
            elif member.islnk():
                self._links[name] = member.linkname

    def open(self, name: str) -> IO[bytes]:
        path = os.path.normpath(name)
        for _ in range(_MAX_LINKS):
            if path in self._files:
                return io.BufferedReader(_Section(self._file, *self._files[path]), _CHUNK_BYTES)
            if path not in self._links:
                break
            path = os.path.normpath(self._links[path])  # `docker save` has links between layers
        raise ValueError(f"it lacks {name[:80]!r}")


class _Section(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size = file, start, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._file.seek(self._start + self._position)
        data = self._file.read(len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


@contextlib.contextmanager
def open_archive(path: Path, max_bytes: int) -> Iterator[Archive]:
    """The archive at a path, of at most so many bytes. Raises ValueError, OSError and tarfile's."""
    if path.is_dir():
        yield _Folder(path)
        return
    if not path.is_file():
        raise ValueError("there is no such file or folder")
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        magic = file.read(2)
        file.seek(0)
        if magic == b"\x1f\x8b":
            unpacked = gzip.GzipFile(fileobj=file, mode="rb")
            file = cast("IO[bytes]", stack.enter_context(unpacked))
        yield _Tar(file, max_bytes)


def find_image(archive: Archive) -> Image:
    """The image for this machine. Raises ValueError if there is none, or more than one."""
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    if archive.has("index.json"):
        index, _ = archive.read_json("index.json")
        found = _in_index(archive, index, architecture, _MAX_INDEX_DEPTH)
    elif archive.has("manifest.json"):
        manifests, _ = archive.read_json("manifest.json")
        found = [_docker_image(archive, manifest) for manifest in _objects(manifests)]
    else:
        raise ValueError(
            "it is neither an OCI image layout nor what `docker save` writes (for a container's "
            "file system from `docker export`, use `docker save` on its image)"
        )
    images = {image.digest: image for image in found}
    fitting = [image for image in images.values() if image.architecture == architecture]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"it holds {len(fitting)} images for {architecture}: save only one")
    held = sorted({image.architecture[:20] for image in images.values()})
    raise ValueError(
        f"it holds no image for {architecture}, this machine's architecture, but for: "
        f"{', '.join(held) or 'none'}"
    )


def verify(archive: Archive, name: str) -> None:
    """Raises ValueError if a blob named by its digest is not what the digest says."""
    digest = name.removeprefix("blobs/").replace("/", ":")
    if _DIGEST.fullmatch(digest):
        with archive.open(name) as stream:
            _verify(stream, name, digest)


def _in_index(archive: Archive, index: Any, architecture: str, depth: int) -> list[Image]:
    """The images that an index leads to, but those of another platform.

    An index within an index stands for one image: of its manifests the first that fits is taken.
    """
    found: list[Image] = []
    for descriptor in _objects(_object(index).get("manifests")):
        system = _object(descriptor.get("platform") or {})
        if system.get("architecture", architecture) != architecture:
            continue  # the blobs of other platforms need not even be there
        if system.get("os", "linux") != "linux":
            continue
        name, digest = _blob(descriptor)
        document, _ = archive.read_json(name, digest)
        document = _object(document)
        if "manifests" in document:
            if depth == 0:
                raise ValueError("it has an index within an index, and so on, too deep")
            images = _in_index(archive, document, architecture, depth - 1)
            fitting = [image for image in images if image.architecture == architecture]
            found += fitting[:1] or images
        else:
            found.append(_oci_image(archive, document, digest))
    return found


def _oci_image(archive: Archive, manifest: dict[str, Any], digest: str) -> Image:
    config, _ = archive.read_json(*_blob(_object(manifest.get("config"))))
    names = [_blob(layer)[0] for layer in _objects(manifest.get("layers"))]
    return _image(digest, config, names)


def _docker_image(archive: Archive, manifest: dict[str, Any]) -> Image:
    name = text(manifest.get("Config"))
    stem = name.removesuffix(".json").removeprefix("blobs/sha256/")
    named = f"sha256:{stem}"
    config, digest = archive.read_json(name, named if _DIGEST.fullmatch(named) else None)
    return _image(digest, config, strings(manifest.get("Layers")))


def _image(digest: str, config: Any, names: list[str]) -> Image:
    config = _object(config)
    diff_ids = strings(_object(config.get("rootfs")).get("diff_ids"))
    if len(diff_ids) != len(names):
        raise ValueError(f"its configuration lists {len(diff_ids)} layers, and it has {len(names)}")
    layers = [Layer(name=n, diff_id=d) for n, d in zip(names, diff_ids, strict=True)]
    architecture = text(config.get("architecture"))
    return Image(digest=digest, architecture=architecture, config=config, layers=tuple(layers))


def _blob(descriptor: dict[str, Any]) -> tuple[str, str]:
    """The name and the digest of the blob that a descriptor points to."""
    digest = text(descriptor.get("digest"))
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest[:80]!r} is not a digest of SHA-256 or SHA-512")
    return f"blobs/{digest.replace(':', '/')}", digest


def _verify(stream: IO[bytes], name: str, digest: str) -> None:
    algorithm, _, expected = digest.partition(":")
    found = hashlib.new(algorithm)
    while chunk := stream.read(_CHUNK_BYTES):
        found.update(chunk)
    if found.hexdigest() != expected:
        raise ValueError(f"its {name} is damaged: the digest is {algorithm}:{found.hexdigest()}")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"its JSON has {_kind(value)} where an object belongs")
    return value


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"its JSON has {_kind(value)} where a list belongs")
    return [_object(item) for item in value]


def strings(value: Any) -> list[str]:
    """A list of strings out of JSON; null is an empty one. Raises ValueError."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"its JSON has {_kind(value)} where a list belongs")
    return [text(item) for item in value]


def text(value: Any) -> str:
    """A string out of JSON. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"its JSON has {_kind(value)} where a string belongs")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
