"""The image that Docker sandboxes start from: the Dockerfile's, one named, or one made here."""

from __future__ import annotations

import fcntl
import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palestra.tools.sandboxes.folder_cache import cache_folder
from palestra.tools.sandboxes.rootfs import prepare_rootfs, rootfs_tar
from palestra.tools.sandboxes.spec import SandboxSpec

if TYPE_CHECKING:
    from docker import APIClient

BUILT_IMAGE = "palestra-sandbox"
IMPORTED_IMAGE = "palestra-rootfs"
# The packages of PyPI in an image, as the Dockerfile labels it.
PACKAGES_LABEL = "palestra.packages"
_BUILD = f"docker build --target sandbox -t {BUILT_IMAGE} ."


def image_problem(client: APIClient, spec: SandboxSpec) -> str:
    """Why no image can be had for such sandboxes, with the remedy; "" if one can."""
    if spec.image is None:
        if platform.system() == "Linux" or _built_with(client, spec.packages):
            return ""
        return (
            f"no image {BUILT_IMAGE} with {', '.join(spec.packages) or 'Python'} inside: {_BUILD}"
        )
    found = _inspect(client, spec.image)
    if found is None:
        return (
            f'no image "{spec.image}": docker pull it, or in a checkout of palestra docker build '
            f"--target sandbox -t {spec.image} ."
        )
    if volumes := found["Config"].get("Volumes"):
        # Docker would give each a folder on the host's disk, of any size.
        return f'the image "{spec.image}" declares volumes ({", ".join(volumes)}): use one without'
    return ""


def image_for(client: APIClient, spec: SandboxSpec) -> str:
    """The name of the image for such sandboxes, made first where there is none.

    That is `spec.image`, or the Dockerfile's if it has been built and has the packages, or else
    palestra's own root file system, imported.

    Raises:
        ValueError: there is none and none can be made here.
    """
    if problem := image_problem(client, spec):
        raise ValueError(problem)
    if spec.image is not None:
        return spec.image
    if _built_with(client, spec.packages):
        return BUILT_IMAGE
    return import_rootfs(client, prepare_rootfs(spec.packages))


def import_rootfs(client: APIClient, folder: Path) -> str:
    """The image of a folder that `prepare_rootfs` has made, imported if there is none."""
    name = f"{IMPORTED_IMAGE}:{folder.name}"
    with (cache_folder("docker") / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second import would leave the first without a name
        if _inspect(client, name) is None:
            with tempfile.NamedTemporaryFile(prefix="palestra-", suffix=".tar") as archive:
                rootfs_tar(folder, Path(archive.name))
                answer = client.import_image_from_file(
                    archive.name,
                    repository=IMPORTED_IMAGE,
                    tag=folder.name,
                    changes=["WORKDIR /work", "USER agent", 'CMD ["python3"]'],
                )
            # The last line tells of an error or the image's id.
            last = json.loads(str(answer).strip().splitlines()[-1])
            if "error" in last:
                raise ValueError(f"Docker cannot import {folder}: {last['error']}")
    return name


def _built_with(client: APIClient, packages: Sequence[str]) -> bool:
    found = _inspect(client, BUILT_IMAGE)
    if found is None:
        return False
    inside = (found["Config"].get("Labels") or {}).get(PACKAGES_LABEL, "")
    return set(packages) <= set(inside.split())


def _inspect(client: APIClient, name: str) -> dict[str, Any] | None:
    from docker.errors import ImageNotFound

    try:
        found: dict[str, Any] = client.inspect_image(name)  # type: ignore[no-untyped-call]
        return found
    except ImageNotFound:
        return None
