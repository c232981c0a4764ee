"""What Docker is asked for: the settings of a sandbox's container, and its standard streams."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from palestra.tools.sandboxes.channel import SocketChannel
from palestra.tools.sandboxes.docker_warden import OWNER_LABEL, connect
from palestra.tools.sandboxes.guest_sandbox import WORK_FOLDER, guest_source
from palestra.tools.sandboxes.limits import Limits
from palestra.tools.sandboxes.seccomp import docker_profile
from palestra.tools.sandboxes.spec import SandboxSpec

if TYPE_CHECKING:
    from docker import APIClient

UID = 65534  # nobody
CPU_PERIOD_US = 100_000
SHM_MB, SHM_INODES = 16, 1024
# /work's part of the disk and its inodes; /tmp has the rest. Docker cannot mount one file system
# in both places.
WORK_SHARE = 0.75
# gVisor's kernel takes host threads and memory for itself and for each of its processes, and dies
# if it gets none. Measured: 48 threads and 35 MiB, then 5.3 threads and up to 7 MiB a process.
GVISOR_THREADS, GVISOR_THREADS_PER_PROCESS = 256, 6
GVISOR_MB, GVISOR_MB_PER_PROCESS = 32, 2
_HEADER = struct.Struct(">B3xI")  # the stream, the length of what follows
_STDOUT, _STDERR = 1, 2


def create_container(
    client: APIClient, spec: SandboxSpec, *, image: str, name: str, owner: str
) -> None:
    """Make the container, which does not run yet. Raises what the docker package does."""
    from docker.types import LogConfig, Ulimit

    limits = spec.limits
    memory = f"{_memory_mb(spec)}m"
    host_config = client.create_host_config(
        runtime=spec.runtime,
        network_mode="none",
        ipc_mode="none",  # private, and without a /dev/shm of Docker's, which has no inode limit
        read_only=True,
        tmpfs=_file_systems(limits),
        mem_limit=memory,
        memswap_limit=memory,  # both together: no swap
        pids_limit=_pids(spec),
        cpu_period=CPU_PERIOD_US,
        cpu_quota=max(1000, int(limits.cpus * CPU_PERIOD_US)),
        cap_drop=["ALL"],
        security_opt=["no-new-privileges", f"seccomp={_seccomp()}"],
        ulimits=[Ulimit(name="core", soft=0, hard=0)],
        log_config=LogConfig(type="none"),  # what it writes would fill the host's disk
    )
    client.create_container(
        image,
        name=name,
        entrypoint=["python3", "-I", "-c", guest_source(), "0", "1"],
        command=[],
        user=f"{UID}:{UID}",
        working_dir="/",
        hostname="sandbox",
        labels={OWNER_LABEL: owner},
        environment={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        healthcheck={"test": ["NONE"]},
        stdin_open=True,
        host_config=host_config,
    )


def attach(address: str, name: str) -> socket.socket:
    """A socket to its standard streams. As soon as it closes, the container's input does too.

    (The docker package has the same, but one cannot close what it gives without its internals.)
    """
    path = f"/containers/{name}/attach?stream=1&stdin=1&stdout=1&stderr=1"
    with contextlib.closing(connect(address)) as connection:
        connection.request("POST", path, headers={"Connection": "Upgrade", "Upgrade": "tcp"})
        with connection.getresponse() as answer:
            if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
                raise OSError(f"Docker does not attach to {name}: {answer.read(200)!r}")
            # Nothing has come yet that could be lost here: the container does not run.
            assert connection.sock is not None
            return connection.sock.dup()


class AttachedChannel(SocketChannel):
    """Over such a socket. Docker cuts the container's output into pieces with a header each."""

    def __init__(self, attached: socket.socket) -> None:
        super().__init__(attached)
        self._pieces = bytearray()
        self._stream, self._left = _STDOUT, 0

    async def _read(self) -> bytes:
        while data := await super()._read():
            self._pieces += data
            if output := self._take_output():
                return output
        return b""

    def _take_output(self) -> bytes:
        output = bytearray()
        while True:
            if self._left:
                piece = self._pieces[: self._left]
                if not piece:
                    break
                del self._pieces[: self._left]
                self._left -= len(piece)
                if self._stream == _STDOUT:
                    output += piece
            elif len(self._pieces) >= _HEADER.size:
                self._stream, self._left = _HEADER.unpack_from(self._pieces)
                del self._pieces[: _HEADER.size]
                if self._stream not in (_STDOUT, _STDERR):
                    raise OSError(f"Docker sent something of a stream {self._stream}")
            else:
                break
        return bytes(output)


def _file_systems(limits: Limits) -> dict[str, str]:
    """In memory, with sizes. The owner decides, because Docker keeps the image's mode."""
    owned = f"exec,nosuid,nodev,uid={UID},gid={UID}"
    work_mb = limits.disk_mb * WORK_SHARE
    work_inodes = int(limits.inodes * WORK_SHARE)
    sizes = {
        WORK_FOLDER: (work_mb, work_inodes),
        "/tmp": (limits.disk_mb - work_mb, limits.inodes - work_inodes),
        "/dev/shm": (_shm_mb(limits), SHM_INODES),
    }
    return {
        folder: f"{owned},size={int(size_mb * 1024)}k,nr_inodes={inodes}"
        for folder, (size_mb, inodes) in sizes.items()
    }


def _shm_mb(limits: Limits) -> int:
    return min(SHM_MB, limits.disk_mb)


def _memory_mb(spec: SandboxSpec) -> int:
    """Of the processes, the files, and gVisor's kernel."""
    limits = spec.limits
    memory_mb = limits.memory_mb + limits.disk_mb + _shm_mb(limits)
    if spec.runtime == "runsc":
        memory_mb += GVISOR_MB + GVISOR_MB_PER_PROCESS * limits.processes
    return memory_mb


def _pids(spec: SandboxSpec) -> int:
    if spec.runtime == "runsc":
        return GVISOR_THREADS + GVISOR_THREADS_PER_PROCESS * spec.limits.processes
    return spec.limits.processes


@cache
def _seccomp() -> str:
    return json.dumps(docker_profile())
