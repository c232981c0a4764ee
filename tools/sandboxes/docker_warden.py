"""Removes the containers whose owner has ended: a process beside the owner, and a sweep.

A container's first process ends as soon as its connection to its owner closes, but the container
stays listed. The warden waits for the end of its owner, however that comes, and removes what is
left. Only the standard library: it runs as a script.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import time
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

OWNER_LABEL = "palestra.owner"
TIMEOUT_S = 30.0
# Exited containers of an owner that cannot be looked at from here are removed at this age.
FORGOTTEN_S = 600.0
# A container may still be in the making when its owner ends.
_LAST_LOOKS_S = (0.0, 1.0, 4.0)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connect(address: str) -> http.client.HTTPConnection:
    """To the daemon at unix://… or tcp://…; the first request opens it."""
    url = urlsplit(address)
    if url.scheme == "unix":
        return UnixConnection(url.path, TIMEOUT_S)
    return http.client.HTTPConnection(url.netloc, timeout=TIMEOUT_S)


def request(address: str, method: str, path: str) -> Any:
    """What the daemon answers, None if that is empty.

    Raises:
        OSError: it does not answer, or answers with an error.
    """
    with contextlib.closing(connect(address)) as connection:
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from None
    if answer.status >= 400:
        raise OSError(f"{method} {path}: {answer.status} {text[:200]!r}")
    return json.loads(text) if text else None


def remove_containers_of(owner: str, address: str) -> int:
    """Kill and remove every container with this owner's label; how many there were."""
    return sum(_remove(found["Id"], address) for found in _containers(address, owner))


def sweep(address: str) -> int:
    """Remove the containers of owners that have ended; how many there were."""
    return sum(
        _remove(found["Id"], address)
        for found in _containers(address)
        if _is_left_over(found, address)
    )


def owner_of(pid: int) -> str:
    """What identifies a process among all that ever ran, on this host and on others."""
    return f"{_host()}/{pid}/{_start_time(pid)}"


def start_warden(address: str) -> tuple[int, int]:
    """Watch this process: (the warden's pid, a descriptor whose closing sets it to work)."""
    read_fd, write_fd = os.pipe()
    argv = [sys.executable, "-I", "-S", __file__, owner_of(os.getpid()), address]
    nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, read_fd, 0), *nothing],
        )
    finally:
        os.close(read_fd)
    return pid, write_fd


def _containers(address: str, owner: str = "") -> list[dict[str, Any]]:
    label = f"{OWNER_LABEL}={owner}" if owner else OWNER_LABEL
    filters = quote(json.dumps({"label": [label]}))
    found: list[dict[str, Any]] = request(
        address, "GET", f"/containers/json?all=1&filters={filters}"
    )
    return found


def _remove(container: str, address: str) -> bool:
    with contextlib.suppress(OSError):  # another is removing it
        request(address, "DELETE", f"/containers/{container}?force=1&v=1")
        return True
    return False


def _is_left_over(container: dict[str, Any], address: str) -> bool:
    host, _, process = container["Labels"][OWNER_LABEL].rpartition("/")[0].rpartition("/")
    if host == _host():
        return bool(container["Labels"][OWNER_LABEL] != owner_of(int(process)))
    # The owner ran before this machine was last booted, or runs on another or in a container.
    return container["State"] not in ("running", "paused") and (
        time.time() - _last_change_s(container, address) > FORGOTTEN_S
    )


def _last_change_s(container: dict[str, Any], address: str) -> float:
    with contextlib.suppress(OSError):
        state = request(address, "GET", f"/containers/{container['Id']}/json")["State"]
        for name in ("FinishedAt", "StartedAt"):
            finished = datetime.fromisoformat(state[name][:19] + "+00:00").timestamp()
            if finished > 0:
                return finished
    return float(container["Created"])


@functools.cache
def _host() -> str:
    """The machine since it was booted, and which processes are seen under which numbers."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{platform.node()}/0"


def _start_time(pid: int) -> str:
    """When a process started, in the system's own terms; "" if there is none."""
    if not os.path.exists("/proc/self/stat"):
        ps = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(ps, capture_output=True, text=True, check=False).stdout.strip()
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def main(owner: str, address: str) -> None:
    """Wait for the owner's end, then remove its containers."""
    os.setsid()  # out of reach of Ctrl-C
    os.chdir("/")
    sys.stdin.buffer.read()
    for wait_s in _LAST_LOOKS_S:
        time.sleep(wait_s)
        with contextlib.suppress(OSError):
            remove_containers_of(owner, address)


if __name__ == "__main__":
    main(*sys.argv[1:])
