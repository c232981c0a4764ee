"""What the attacks aim at on the host, and the record of which attacks have run on which backend.

table.toml has a row for each attack of the threat model: what a backend must promise for it to be
tried there, and the backends on which it must have run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import secrets
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tomllib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from palestra.tools.sandboxes import Guarantee, PythonResult, Sandbox, SandboxSpec
from palestra.tools.sandboxes.choose import backend_class
from palestra.tools.sandboxes.system_calls import NUMBERS

TABLE = tomllib.loads(Path(__file__).with_name("table.toml").read_text())
ROWS: dict[int, dict[str, Any]] = {row["number"]: row for row in TABLE["rows"]}
# Never "unsafe": it would succeed.
BACKENDS = ("namespace", "landlock", "docker", "docker-runsc")
_executed: set[tuple[str, int]] = set()
_skipped: set[tuple[str, int]] = set()
_deselected: list[str] = []
_items: list[pytest.Item] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(number): the attack of that number in table.toml")


def pytest_deselected(items: list[pytest.Item]) -> None:
    _deselected.extend(item.nodeid for item in items if item.path.parent == Path(__file__).parent)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The comparison with the table comes when all else is done."""
    _items.extend(item for item in items if item.path.parent == Path(__file__).parent)
    items.sort(key=lambda item: item.path == Path(__file__).with_name("test_table.py"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    mark = item.get_closest_marker("row")
    if mark is not None:
        parameters = item.callspec.params  # type: ignore[attr-defined]
        pair = (parameters["spec"], mark.args[0])
        if report.skipped:
            _skipped.add(pair)
        elif report.when == "call":
            _executed.add(pair)
    return report


@pytest.fixture
def executed() -> set[tuple[str, int]]:
    """(backend, row) of the attacks that have run so far, with all of their tests."""
    return _executed - _skipped


@pytest.fixture
def left_out() -> list[str]:
    """The tests of this folder that were not to be run this time."""
    functions = {
        f"{path.name}::{line.removeprefix('def ').partition('(')[0]}"
        for path in Path(__file__).parent.glob("test_*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def test_")
    }
    collected = {f"{item.path.name}::{item.name.partition('[')[0]}" for item in _items}
    return _deselected + sorted(functions - collected)


@pytest.fixture
def rows() -> dict[int, dict[str, Any]]:
    """table.toml by number."""
    return ROWS


@pytest.fixture(params=BACKENDS)
def spec(request: pytest.FixtureRequest, available: Callable[[str], SandboxSpec]) -> SandboxSpec:
    """What to attack, if it promises what the row needs."""
    row = ROWS[request.node.get_closest_marker("row").args[0]]
    spec = available(request.param)
    guarantees = backend_class(spec.backend).capabilities(spec).guarantees
    if missing := set(map(Guarantee, row["requires"])) - guarantees.keys():
        pytest.skip(f"{request.param} does not promise {', '.join(sorted(missing))}")
    if exempt := set(map(Guarantee, row.get("unless", []))) & guarantees.keys():
        pytest.skip(f"{request.param} needs not hold it: it has {', '.join(sorted(exempt))}")
    return spec


class Host:
    """Bait on the host: everything here holds the secret, or hears who comes near."""

    def __init__(self, folder: Path) -> None:
        self.secret = "secret-" + secrets.token_hex(12)
        self.token = "victim-" + secrets.token_hex(6)
        self.folder = folder
        self.heard: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._open: list[socket.socket] = []
        self._plant_files()
        self._buffer = ctypes.create_string_buffer(self.secret.encode())
        self.victim = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(3600)", self.token],
            env={"VICTIM": self.secret, **os.environ},
        )
        self._listen()
        threading.Thread(target=self._hear, daemon=True).start()

    def _plant_files(self) -> None:
        self.file = self.folder / "secret.txt"
        self.file.write_text(self.secret)
        self.file.chmod(0o644)
        self.shm = Path("/dev/shm") / self.token
        self.shm.write_text(self.secret)
        self._inheritable = os.open(self.file, os.O_RDONLY)
        os.set_inheritable(self._inheritable, True)

    def _listen(self) -> None:
        self.tcp_port = self._add("tcp", socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0))[1]
        self.udp_port = self._add("udp", socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0))[1]
        self.abstract = "\0" + self.token
        self._add("abstract", socket.AF_UNIX, socket.SOCK_STREAM, self.abstract)
        self._add("datagram", socket.AF_UNIX, socket.SOCK_DGRAM, self.abstract + "-d")
        self.path = str(self.folder / "socket")
        self._add("path", socket.AF_UNIX, socket.SOCK_STREAM, self.path)
        os.chmod(self.path, 0o777)
        self.tcp6_port = self.vsock_port = 0
        with contextlib.suppress(OSError):
            self.tcp6_port = self._add("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))[1]
        with contextlib.suppress(OSError):
            any_address = (socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY)
            self.vsock_port = self._add("vsock", socket.AF_VSOCK, socket.SOCK_STREAM, any_address)[
                1
            ]

    def _add(self, name: str, family: int, kind: int, address: Any) -> Any:
        listener = socket.socket(family, kind)
        self._open.append(listener)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        self._selector.register(listener, selectors.EVENT_READ, name)
        return listener.getsockname()

    def _hear(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                for key, _ in self._selector.select():
                    listener: Any = key.fileobj
                    self.heard.append(key.data)
                    if listener.type == socket.SOCK_STREAM:
                        connection, _ = listener.accept()
                        connection.sendall(self.secret.encode())
                        connection.close()
                    else:
                        listener.recv(1 << 16)

    def facts(self) -> dict[str, Any]:
        """What the attacker is told, to make it as easy as can be."""
        return {
            "tcp_port": self.tcp_port,
            "tcp6_port": self.tcp6_port,
            "udp_port": self.udp_port,
            "vsock_port": self.vsock_port,
            "abstract": self.abstract,
            "path": self.path,
            "addresses": ["127.0.0.1", *_addresses()],
            "files": [str(self.file), str(self.shm), str(Path(__file__).resolve())],
            "pid": os.getpid(),
            "address": ctypes.addressof(self._buffer),
            "victim": self.victim.pid,
            "docker": os.environ.get("DOCKER_HOST", "").removeprefix("unix://"),
            "numbers": NUMBERS[platform.machine()],
        }

    def close(self) -> None:
        """Take all of it away."""
        self.victim.kill()
        self.victim.wait()
        for listener in self._open:
            self._selector.unregister(listener)
            listener.close()
        os.close(self._inheritable)
        self.shm.unlink()


def _addresses() -> list[str]:
    """Of this machine on its network, if it has one; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


@pytest.fixture(scope="session", autouse=True)
def host() -> Iterator[Host]:
    """There before any sandbox is, so that whatever is inherited is inherited."""
    folder = Path(tempfile.mkdtemp(prefix="palestra-attacks-", dir="/tmp"))
    folder.chmod(0o755)
    host = Host(folder)
    yield host
    host.close()
    shutil.rmtree(folder)


PRELUDE = '''
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
REFUSED = {-errno.EPERM, -errno.EACCES, -errno.ENOSYS}
breaches = []

def call(name, *arguments):
    """A system call: its result, or the negative number of its error."""
    ctypes.set_errno(0)
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(host["numbers"][name]), *longs)
    return result if result >= 0 else -ctypes.get_errno()

def attempt(name, function):
    """A breach if it neither raises nor gives something false."""
    try:
        result = function()
    except OSError:
        return
    if result:
        breaches.append((name, result))
'''


@pytest.fixture
def attack(host: Host) -> Callable[..., PythonResult]:
    """Runs a payload in the session of a sandbox, where `host` tells about the bait."""

    def run(sandbox: Sandbox, code: str, **options: Any) -> PythonResult:
        prelude = f"host = {host.facts()!r}\n{PRELUDE}\n"
        result = sandbox.sync.python(prelude + textwrap.dedent(code), **options)
        assert host.secret not in f"{result.output}{result.value}{result.error}"
        return result

    return run


@pytest.fixture
def processes_with() -> Callable[[str], list[int]]:
    """The host's processes with such a text among their arguments."""

    def find(text: str) -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if text.encode() in (folder / "cmdline").read_bytes():
                        found.append(int(folder.name))
        return found

    return find


@pytest.fixture
def memory_growth_mb() -> Callable[[], Any]:
    """A context that tells by how much this process's resident memory has grown at most."""

    @contextlib.contextmanager
    def watch() -> Iterator[list[float]]:
        page_mb = os.sysconf("SC_PAGE_SIZE") / (1 << 20)

        def resident_mb() -> float:
            return int(Path("/proc/self/statm").read_text().split()[1]) * page_mb

        start_mb, growth, done = resident_mb(), [0.0], threading.Event()

        def sample() -> None:
            while not done.wait(0.01):
                growth[0] = max(growth[0], resident_mb() - start_mb)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield growth
        finally:
            done.set()
            thread.join()

    return watch


@pytest.fixture
def soon() -> Callable[[Callable[[], bool]], bool]:
    """Whether something comes true within five seconds."""

    def wait(condition: Callable[[], bool]) -> bool:
        end = time.monotonic() + 5
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    return wait
