"""What is special to `landlock`: its keepers, its watchdog, its second filter, its network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from palestra.tools.sandboxes import Guarantee, Limits, Sandbox, SandboxDied, SandboxSpec
from palestra.tools.sandboxes.kernel import load_filter
from palestra.tools.sandboxes.landlock import LandlockSandbox
from palestra.tools.sandboxes.landlock_filter import narrow_program
from palestra.tools.sandboxes.landlock_launcher import close_launchers
from palestra.types import Failure

# Leaves a process in a session of its own; its value is the process id.
SLEEPER = "import subprocess; subprocess.Popen(['sleep', '77'], start_new_session=True).pid"


class Watched(LandlockSandbox):
    """As on a host whose control groups cannot be used."""

    @staticmethod
    def _hierarchy() -> None:
        return None


@pytest.fixture
def landlock(available: Callable[[str], SandboxSpec]) -> SandboxSpec:
    return available("landlock")


@pytest.fixture
def watched(landlock: SandboxSpec) -> Iterator[Callable[[Limits], Watched]]:
    """Starts sandboxes without control groups, which are killed after the test."""
    started: list[Watched] = []

    def start(limits: Limits) -> Watched:
        sandbox = Watched(SandboxSpec(backend="landlock", packages=(), limits=limits))
        started.append(sandbox)
        sandbox.sync.start()
        return sandbox

    yield start
    for sandbox in started:
        sandbox.sync.kill()


def keeper_of(sandbox: Sandbox) -> int:
    """The process above the guest."""
    assert isinstance(sandbox, LandlockSandbox)
    return int(Path(f"/proc/{sandbox.guest_pid}/stat").read_text().rpartition(") ")[2].split()[1])


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@contextlib.contextmanager
def greeting_server() -> Iterator[int]:
    """A server on loopback that says hello."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"hello")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_an_image_is_a_problem_that_names_the_remedy(landlock: SandboxSpec) -> None:
    offered = LandlockSandbox.capabilities(SandboxSpec(backend="landlock", image="alpine.tar"))
    assert "alpine.tar" in offered.problem and "docker" in offered.problem


def test_only_one_of_both_network_promises_is_made(landlock: SandboxSpec) -> None:
    listed = SandboxSpec(backend="landlock", limits=Limits(network=("127.0.0.1:80",)))
    off = LandlockSandbox.capabilities(landlock).guarantees
    on = LandlockSandbox.capabilities(listed).guarantees
    assert Guarantee.NETWORK_OFF in off and Guarantee.NETWORK_ALLOW_LIST not in off
    assert Guarantee.NETWORK_OFF not in on and Guarantee.NETWORK_ALLOW_LIST in on


