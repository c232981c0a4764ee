"""Server processes: started, found dead, started again, and never left behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from palestra.rollout.engine_errors import ServerNotStarted
from palestra.rollout.server_process import ServerProcess, find_cause

# A server with offspring: a child, and a daemon in a session of its own.
SERVER = """
import http.server, signal, subprocess, sys
mark, port, stubborn = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "stubborn"
if stubborn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
subprocess.Popen(["sleep", mark])
subprocess.Popen(["setsid", "--fork", "sleep", mark])
try:
    http.server.ThreadingHTTPServer(
        ("127.0.0.1", port), http.server.SimpleHTTPRequestHandler
    ).serve_forever()
except KeyboardInterrupt:
    print("asked to stop")
"""


class Tree:
    """A server whose offspring can be told from all other processes."""

    def __init__(self, folder: Path, *, stubborn: bool = False) -> None:
        self.mark = f"{900_000 + os.getpid() % 90_000}.{time.monotonic_ns() % 1_000_000}"
        self.server = ServerProcess(
            lambda port: [
                *(sys.executable, "-c", SERVER, self.mark, str(port)),
                "stubborn" if stubborn else "polite",
            ],
            name="the server",
            log_path=folder / "server.log",
            ready_path="/",
            start_timeout_s=30,
        )

    def offspring(self) -> int:
        """How many of its `sleep`s run."""
        found = 0
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                found += process.read_bytes() == f"sleep\0{self.mark}\0".encode()
        return found


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_stopping_is_asked_for_and_leaves_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path)

    async def run() -> None:
        await tree.server.start()
        assert tree.server.alive
        await wait_until(lambda: tree.offspring() == 2)
        await tree.server.stop()
        await tree.server.stop()

    asyncio.run(run())
    assert not tree.server.alive
    assert tree.offspring() == 0
    assert "asked to stop" in (tmp_path / "server.log").read_text()


def test_a_server_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    tree = Tree(tmp_path, stubborn=True)

    async def run() -> str:
        await tree.server.start()
        await wait_until(lambda: tree.offspring() == 2)
        await tree.server.stop(grace_s=0.3)
        return await tree.server.wait()

    asyncio.run(run())
    assert tree.offspring() == 0


def test_a_killed_server_is_found_dead_with_all_it_started_and_can_be_started_again(
    tmp_path: Path,
) -> None:
    tree = Tree(tmp_path)

    async def run() -> None:
        await tree.server.start()
        address, pid = tree.server.base_url, tree.server.pid
        await wait_until(lambda: tree.offspring() == 2)
        os.kill(pid, signal.SIGKILL)
        assert await tree.server.wait() == "signal SIGKILL"
        assert not tree.server.alive
        assert tree.offspring() == 0
        await tree.server.restart()
        assert tree.server.base_url == address
        assert tree.server.pid != pid
        await tree.server.stop()

    asyncio.run(run())


def test_a_server_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    script = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_server_process import Tree
async def main():
    tree = Tree(Path(sys.argv[2]))
    tree.mark = sys.argv[3]
    await tree.server.start()
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    here = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", script, here, str(tmp_path), tree.mark],
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        asyncio.run(wait_until(lambda: tree.offspring() == 2))
        parent.kill()
    asyncio.run(wait_until(lambda: tree.offspring() == 0))


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("raise ValueError('no such model')", r"exit status 1: ValueError: no such model"),
        ("import os; os.abort()", "signal SIGABRT"),
        ("import sys; sys.exit('bad flag')", "exit status 1: bad flag"),
    ],
)
def test_a_server_that_does_not_start_says_why(tmp_path: Path, program: str, cause: str) -> None:
    server = ServerProcess(
        lambda port: [sys.executable, "-c", program],
        name="the server",
        log_path=tmp_path / "server.log",
    )
    with pytest.raises(ServerNotStarted, match=f"the server did not start \\({cause}") as raised:
        asyncio.run(server.start())
    assert "\n" not in str(raised.value)


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    server = ServerProcess(
        lambda port: ["/nowhere/python"], name="the server", log_path=tmp_path / "server.log"
    )
    with pytest.raises(ServerNotStarted, match=r"cannot run /nowhere/python: No such file"):
        asyncio.run(server.start())


def test_a_server_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    server = ServerProcess(
        lambda port: [sys.executable, "-c", "print('loading', flush=True); input() or 1"],
        name="the server",
        log_path=tmp_path / "server.log",
        start_timeout_s=0.5,
    )
    hung = ServerProcess(
        lambda port: ["sleep", "30"],
        name="the server",
        log_path=tmp_path / "hung.log",
        start_timeout_s=0.5,
    )
    with pytest.raises(ServerNotStarted):
        asyncio.run(server.start())
    with pytest.raises(ServerNotStarted, match=r"not ready after 0\.5 s"):
        asyncio.run(hung.start())
    assert not hung.alive


def test_the_cause_is_the_first_trouble_not_what_followed_from_it() -> None:
    lines = [
        "(EngineCore pid=7) ERROR ValueError: the head size 16 is not supported",
        "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.",
        "nanobind: leaked 3 instances",
    ]
    assert find_cause(lines) == "ValueError: the head size 16 is not supported"
    assert find_cause(["loading", "", "done  "]) == "done"
    assert find_cause([]) == "its log is empty"
    pydantic = "  Value error, User-specified max_model_len (4096) is too long [type=value_error]"
    assert find_cause([pydantic]).startswith("Value error, User-specified")
