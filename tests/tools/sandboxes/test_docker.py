import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from palestra.tools.sandboxes import (
    Capabilities,
    Guarantee,
    Limits,
    Sandbox,
    SandboxDied,
    SandboxSpec,
)
from palestra.tools.sandboxes.channel import Closed
from palestra.tools.sandboxes.docker import DockerSandbox
from palestra.tools.sandboxes.docker_container import AttachedChannel
from palestra.tools.sandboxes.docker_daemon import abilities_problem, address, daemon
from palestra.tools.sandboxes.docker_image import import_rootfs
from palestra.tools.sandboxes.docker_warden import (
    OWNER_LABEL,
    owner_of,
    remove_containers_of,
    sweep,
)
from palestra.tools.sandboxes.rootfs import prepare_rootfs
from palestra.types import Failure

SPEC = SandboxSpec(backend="docker", packages=(), limits=Limits(memory_mb=128))
GVISOR = SandboxSpec(backend="docker", packages=(), runtime="runsc")
ABLE: dict[str, Any] = {
    "OSType": "linux",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "Runtimes": {"runc": {"path": "runc"}},
}


def require(spec: SandboxSpec) -> None:
    """Skip without Docker, except in CI."""
    if problem := DockerSandbox.capabilities(spec).problem:
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)


@pytest.fixture
def docker() -> Any:
    """The client of the docker package."""
    require(SPEC)
    return daemon().client


def within(spec: SandboxSpec, use: Callable[[DockerSandbox], Awaitable[Any]]) -> Any:
    """What `use` makes of a started sandbox."""
    require(spec)

    async def start_and_use() -> Any:
        sandbox = DockerSandbox(spec)
        await sandbox.start()
        try:
            return await use(sandbox)
        finally:
            await sandbox.kill()

    return asyncio.run(start_and_use())


def output_of(command: str, spec: SandboxSpec = SPEC) -> str:
    async def use(sandbox: Sandbox) -> str:
        done = await sandbox.run(command)
        return done.stdout + done.stderr

    return str(within(spec, use))


def container_of(sandbox: DockerSandbox) -> Any:
    """What Docker tells about its container."""
    return daemon().client.inspect_container(sandbox._name)


def containers_of(owner: str) -> list[str]:
    label = f"{OWNER_LABEL}={owner}"
    return [found["Id"] for found in daemon().client.containers(all=True, filters={"label": label})]


