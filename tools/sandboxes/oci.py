"""Container images as root file systems: OCI and `docker save` archives, unpacked."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from palestra.tools.sandboxes.folder_cache import cached, make_public
from palestra.tools.sandboxes.image_archive import (
    Archive,
    Image,
    find_image,
    open_archive,
    strings,
    text,
    verify,
)
from palestra.tools.sandboxes.layers import MAX_BYTES, Budget, apply_layer
from palestra.tools.sandboxes.rootfs import MOUNT_POINTS

# Part of the cache key: raise it with every change of how images are unpacked.
_RECIPE = 1

_BROKEN = (
    *(ValueError, OSError, OverflowError, EOFError, RecursionError),
    *(tarfile.TarError, zlib.error),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """How an image wants to be run, as its maker wrote it; `user` may be a name or numbers."""

    env: Mapping[str, str]
    working_dir: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    user: str
    architecture: str


def unpack_image(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> ImageConfig:
    """Unpack an image into a folder that is empty or does not exist.

    `archive` is an OCI image layout, as a folder or a tar, or what `docker save` wrote; it may be
    compressed with gzip, and its layers also with zstd if this Python or `zstandard` can. The
    image is the one for this machine's architecture. Everything belongs to the current user, is
    readable to all, and has no setuid bit; devices and FIFOs are left out. The digests of all
    blobs and layers are verified. Nothing is written outside the folder; if it fails, what was
    written is left there. `max_bytes` bounds the archive, and all layers together, uncompressed.

    Raises:
        ValueError: the archive is none, or broken, hostile, or of another architecture; the folder
            has something in it.
    """
    with _explained(archive), open_archive(archive, max_bytes) as opened:
        image = find_image(opened)
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty: name another folder")
        _unpack(opened, image, folder, max_bytes)
        return _config_of(image)


def read_image_config(archive: Path) -> ImageConfig:
    """How the image wants to be run, without unpacking it. Raises ValueError."""
    with _explained(archive), open_archive(archive, MAX_BYTES) as opened:
        return _config_of(find_image(opened))


def rootfs_from_image(archive: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """The folder of an image's root file system, unpacked if it is not cached yet (by its digest).

    The folders that sandboxes mount something on are made where the image lacks them. Raises
    ValueError as `unpack_image` does, or if the cache cannot be used.
    """
    with _explained(archive), open_archive(archive, max_bytes) as opened:
        image = find_image(opened)

        def build(folder: Path) -> None:
            _unpack(opened, image, folder, max_bytes)
            for name in MOUNT_POINTS:
                path = folder / name
                # A link would lead whoever mounts on it out of the folder.
                if path.is_symlink() or not path.is_dir():
                    path.unlink(missing_ok=True)
                    path.mkdir()
                path.chmod(0o1777 if name == "tmp" else 0o755)

        key = f"image{_RECIPE}-{image.digest.partition(':')[2][:32]}"
        return cached("rootfs", key, build)


def _unpack(archive: Archive, image: Image, folder: Path, max_bytes: int) -> None:
    make_public(folder)
    root = os.path.realpath(folder)
    budget = Budget(max_bytes)
    for layer in image.layers:
        verify(archive, layer.name)
        with archive.open(layer.name) as stream:
            found = apply_layer(stream, root, budget)
        if found != layer.diff_id:
            raise ValueError(f"its layer {layer.name[:120]!r} is damaged: its digest is {found}")


def _config_of(image: Image) -> ImageConfig:
    settings = image.config.get("config") or {}
    if not isinstance(settings, dict):
        raise ValueError("its configuration is not an object")
    variables = (variable.partition("=") for variable in strings(settings.get("Env")))
    return ImageConfig(
        env={name: value for name, _, value in variables},
        working_dir=text(settings.get("WorkingDir") or "/"),
        entrypoint=tuple(strings(settings.get("Entrypoint"))),
        cmd=tuple(strings(settings.get("Cmd"))),
        user=text(settings.get("User") or ""),
        architecture=image.architecture,
    )


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Every complaint is one line that names the archive."""
    try:
        yield
    except _BROKEN as error:
        # What the image's maker wrote may be in it.
        text = "".join(c if c.isprintable() else "?" for c in _reason(error))
        raise ValueError(f"cannot unpack {archive}: {text}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, tarfile.ReadError):
        return f"it is not a tar, or broken ({error})"
    if isinstance(error, EOFError | zlib.error):
        return "its compression is broken"
    if isinstance(error, RecursionError):
        return "its headers go on without end"
    return str(error)