def test_only_the_listed_port_is_reached(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    with greeting_server() as listed, greeting_server() as other:
        sandbox = start(landlock, network=(f"127.0.0.1:{listed}",))
        code = """
import socket
def ask(port, flags=0):
    try:
        if flags:
            connection = socket.socket()
            connection.sendto(b"x", flags, ("127.0.0.1", port))
        else:
            connection = socket.create_connection(("127.0.0.1", port), 5)
        return connection.recv(9).decode()
    except OSError as error:
        return type(error).__name__
"""
        assert sandbox.sync.python(code + f"ask({listed})").value == "'hello'"
        assert sandbox.sync.python(f"ask({other})").value != "'hello'"
        assert sandbox.sync.python(f"ask({other}, socket.MSG_FASTOPEN)").value != "'hello'"


def test_a_listed_network_has_no_datagrams_and_no_unix_sockets(
    landlock: SandboxSpec, start: Callable[..., Sandbox], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        port = receiver.getsockname()[1]
        sandbox = start(landlock, network=(f"127.0.0.1:{port}",))
        code = f"""
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port}))"""
        assert "Error" in sandbox.sync.python(code).error
        with pytest.raises(BlockingIOError):
            receiver.recv(9)
        assert "Error" in sandbox.sync.python("socket.socket(socket.AF_UNIX)").error


def test_without_a_network_there_are_no_sockets_but_pairs(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    sandbox = start(landlock)
    assert "OSError" in sandbox.sync.python("import socket; socket.socket()").error
    assert "OSError" in sandbox.sync.python("socket.socket(socket.AF_UNIX)").error
    datagrams = "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"
    assert "PermissionError" in sandbox.sync.python(datagrams).error
    code = "a, b = socket.socketpair(); a.send(b'x'); b.recv(1)"
    assert sandbox.sync.python(code).value == "b'x'"


def test_other_processes_of_the_user_are_out_of_reach(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    sandbox = start(landlock)
    keeper = keeper_of(sandbox)
    for code in (
        f"import os, resource; resource.prlimit({keeper}, resource.RLIMIT_CPU, (1, 1))",
        f"os.setpriority(os.PRIO_PROCESS, {keeper}, 19)",
        "os.setpriority(os.PRIO_USER, 0, 19)",
        f"os.sched_setaffinity({keeper}, {{0}})",
        f"os.kill({keeper}, 15)",
        f"os.pidfd_open({keeper})",
        f"open('/proc/{keeper}/environ')",
    ):
        assert "Error" in sandbox.sync.python(code).error, code
    sibling = start(landlock)
    with pytest.raises(SandboxDied):
        sandbox.sync.python("os.kill(-1, 15)")
    assert sibling.sync.python("1").value == "1"


def test_paths_of_the_users_files_cannot_change_them_where_the_user_is_shared(
    landlock: SandboxSpec, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    file.chmod(0o600)
    os.utime(file, (1000, 1000))
    pid = os.fork()
    if pid == 0:
        try:
            load_filter(narrow_program(network=False, own_user=False))
            file.chmod(0o666)
            os.utime(file, (2000, 2000))
            os.chown(file, 12345, 12345)
            with contextlib.suppress(OSError):
                os.setxattr(file, "user.x", b"y")
                os._exit(1)
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    seen = file.stat()
    assert (seen.st_mode & 0o777, seen.st_mtime, seen.st_uid) == (0o600, 1000, os.getuid())
    assert os.listxattr(file) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives each sandbox a user of its own")
def test_roots_sandboxes_have_users_of_their_own(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    code = "import os; (os.getresuid(), os.getresgid(), os.getgroups())"
    seen = [start(landlock).sync.python(code).value for _ in range(2)]
    assert seen[0] != seen[1]
    assert "(0, " not in "".join(seen) and ", 0" not in "".join(seen)


@pytest.mark.parametrize(
    "code",
    [
        # Each process stays below the limit of one; what they share is written to, or is shared.
        """
import os, time
for _ in range(8):
    if os.fork() == 0:
        kept = bytearray(os.urandom(1 << 20)) * 40
        time.sleep(20)
time.sleep(20)""",
        """
import mmap, os, time
kept = mmap.mmap(-1, 400 << 20)
for start in range(0, len(kept), 4096):
    kept[start] = 1
time.sleep(20)""",
    ],
    ids=["many processes", "shared memory"],
)
def test_the_watchdog_ends_what_takes_too_much_memory(
    watched: Callable[[Limits], Watched], code: str
) -> None:
    sandbox = watched(Limits(memory_mb=128))
    with pytest.raises(SandboxDied, match="memory"):
        sandbox.sync.python(code, timeout_s=25)


def test_the_watchdog_lets_pass_what_processes_share(
    watched: Callable[[Limits], Watched],
) -> None:
    sandbox = watched(Limits(memory_mb=128))
    code = """
import os, time
kept = bytearray(60 << 20)
pids = [os.fork() for _ in range(3)]
time.sleep(0.3)
0 in pids and os._exit(0)
len(kept) >> 20"""
    assert sandbox.sync.python(code).value == "60"


def test_the_watchdog_ends_a_fork_bomb(watched: Callable[[Limits], Watched]) -> None:
    sandbox = watched(Limits(processes=16))
    before = len(os.listdir("/proc"))
    code = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)"""
    result = None
    with contextlib.suppress(SandboxDied):
        result = sandbox.sync.python(code, timeout_s=2)
    assert result is None or result.ended
    sandbox.sync.kill()
    assert len(os.listdir("/proc")) < before + 20


def test_orphans_that_have_ended_are_no_processes(watched: Callable[[Limits], Watched]) -> None:
    sandbox = watched(Limits(processes=16))
    code = """
import os
for _ in range(200):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
"done\""""
    assert sandbox.sync.python(code).value == "'done'"


def test_files_that_grow_past_the_limit_end_the_sandbox(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    sandbox = start(landlock, disk_mb=4)
    code = """
import time
for number in range(10):
    open(str(number), "wb").write(bytes(1 << 20))
time.sleep(10)"""
    with pytest.raises(SandboxDied, match="disk"):
        sandbox.sync.python(code, timeout_s=15)


def test_who_killed_it_decides_the_outcome(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    own = start(landlock)
    with pytest.raises(SandboxDied):
        own.sync.python("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    other = start(landlock)
    assert isinstance(other, LandlockSandbox)
    child = int(other.sync.python(SLEEPER).value)
    guest, keeper = other.guest_pid, keeper_of(other)
    folder = Path(other.home).parent
    assert all(map(is_alive, (keeper, guest, child)))
    os.kill(keeper, signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_alive, (keeper, guest, child))))
    with pytest.raises(Failure, match="keeper was killed"):
        other.sync.python("1")
    assert not folder.exists()


def test_the_tree_and_the_folder_go_with_the_sandbox(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    sandbox = start(landlock)
    assert isinstance(sandbox, LandlockSandbox)
    code = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("pid", "w").write(str(os.getpid()))
        time.sleep(77)
    os._exit(0)
while not os.path.exists("pid") or not open("pid").read():
    time.sleep(0.01)
int(open("pid").read())"""
    orphan = int(sandbox.sync.python(code).value)
    folder = Path(sandbox.home).parent
    assert is_alive(orphan) and folder.exists()
    sandbox.sync.kill()
    assert not is_alive(orphan) and not folder.exists()


def test_nothing_outlives_a_killed_owner(landlock: SandboxSpec) -> None:
    code = f"""
import time
from palestra.tools.sandboxes import SandboxSpec
from palestra.tools.sandboxes.landlock import LandlockSandbox
sandbox = LandlockSandbox(SandboxSpec(backend="landlock", packages=()))
sandbox.sync.start()
child = sandbox.sync.python({SLEEPER!r}).value
print(sandbox.guest_pid, child, sandbox.home, flush=True)
time.sleep(77)"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        guest, child, home = owner.stdout.readline().split()
        assert is_alive(int(guest)) and is_alive(int(child))
        owner.kill()
    assert wait_until(lambda: not is_alive(int(guest)) and not is_alive(int(child)))
    assert wait_until(lambda: not Path(home).parent.exists())


def test_fifty_at_once_and_nothing_left(landlock: SandboxSpec) -> None:
    async def use(sandbox: LandlockSandbox) -> str:
        await sandbox.start()
        return (await sandbox.python("6 * 7")).value

    async def use_all() -> list[str]:
        sandboxes = [LandlockSandbox(landlock) for _ in range(50)]
        try:
            return await asyncio.gather(*map(use, sandboxes))
        finally:
            await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))

    asyncio.run(use_all())  # the first time starts the launcher and the threads of the loop
    folders = set(Path(tempfile.gettempdir()).glob("palestra-landlock-*"))
    fds = len(os.listdir("/proc/self/fd"))
    assert asyncio.run(use_all()) == ["42"] * 50
    assert len(os.listdir("/proc/self/fd")) <= fds
    assert set(Path(tempfile.gettempdir()).glob("palestra-landlock-*")) <= folders


def test_sandboxes_end_with_their_launcher(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    sandbox = start(landlock)
    assert isinstance(sandbox, LandlockSandbox)
    close_launchers()
    assert not is_alive(sandbox.guest_pid) and not Path(sandbox.home).exists()
    with pytest.raises(Failure, match="ended with its launcher"):
        sandbox.sync.python("1")


def test_another_launcher_takes_over_from_a_killed_one(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    close_launchers()
    first = start(landlock)
    launcher = int(
        Path(f"/proc/{keeper_of(first)}/stat").read_text().rpartition(") ")[2].split()[1]
    )
    os.kill(launcher, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(launcher))
    assert start(landlock).sync.python("1").value == "1"
    assert first.sync.python("2").value == "2"


def test_an_empty_environment_still_finds_the_c_library(
    landlock: SandboxSpec, start: Callable[..., Sandbox]
) -> None:
    assert start(landlock).sync.run("env -i /bin/sh -c 'echo hello'").stdout == "hello\n"
