"""What a sandbox bounds and what it promises."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum


class Guarantee(StrEnum):
    """One thing that a backend holds, or does not, on this host; named as a promise.

    An environment lists those that it requires; a backend that lacks one is refused.
    """

    NETWORK_OFF = "network_off"  # no address outside the sandbox can be reached, vsock included
    NETWORK_ALLOW_LIST = "network_allow_list"  # only the hosts named in `Limits.network`
    HOST_FILES_HIDDEN = "host_files_hidden"  # no file but the sandbox's own can be read
    ROOT_READ_ONLY = "root_read_only"  # nothing outside the work folder and /tmp can be written
    HOST_PROCESSES_HIDDEN = "host_processes_hidden"  # no other process read, signalled or traced
    SIBLINGS_HIDDEN = "siblings_hidden"  # no channel to other sandboxes
    SYSTEM_CALLS_FILTERED = "system_calls_filtered"  # the kernel's rarely needed doors are shut
    MEMORY_PER_PROCESS = "memory_per_process"
    MEMORY_TOTAL = "memory_total"  # all processes together
    CPU = "cpu"  # processor share
    PROCESSES = "processes"
    DISK = "disk"
    INODES = "inodes"
    TREE_KILLED = "tree_killed"  # `kill` leaves no process, daemonised ones included
    OWN_KERNEL = "own_kernel"  # the host's kernel does not serve the code's system calls


# What hostile code must not do to anyone else. An environment that asks for less says so.
SAFE: frozenset[Guarantee] = frozenset(
    {
        Guarantee.NETWORK_OFF,
        Guarantee.HOST_FILES_HIDDEN,
        Guarantee.ROOT_READ_ONLY,
        Guarantee.HOST_PROCESSES_HIDDEN,
        Guarantee.SIBLINGS_HIDDEN,
        Guarantee.SYSTEM_CALLS_FILTERED,
        Guarantee.MEMORY_TOTAL,
        Guarantee.PROCESSES,
        Guarantee.TREE_KILLED,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The bounds of one sandbox, all of its processes together unless it says otherwise.

    `network` is empty (off) or names the hosts that may be reached, as "host:port", where the
    backend can enforce such a list. `output_bytes` is what is kept of one call's output, its
    middle is cut; `file_bytes` is the largest file that is read or written through the host.
    """

    memory_mb: int = 512
    cpus: float = 1.0
    wall_s: float = 3600.0  # the sandbox's life, after which it is killed
    processes: int = 64
    disk_mb: int = 64
    inodes: int = 8192
    output_bytes: int = 256 * 1024
    file_bytes: int = 16 * 1024 * 1024
    network: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = {"memory_mb": 32, "processes": 4, "disk_mb": 1, "inodes": 64}
        for name, minimum in {**least, "output_bytes": 1024, "file_bytes": 1024}.items():
            if (number := getattr(self, name)) < minimum:
                raise ValueError(f"{name} of a sandbox must be at least {minimum}, got {number}")
        for name in ("cpus", "wall_s"):
            number = getattr(self, name)
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"{name} of a sandbox must be positive, got {number}")
        for entry in self.network:
            host, colon, port = entry.rpartition(":")
            if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
                raise ValueError(f'network lists hosts as "host:port", got "{entry}"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a backend offers on this host.

    `problem` is empty when it works, or says in one line what is missing and what to do;
    `guarantees` maps each promise to how it is kept, e.g. {"processes": "rlimit per user
    namespace"}; what is not in it is not promised.
    """

    backend: str
    problem: str = ""
    guarantees: dict[Guarantee, str] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        """Whether sandboxes of this backend can be started."""
        return not self.problem

    def missing(self, required: frozenset[Guarantee]) -> list[Guarantee]:
        """The required promises that it does not make."""
        return sorted(required - self.guarantees.keys())
