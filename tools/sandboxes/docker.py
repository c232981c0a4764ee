"""`DockerSandbox`: a container, run by runc or, on a kernel of its own, by gVisor's runsc."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from palestra.tools.sandboxes import docker_daemon
from palestra.tools.sandboxes.channel import Channel
from palestra.tools.sandboxes.docker_container import AttachedChannel, attach, create_container
from palestra.tools.sandboxes.docker_daemon import Daemon, Unreachable, abilities_problem
from palestra.tools.sandboxes.docker_image import image_for, image_problem
from palestra.tools.sandboxes.guest_sandbox import START_TIMEOUT_S, Death, GuestSandbox
from palestra.tools.sandboxes.limits import Capabilities, Guarantee
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.tools.threads import run_in_thread
from palestra.tools.trouble import TimedOut
from palestra.types import Failure

if TYPE_CHECKING:
    from docker import APIClient

T = TypeVar("T")

IMAGE_TIMEOUT_S = 900.0
KILL_TIMEOUT_S = 30.0
CAUSE_TIMEOUT_S = 10.0
# How long a problem is believed before it is looked at again.
PROBLEM_TTL_S = 10.0
NOTED_S = 0.2
_KILLED = 137


class DockerSandbox(GuestSandbox):
    """A container whose first process is the guest, spoken to through its standard streams.

    The image needs a `python3` in /usr/local/bin or /usr/bin, 3.8 or newer, and a shell.
    """

    backend: ClassVar[str] = "docker"

    def __init__(self, spec: SandboxSpec) -> None:
        super().__init__(spec)
        self._name = f"palestra-{uuid.uuid4().hex}"
        self._daemon: Daemon | None = None
        self._image = ""
        self._attached: socket.socket | None = None
        self._ended = threading.Event()

    @classmethod
    def capabilities(cls, spec: SandboxSpec) -> Capabilities:
        key = (docker_daemon.address(), spec.runtime, spec.image, spec.packages)
        known, seen = _known.get(key, (None, 0.0))
        if known is None or (known.problem and time.monotonic() - seen > PROBLEM_TTL_S):
            known = _look(spec)
            _known[key] = known, time.monotonic()
        return known

    async def start(self) -> None:
        self._image = await self._in_thread(self._find_image, IMAGE_TIMEOUT_S)
        await super().start()

    async def _launch(self) -> Channel:
        if self.spec.limits.network:
            raise Failure("sandbox:docker", "it has no network: Limits(network=()) or another")
        await self._in_thread(self._start_container, START_TIMEOUT_S)
        assert self._attached is not None
        return AttachedChannel(self._attached)

    async def _terminate(self) -> None:
        self._ended.set()
        if self._attached is not None:
            self._attached.close()
        with contextlib.suppress(Failure):  # the warden will try again
            await self._in_thread(self._remove, KILL_TIMEOUT_S)

    async def _find_cause(self) -> Death:
        try:
            return await self._in_thread(self._inspect, CAUSE_TIMEOUT_S)
        except Failure as failure:
            return Death(own=False, how=failure.detail)

    def _find_image(self) -> str:
        self._daemon = docker_daemon.daemon()
        return image_for(self._daemon.client, self.spec)

    def _start_container(self) -> None:
        """If it has been given up meanwhile, nothing is left of it either."""
        daemon = self._daemon
        assert daemon is not None
        daemon.watch()
        try:
            create_container(
                daemon.client, self.spec, image=self._image, name=self._name, owner=daemon.owner
            )
            self._attached = attach(daemon.address, self._name)
            if not self._ended.is_set():
                daemon.client.start(self._name)
        finally:
            if self._ended.is_set():
                if self._attached is not None:
                    self._attached.close()
                self._remove()

    def _remove(self) -> None:
        from docker.errors import NotFound

        if self._daemon is not None:
            with contextlib.suppress(NotFound):
                self._daemon.client.remove_container(self._name, force=True, v=True)

    def _inspect(self) -> Death:
        from docker.errors import NotFound

        assert self._daemon is not None
        client = self._daemon.client
        # gVisor has let the code inside kill and trace the first process; runc does not.
        out_of_reach = self.spec.runtime == "runc"
        end = time.monotonic() + CAUSE_TIMEOUT_S / 2
        try:
            while (state := client.inspect_container(self._name)["State"])["Running"]:
                if time.monotonic() > end:
                    return Death(own=not out_of_reach, how="its connection through Docker closed")
                time.sleep(0.01)
            if _was_signalled(client, self._name, state):
                return Death(
                    own=False, how="it was killed through Docker, by another than palestra"
                )
        except NotFound:
            return Death(own=False, how="its container was removed from outside of it")
        if state["OOMKilled"]:
            return Death(own=True, how="it ran out of memory")
        if state["ExitCode"] == _KILLED and out_of_reach:
            return Death(own=False, how="it was killed from outside of it")
        return Death(own=True, how=f"its first process ended with status {state['ExitCode']}")

    async def _in_thread(self, function: Callable[[], T], timeout_s: float) -> T:
        """The result of a conversation with the daemon. Raises Failure if that goes wrong."""
        try:
            return await run_in_thread(function, timeout_s=timeout_s)
        except TimedOut:
            detail = f"the Docker daemon has not answered for {timeout_s:g} s"
        except Unreachable as problem:
            detail = str(problem)
        except OSError as error:  # those of the docker package and of requests are OSErrors, too
            detail = docker_daemon.said(error)
        raise Failure("sandbox:docker", detail)


def _was_signalled(client: APIClient, name: str, state: dict[str, Any]) -> bool:
    """Whether somebody has asked Docker to stop or kill a container that has ended."""
    # Docker remembers the last 256 events of all containers, and notes this one soon after the
    # signal has had its effect. The times are those of its clock.
    started, ended = (datetime.fromisoformat(state[when]) for when in ("StartedAt", "FinishedAt"))
    until: Any = f"{ended.timestamp() + NOTED_S:.6f}"
    events = client.events(
        since=int(started.timestamp()),
        until=until,
        filters={"container": [name], "event": ["kill"]},
        decode=True,
    )
    return bool(list(events))


_known: dict[tuple[Any, ...], tuple[Capabilities, float]] = {}


def _look(spec: SandboxSpec) -> Capabilities:
    """What a daemon that is there offers, or what is missing."""
    information: dict[str, Any] = {}
    try:
        client = docker_daemon.daemon().client
        information = client.info()
        problem = abilities_problem(information, spec.runtime) or image_problem(client, spec)
    except Unreachable as unreachable:
        problem = str(unreachable)
    except OSError as error:
        problem = docker_daemon.said(error)
    if problem:
        return Capabilities(backend=DockerSandbox.backend, problem=problem)
    return Capabilities(
        backend=DockerSandbox.backend, guarantees=_guarantees(information, spec.runtime)
    )


def _guarantees(information: dict[str, Any], runtime: str) -> dict[Guarantee, str]:
    held = {
        Guarantee.NETWORK_OFF: "a network namespace with nothing but a loopback; seccomp",
        Guarantee.HOST_FILES_HIDDEN: "the image's files and nothing else",
        Guarantee.ROOT_READ_ONLY: "a read-only mount",
        Guarantee.HOST_PROCESSES_HIDDEN: "a pid namespace",
        Guarantee.SIBLINGS_HIDDEN: "namespaces per container",
        Guarantee.SYSTEM_CALLS_FILTERED: "seccomp, default-deny",
        Guarantee.MEMORY_PER_PROCESS: "rlimit on private memory",
        Guarantee.MEMORY_TOTAL: "control group",
        Guarantee.CPU: "control group",
        Guarantee.PROCESSES: "control group",
        Guarantee.DISK: "sized file systems in memory",
        Guarantee.INODES: "sized file systems in memory",
        Guarantee.TREE_KILLED: "the end of a pid namespace",
    }
    if runtime == "runsc":
        held |= {
            Guarantee.OWN_KERNEL: "gVisor",
            Guarantee.SYSTEM_CALLS_FILTERED: "gVisor serves them; seccomp on gVisor itself",
            Guarantee.PROCESSES: "control group: a sandbox that exceeds it ends",
            Guarantee.MEMORY_TOTAL: "control group: a sandbox that exceeds it ends",
        }
        del held[Guarantee.INODES], held[Guarantee.MEMORY_PER_PROCESS]
    for guarantee, ability in _ABILITIES.items():
        if not information.get(ability):
            del held[guarantee]
    return held


# What the host's control groups must allow Docker, e.g. not always without root.
_ABILITIES = {
    Guarantee.MEMORY_TOTAL: "MemoryLimit",
    Guarantee.PROCESSES: "PidsLimit",
    Guarantee.CPU: "CpuCfsQuota",
}
