"""MCP servers that really run, as processes and over HTTP, and end in every way."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from palestra.tools import Tool, ToolSource, mcp_server, run_call
from palestra.types import Failure, Task, ToolResult

pytest.importorskip("mcp")

TASK = Task(id="t", messages=())
SERVER = str(Path(__file__).with_name("mcp_demo_server.py"))
COMMAND = [sys.executable, SERVER]


async def call(tools: Sequence[Tool], name: str, **arguments: Any) -> ToolResult:
    request = {"id": "c", "function": {"name": name, "arguments": arguments}}
    return await run_call(request, {tool.name: tool for tool in tools}, {})


async def pid_of(tools: Sequence[Tool]) -> int:
    return int((await call(tools, "process")).content)


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as status:
        return status.read().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def http_server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on a free port of the loopback, with its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND, str(port)], stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    try:
        assert wait_until(answers)
        yield f"http://127.0.0.1:{port}/mcp", process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What `mcp_server` needs to reach one."""
    if request.param == "stdio":
        yield {"command": COMMAND}
    else:
        with http_server() as (url, _):
            yield {"url": url}


def test_every_tool_of_a_server_becomes_a_tool(server: dict[str, Any]) -> None:
    async def episode() -> list[ToolResult]:
        async with mcp_server(**server, name="demo").open(TASK) as tools:
            by_name = {tool.name: tool for tool in tools}
            assert {"add", "count", "refuse", "paint", "dotted_name"} <= by_name.keys()
            assert by_name["add"].description == "Add two integers."
            properties = by_name["add"].parameters["properties"]
            assert {name: value["type"] for name, value in properties.items()} == {
                "a": "integer",
                "b": "integer",
            }
            return [
                await call(tools, "add", a=2, b=3),
                await call(tools, "refuse"),
                await call(tools, "paint"),
                await call(tools, "dotted_name"),
                await call(tools, "add", a="x"),
                await call(tools, "add", a=1, b=2),
            ]

    added, refused, painted, dotted, wrong, again = asyncio.run(episode())
    assert (added.error, added.content) == (None, "5")
    assert refused.error == "tool_error"
    assert "no tea left" in refused.content
    assert painted.content == "a dot\n[image, image/png, about 102 bytes, not shown]"
    assert dotted.content == "dotted"
    assert wrong.error == "bad_arguments"
    assert "'x' is not of type 'integer'" in wrong.content
    assert "'b' is a required property" in wrong.content
    assert again.content == "3"


def test_a_slow_call_times_out_and_the_server_goes_on(server: dict[str, Any]) -> None:
    async def episode() -> tuple[ToolResult, ToolResult]:
        async with mcp_server(**server, timeout_s=1.0).open(TASK) as tools:
            late = await call(tools, "nap", seconds=3)
            await asyncio.sleep(3)
            return late, await call(tools, "add", a=1, b=2)

    late, after = asyncio.run(episode())
    assert (late.error, late.content) == ("timeout", "nap timed out after 1 s")
    assert after.content == "3"


def test_a_server_of_its_own_lives_as_long_as_the_episode() -> None:
    source = mcp_server(COMMAND)

    async def episode() -> tuple[int, str]:
        async with source.open(TASK) as tools:
            pid = await pid_of(tools)
            assert is_running(pid)
            return pid, (await call(tools, "count")).content

    async def two() -> list[tuple[int, str]]:
        return list(await asyncio.gather(episode(), episode()))

    (one, first), (other, second) = asyncio.run(two())
    assert one != other
    assert (first, second) == ("1", "1")
    assert not is_running(one)
    assert not is_running(other)


def test_a_shared_server_serves_every_episode_and_event_loop() -> None:
    source = mcp_server(COMMAND, shared=True)

    async def episode() -> tuple[int, str]:
        async with source.open(TASK) as tools:
            return await pid_of(tools), (await call(tools, "count")).content

    async def two() -> list[tuple[int, str]]:
        return list(await asyncio.gather(episode(), episode()))

    played = [*asyncio.run(two()), asyncio.run(episode())]
    assert len({pid for pid, _ in played}) == 1
    assert sorted(count for _, count in played) == ["1", "2", "3"]
    asyncio.run(source.aclose())
    assert not is_running(played[0][0])