def wait_until(true: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while not (held := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return held


def capabilities_at(docker_host: str, **spec: Any) -> Capabilities:
    """As a process with another DOCKER_HOST sees them."""
    code = (
        "import json, sys; from palestra.tools.sandboxes.docker import DockerSandbox\n"
        "from palestra.tools.sandboxes import SandboxSpec\n"
        "print(DockerSandbox.capabilities(SandboxSpec(**json.loads(sys.argv[1]))).problem)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(spec)],
        env={**os.environ, "DOCKER_HOST": docker_host},
        capture_output=True,
        text=True,
        check=True,
    )
    return Capabilities(backend="docker", problem=done.stdout.strip())


# What is missing


def test_a_missing_daemon_names_its_address_and_the_remedy(tmp_path: Path) -> None:
    problem = capabilities_at(f"unix://{tmp_path}/docker.sock").problem
    assert f"no Docker daemon answers at unix://{tmp_path}/docker.sock" in problem
    assert ".ci/start-docker" in problem and "DOCKER_HOST" in problem


def test_an_address_that_cannot_be_used_is_refused() -> None:
    assert "DOCKER_HOST is ssh://host" in capabilities_at("ssh://host").problem


def test_a_missing_image_names_itself_and_how_it_is_built(docker: Any) -> None:
    spec = SandboxSpec(backend="docker", image="palestra-test-missing")
    problem = DockerSandbox.capabilities(spec).problem
    assert "palestra-test-missing" in problem and "docker build --target sandbox" in problem


def test_a_daemon_with_linux_seccomp_and_the_runtime_will_do() -> None:
    assert abilities_problem(ABLE, "runc") == ""


def test_a_missing_runtime_is_named_with_the_remedy() -> None:
    problem = abilities_problem(ABLE, "runsc")
    assert "no runtime runsc" in problem and "daemon.json" in problem


def test_gvisor_on_its_kvm_platform_is_refused() -> None:
    runtimes = {"runsc": {"path": "runsc", "runtimeArgs": ["--platform=kvm"]}}
    assert "kvm" in abilities_problem({**ABLE, "Runtimes": runtimes}, "runsc")


def test_windows_containers_and_a_docker_without_seccomp_are_refused() -> None:
    assert "windows" in abilities_problem({**ABLE, "OSType": "windows"}, "runc")
    assert "seccomp" in abilities_problem({**ABLE, "SecurityOptions": []}, "runc")


def test_an_image_without_python_fails_to_start_and_says_so(docker: Any) -> None:
    with image_of(docker, "palestra-test-empty", []) as name:
        spec = SandboxSpec(backend="docker", image=name)
        with pytest.raises(Failure, match="python3") as raised:
            asyncio.run(DockerSandbox(spec).start())
    assert raised.value.cause == "sandbox:docker"
    assert not containers_of(owner_of(os.getpid()))


def test_an_image_that_declares_volumes_is_refused(docker: Any) -> None:
    with image_of(docker, "palestra-test-volumes", ["VOLUME /data"]) as name:
        spec = SandboxSpec(backend="docker", image=name)
        assert "declares volumes (/data)" in DockerSandbox.capabilities(spec).problem


@contextlib.contextmanager
def image_of(docker: Any, name: str, changes: list[str]) -> Iterator[str]:
    """An image with an empty folder in it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    docker.import_image_from_data(
        archive.getvalue(), repository=name, tag="latest", changes=changes
    )
    try:
        yield name
    finally:
        docker.remove_image(name, force=True)


def test_a_root_file_system_is_imported_once(docker: Any) -> None:
    folder = prepare_rootfs(())
    before = docker.inspect_image(import_rootfs(docker, folder))["Id"]
    assert docker.inspect_image(import_rootfs(docker, folder))["Id"] == before


# What it is started with


def test_its_processes_have_no_privileges() -> None:
    status = output_of("id -u; cat /proc/self/status")
    assert status.startswith("65534\n")
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
        assert line in status
    assert "Seccomp:\t2" in status


def test_its_files_are_bounded_in_size_and_number_and_the_rest_is_read_only() -> None:
    sizes = output_of("df -k --output=target,size /work /tmp /dev/shm; df -i /work /tmp")
    assert [line.split() for line in sizes.splitlines()[1:4]] == [
        ["/work", str(48 << 10)],
        ["/tmp", str(16 << 10)],
        ["/dev/shm", str(16 << 10)],
    ]
    assert sum(int(line.split()[1]) for line in sizes.splitlines()[-2:]) == 8192
    assert "Read-only file system" in output_of("touch /usr/x")


def test_programs_in_the_work_folder_can_be_run() -> None:
    assert output_of("printf '#!/bin/sh\\necho ran' >a && chmod +x a && ./a") == "ran\n"


def test_docker_holds_its_memory_processors_and_processes() -> None:
    async def use(sandbox: DockerSandbox) -> Any:
        return container_of(sandbox)["HostConfig"]

    settings = within(
        SandboxSpec(backend="docker", packages=(), limits=Limits(memory_mb=128, cpus=0.5)), use
    )
    assert settings["Memory"] == settings["MemorySwap"] == (128 + 64 + 16) << 20
    assert settings["CpuQuota"] / settings["CpuPeriod"] == 0.5
    assert settings["PidsLimit"] == 64
    assert settings["NetworkMode"] == "none"
    assert settings["LogConfig"]["Type"] == "none"


def test_what_it_writes_goes_to_no_log() -> None:
    async def use(sandbox: DockerSandbox) -> Any:
        await sandbox.run("head -c 1000000 /dev/zero")
        return container_of(sandbox)["LogPath"]

    assert within(SPEC, use) == ""


# Docker's pieces


def test_output_is_put_together_from_dockers_pieces() -> None:
    text = json.dumps({"a": 1}).encode()
    frame = struct.pack(">II", len(text), 3) + text + b"xyz"
    pieces = b"".join(
        struct.pack(">B3xI", stream, len(data)) + data
        for stream, data in ((1, frame[:5]), (2, b"a warning"), (1, b""), (1, frame[5:]))
    )

    async def receive() -> Any:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.closing(AttachedChannel(ours)) as channel:
            received = asyncio.ensure_future(channel.receive(10))
            for index in range(len(pieces)):
                await asyncio.get_running_loop().sock_sendall(theirs, pieces[index : index + 1])
                await asyncio.sleep(0)
            return await received

    assert asyncio.run(receive()) == ({"a": 1}, b"xyz")


def test_what_is_no_piece_of_dockers_ends_the_connection() -> None:
    async def receive() -> None:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.closing(AttachedChannel(ours)) as channel:
            theirs.send(b"HTTP/1.1 500 oh no")
            await channel.receive(10)

    with pytest.raises(Closed):
        asyncio.run(receive())


def test_large_files_go_both_ways() -> None:
    data = os.urandom(10 << 20)

    async def use(sandbox: Sandbox) -> bytes:
        await sandbox.write("big", data)
        return await sandbox.read("big")

    assert within(SPEC, use) == data


# Who ended it


def ending(spec: SandboxSpec, end: Callable[[DockerSandbox], Any]) -> SandboxDied | Failure:
    """What the next call raises."""

    async def use(sandbox: DockerSandbox) -> SandboxDied | Failure:
        try:
            result = end(sandbox)
            if isinstance(result, Awaitable):
                await result
            await sandbox.run("true")
        except (SandboxDied, Failure) as error:
            return error
        raise AssertionError("it lives")

    found: SandboxDied | Failure = within(spec, use)
    return found


def assert_killed_by_another(error: SandboxDied | Failure) -> None:
    assert isinstance(error, Failure) and error.cause == "sandbox:docker"


@pytest.mark.parametrize("spec", [SPEC, GVISOR], ids=["runc", "runsc"])
def test_a_container_that_another_kills_is_a_failure(spec: SandboxSpec, docker: Any) -> None:
    assert_killed_by_another(ending(spec, lambda sandbox: docker.kill(sandbox._name)))


@pytest.mark.parametrize("spec", [SPEC, GVISOR], ids=["runc", "runsc"])
def test_a_container_that_another_removes_is_a_failure(spec: SandboxSpec, docker: Any) -> None:
    assert_killed_by_another(
        ending(spec, lambda sandbox: docker.remove_container(sandbox._name, force=True))
    )


def test_a_process_that_the_host_kills_is_a_failure() -> None:
    def end(sandbox: DockerSandbox) -> None:
        os.kill(container_of(sandbox)["State"]["Pid"], signal.SIGKILL)

    if os.geteuid() != 0:
        pytest.skip("only root may kill the process of a container")
    assert_killed_by_another(ending(SPEC, end))


def test_code_that_ends_the_first_process_ends_the_sandbox() -> None:
    error = ending(SPEC, lambda sandbox: sandbox.run("kill -ALRM 1"))
    assert isinstance(error, SandboxDied)


def test_code_cannot_limit_the_first_process() -> None:
    # Once it has used that much, the kernel would kill it as if somebody outside had.
    code = "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))"

    async def use(sandbox: Sandbox) -> str:
        return (await sandbox.python(code)).error

    assert "PermissionError" in within(SPEC, use)


def test_many_processes_together_stay_within_the_memory() -> None:
    code = (
        "import os, time\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        block = b'x' * (100 << 20)\n"
        "        time.sleep(60)\n"
        "ended = 0\n"
        "while ended < 6:\n"
        "    ended += os.waitstatus_to_exitcode(os.wait()[1]) == -9\n"
        "ended\n"
    )

    async def use(sandbox: Sandbox) -> str:
        return (await sandbox.python(code)).value

    assert within(SPEC, use) == "6"


def test_a_daemon_that_goes_away_is_a_failure(docker: Any, tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    code = (
        "import asyncio, os\n"
        "from palestra.tools.sandboxes import SandboxSpec\n"
        "from palestra.tools.sandboxes.docker import DockerSandbox\n"
        "from palestra.tools.sandboxes.docker_warden import owner_of\n"
        "from palestra.types import Failure\n"
        "async def main():\n"
        "    sandbox = DockerSandbox(SandboxSpec(backend='docker', packages=()))\n"
        "    await sandbox.start()\n"
        "    print(owner_of(os.getpid()), flush=True)\n"
        "    input()\n"
        "    try:\n"
        "        await sandbox.run('true')\n"
        "    except Failure as failure:\n"
        "        print(failure.cause, failure.detail)\n"
        "asyncio.run(main())\n"
    )
    with relayed(path) as stop:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "DOCKER_HOST": f"unix://{path}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            owner = process.stdout.readline().strip()
            stop()
            said, _ = process.communicate("\n", timeout=60)
    assert said.startswith("sandbox:docker the Docker daemon does not answer")
    assert len(containers_of(owner)) == 1  # nobody could remove it
    sweep(address())
    assert not containers_of(owner)


@contextlib.contextmanager
def relayed(path: Path) -> Iterator[Callable[[], None]]:
    """A socket that leads to the daemon, until the function that this gives is called."""
    target = address().removeprefix("unix://")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    open_sockets = [listener]

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = listener.accept()
                theirs = socket.socket(socket.AF_UNIX)
                theirs.connect(target)
                open_sockets.extend((ours, theirs))
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def stop() -> None:
        path.unlink(missing_ok=True)
        for one in open_sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        open_sockets.clear()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield stop
    finally:
        stop()


# Nothing is left


def test_a_killed_sandbox_leaves_no_container_and_no_process(docker: Any) -> None:
    async def use(sandbox: DockerSandbox) -> tuple[str, int]:
        await sandbox.run("trap '' TERM; (setsid sh -c 'sleep 1000' &) ; sleep 0.1")
        details = container_of(sandbox)
        return details["Id"], details["State"]["Pid"]

    _, pid = within(SPEC, use)
    assert not Path(f"/proc/{pid}").exists()
    assert not containers_of(owner_of(os.getpid()))


def test_a_start_that_is_cancelled_leaves_nothing(docker: Any) -> None:
    async def cancel(after_s: float) -> None:
        sandbox = DockerSandbox(SPEC)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_s):
                await sandbox.start()
        await sandbox.kill()

    for after_s in (0.01, 0.05, 0.1, 0.2, 0.4):
        asyncio.run(cancel(after_s))
    assert wait_until(lambda: not containers_of(owner_of(os.getpid())))


def test_a_killed_owner_leaves_no_container(docker: Any) -> None:
    owner, process, _ = start_owner()
    assert len(containers_of(owner)) == 2
    process.kill()
    process.wait()
    assert wait_until(lambda: not containers_of(owner))


def test_what_a_killed_owner_and_its_killed_warden_leave_is_swept(docker: Any) -> None:
    owner, process, warden = start_owner()
    os.kill(warden, signal.SIGKILL)
    process.kill()
    process.wait()
    ids = containers_of(owner)
    # The first processes end by themselves, because their input has closed.
    assert wait_until(lambda: not any(docker.inspect_container(i)["State"]["Running"] for i in ids))
    assert containers_of(owner) == ids
    sweep(address())
    assert not containers_of(owner)


def test_a_sweep_leaves_the_containers_of_the_living(docker: Any) -> None:
    owner, process, _ = start_owner()
    try:
        sweep(address())
        assert len(containers_of(owner)) == 2
    finally:
        process.kill()
        process.wait()
        remove_containers_of(owner, address())


def start_owner() -> tuple[str, subprocess.Popen[str], int]:
    """A process with two sandboxes, one of which is busy: its label, itself, its warden's pid."""
    code = (
        "import asyncio, os\n"
        "from palestra.tools.sandboxes import SandboxSpec\n"
        "from palestra.tools.sandboxes.docker import DockerSandbox\n"
        "from palestra.tools.sandboxes.docker_daemon import daemon\n"
        "async def main():\n"
        "    spec = SandboxSpec(backend='docker', packages=())\n"
        "    sandboxes = [DockerSandbox(spec), DockerSandbox(spec)]\n"
        "    for sandbox in sandboxes:\n"
        "        await sandbox.start()\n"
        "    print(daemon().owner, daemon()._warden_pid, flush=True)\n"
        "    await sandboxes[0].run('yes', timeout_s=1000)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    owner, warden = process.stdout.readline().split()
    process.stdout.close()
    return owner, process, int(warden)


# gVisor


def test_gvisor_serves_a_sandbox_with_its_own_kernel() -> None:
    require(GVISOR)
    assert Guarantee.OWN_KERNEL in DockerSandbox.capabilities(GVISOR).guarantees
    assert "Starting gVisor" in output_of("dmesg", GVISOR) or "4.4.0" in output_of(
        "uname -r", GVISOR
    )


def test_gvisor_keeps_a_session_and_bounds_its_files() -> None:
    async def use(sandbox: Sandbox) -> tuple[str, str]:
        await sandbox.python("x = 20")
        full = await sandbox.run("head -c 100000000 /dev/zero >full")
        return (await sandbox.python("x + 1")).value, full.stderr

    value, error = within(GVISOR, use)
    assert value == "21"
    assert "No space left on device" in error or "File too large" in error


def test_a_fork_bomb_in_gvisor_ends_no_more_than_its_sandbox() -> None:
    async def use(sandbox: Sandbox) -> None:
        with contextlib.suppress(SandboxDied):
            await sandbox.run("bomb() { bomb | bomb & }; bomb; sleep 3", timeout_s=5)

    within(GVISOR, use)
    assert output_of("echo fine", GVISOR) == "fine\n"
