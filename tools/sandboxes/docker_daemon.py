"""The Docker daemon that sandboxes are started by: where it is, what it can do, what it says."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from typing import TYPE_CHECKING, Any

from palestra.tools.sandboxes.docker_warden import owner_of, start_warden, sweep

if TYPE_CHECKING:
    from docker import APIClient

# Where daemons are found: Docker's own, one without root, Docker Desktop's, the tests'.
SOCKETS = (
    "/var/run/docker.sock",
    "$XDG_RUNTIME_DIR/docker.sock",
    "~/.docker/run/docker.sock",
    "/run/palestra-docker/docker.sock",
)
TIMEOUT_S = 60
# Connections that are kept open, one for each thread that asks at the same time.
CONNECTIONS = 64


class Unreachable(Exception):
    """There is no daemon to speak to; the text says why, and what to do."""


class Daemon:
    """The daemon at an address, as this process uses it. Thread-safe."""

    def __init__(self, address: str) -> None:
        from docker import APIClient

        self.address = address
        self.owner = owner_of(os.getpid())
        self.client: APIClient = APIClient(
            base_url=address, version="auto", timeout=TIMEOUT_S, max_pool_size=CONNECTIONS
        )
        self._lock = threading.Lock()
        self._warden_pid = self._lifeline = -1

    def watch(self) -> None:
        """See to it that no container outlives its owner; to be called before one is made."""
        with self._lock:
            if self._lifeline < 0:
                threading.Thread(target=self._sweep, daemon=True).start()
            elif _is_running(self._warden_pid):
                return
            else:
                os.close(self._lifeline)
            self._warden_pid, self._lifeline = start_warden(self.address)

    def _sweep(self) -> None:
        with contextlib.suppress(OSError):
            sweep(self.address)

    def disown(self) -> None:
        """In a forked process: the warden is the parent's and must see it end."""
        if self._lifeline >= 0:
            os.close(self._lifeline)


_daemons: dict[str, Daemon] = {}
_lock = threading.Lock()


def address() -> str:
    """Where the daemon is: $DOCKER_HOST, or the first socket that there is."""
    if chosen := os.environ.get("DOCKER_HOST"):
        return chosen
    paths = [os.path.expanduser(os.path.expandvars(path)) for path in SOCKETS]
    return f"unix://{next(filter(os.path.exists, paths), paths[0])}"


def daemon() -> Daemon:
    """The daemon to use. Raises Unreachable."""
    where = address()
    with _lock:
        if where in _daemons:
            return _daemons[where]
        if problem := _setup_problem(where):
            raise Unreachable(problem)
        from docker.errors import DockerException

        try:
            found = _daemons[where] = Daemon(where)
        except (DockerException, OSError) as error:
            if "Permission denied" in str(error):
                raise Unreachable(
                    f"the Docker daemon at {where} may not be used by this user: add it to the "
                    "group docker (usermod -aG docker USER, then log in again)"
                ) from None
            raise Unreachable(
                f"no Docker daemon answers at {where}: start one (in a checkout of palestra, as "
                "root: .ci/start-docker), or say where it is in DOCKER_HOST"
            ) from None
        return found


def abilities_problem(information: dict[str, Any], runtime: str) -> str:
    """Why a daemon that describes itself so cannot start sandboxes, with the remedy; or ""."""
    if (system := information.get("OSType")) != "linux":
        return f"Docker here runs {system} containers: switch it to Linux containers"
    if not any("name=seccomp" in option for option in information.get("SecurityOptions") or ()):
        return "Docker here has no seccomp: use a kernel and a Docker that were built with it"
    runtimes = information.get("Runtimes") or {}
    if runtime not in runtimes:
        return (
            f"Docker here has no runtime {runtime}: install gVisor and add it to Docker's "
            'daemon.json ("runtimes"), as .ci/start-docker does'
        )
    arguments = runtimes[runtime].get("runtimeArgs") or ()
    if any("platform" in argument and "kvm" in argument for argument in arguments):
        return (
            "Docker's runtime runsc is set to gVisor's kvm platform, which hangs inside virtual "
            "machines: give it --platform=systrap, or ptrace with an old gVisor"
        )
    return ""


def said(error: Exception) -> str:
    """What went wrong with a request to the daemon, in one line."""
    from docker.errors import APIError
    from requests.exceptions import RequestException

    if isinstance(error, APIError):
        return f"Docker: {str(error.explanation or error)[:500]}"
    if isinstance(error, RequestException):
        return f"the Docker daemon does not answer ({str(error)[:200]})"
    return str(error)[:500]


def _is_running(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def _setup_problem(where: str) -> str:
    if importlib.util.find_spec("docker") is None:
        return 'the package docker is missing: pip install "palestra[docker]"'
    if where.partition("://")[0] not in ("unix", "tcp") or os.environ.get("DOCKER_TLS_VERIFY"):
        return (
            f"DOCKER_HOST is {where}: sandboxes speak to a daemon at unix://… or plain tcp://…; "
            "ssh -L forwards one"
        )
    return ""


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for inherited in _daemons.values():
        inherited.disown()
    _daemons.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