def test_a_server_that_dies_fails_the_episode_and_a_shared_one_is_replaced() -> None:
    source = mcp_server(COMMAND, name="demo", shared=True)

    async def dying() -> None:
        async with source.open(TASK) as tools:
            with pytest.raises(Failure, match=r"tool:mcp:demo: the server is gone") as failure:
                await call(tools, "die")
            assert "I am dying" in failure.value.detail
            with pytest.raises(Failure, match="tool:mcp:demo"):
                await call(tools, "add", a=1, b=2)

    async def next_episode() -> str:
        async with source.open(TASK) as tools:
            return (await call(tools, "add", a=1, b=2)).content

    asyncio.run(dying())
    assert asyncio.run(next_episode()) == "3"
    asyncio.run(source.aclose())


def test_an_http_server_that_goes_away_fails_the_episode() -> None:
    async def episode() -> None:
        with http_server() as (url, process):
            async with mcp_server(url=url, name="web").open(TASK) as tools:
                assert (await call(tools, "add", a=1, b=2)).content == "3"
                process.kill()
                process.wait()
                with pytest.raises(Failure, match="tool:mcp:web: the server is gone"):
                    await call(tools, "add", a=1, b=2)

    asyncio.run(episode())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"command": ["false"]}, "tool:mcp:false: no connection"),
        ({"command": ["sleep", "60"]}, "tool:mcp:sleep: the server was not ready in 1 s"),
        (
            {"command": [sys.executable, "-c", "import sys; sys.exit('no database')"]},
            "its last words: no database",
        ),
        ({"url": "http://127.0.0.1:9/mcp"}, "tool:mcp:127_0_0_1: no connection"),
        ({"command": COMMAND, "tools": ["nope"]}, "the server has no tool nope: it has add"),
    ],
)
def test_a_server_that_cannot_serve_is_a_failure(options: dict[str, Any], complaint: str) -> None:
    start_s = 60.0 if options.get("tools") else 1.0

    async def episode() -> None:
        async with mcp_server(**options, start_timeout_s=start_s).open(TASK):
            pass

    with pytest.raises(Failure) as failure:
        asyncio.run(episode())
    assert complaint in str(failure.value)


@pytest.mark.parametrize("after_s", [0.05, 0.4, 5.0])
def test_a_cancelled_episode_leaves_no_process(tmp_path: Path, after_s: float) -> None:
    """Cancelled while the server starts, and while it is used."""
    marker = tmp_path / "pid"
    script = f"echo $$ > {marker}; exec {sys.executable} {SERVER}"
    source = mcp_server(["sh", "-c", script])

    async def episode() -> None:
        async with source.open(TASK) as tools:
            await call(tools, "nap", seconds=0.1)
            await asyncio.sleep(60)

    async def cancel() -> None:
        task = asyncio.create_task(episode())
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    time.sleep(0.3)  # it may not even have begun
    assert wait_until(lambda: not marker.exists() or not is_running(int(marker.read_text())))


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, None])
def test_no_server_outlives_the_process(ending: signal.Signals | None) -> None:
    """Even one that would not end by itself when its input does."""
    script = f"""
import asyncio, sys, time
from palestra.tools import mcp_server
from palestra.types import Task
source = mcp_server([sys.executable, "-c", '''
import atexit, runpy, signal, sys, time
sys.argv = [{SERVER!r}]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
try:
    runpy.run_path({SERVER!r}, run_name="__main__")
finally:
    time.sleep(600)
'''], shared=True)
async def episode():
    async with source.open(Task(id="t", messages=())) as tools:
        process = next(tool for tool in tools if tool.name == "process")
        print(await process.function(), flush=True)
asyncio.run(episode())
{"" if ending is None else "time.sleep(600)"}
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        if ending is not None:
            os.kill(parent.pid, ending)
        parent.wait(30)
    assert wait_until(lambda: not is_running(pid))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "give one of them"),
        ({"command": ["x"], "url": "http://x"}, "give one of them"),
        ({"command": "uvx server"}, "a command is a list"),
        ({"command": []}, "a command is a list"),
        ({"command": ["no-such-program"]}, '"no-such-program" is not installed'),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        mcp_server(**options)


def test_sources_are_not_copied() -> None:
    source: ToolSource = mcp_server(COMMAND)
    assert copy.deepcopy({"tools": [source]})["tools"][0] is source
