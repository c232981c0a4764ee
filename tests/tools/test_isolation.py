import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pydantic
import pytest

from palestra.tools import ToolError, run_call, tool
from palestra.types import Failure, ToolResult


class Point(pydantic.BaseModel):
    x: int


@tool(isolated=True)
def add(a: int, b: int = 1) -> int:
    return a + b


@tool(isolated=True)
async def shift(point: Point) -> Point:
    await asyncio.sleep(0)
    return Point(x=point.x + 1)


@tool(isolated=True)
def process_id() -> int:
    return os.getpid()


@tool(isolated=True)
def refuse() -> None:
    raise ToolError("not today")


@tool(isolated=True)
def break_down() -> None:
    raise KeyError("missing")


@tool(isolated=True)
def chatter() -> str:
    print("noise on standard output")
    os.write(1, b"more noise\n")
    return repr(sys.stdin.read())


@tool(isolated=True, timeout_s=0.3)
def hang(pid_file: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    while True:
        pass


@tool(isolated=True, timeout_s=100)
def hang_long(pid_file: str) -> None:
    hang(pid_file)


@tool(isolated=True, memory_mb=64)
def allocate(mb: int) -> int:
    return len(bytearray(mb << 20))


@tool(isolated=True)
def die(number: int) -> None:
    os.kill(os.getpid(), number)


@tool(isolated=True)
def leave() -> None:
    os._exit(0)


@tool(isolated=True)
def recurse() -> None:
    recurse()


@tool(isolated=True)
def flood() -> str:
    return "x" * 1_000_000


_TOOLS = {
    used.name: used
    for used in (
        add, shift, process_id, refuse, break_down, chatter, hang, hang_long, allocate, die,
        leave, recurse, flood,
    )
}  # fmt: skip


async def call(name: str, **arguments: Any) -> ToolResult:
    function = {"name": name, "arguments": arguments}
    return await run_call({"id": "1", "function": function}, _TOOLS, {})


def run(name: str, **arguments: Any) -> ToolResult:
    return asyncio.run(call(name, **arguments))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_end(*pids: int) -> bool:
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(is_running, pids))


def wait_for(path: Path) -> list[int]:
    deadline = time.monotonic() + 30
    while not (path.exists() and len(path.read_text().split()) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [int(pid) for pid in path.read_text().split()]


def test_an_isolated_tool_runs_in_another_process_which_is_kept() -> None:
    pids = {run("process_id").content for _ in range(5)}
    assert len(pids) == 1
    assert pids != {str(os.getpid())}


def test_arguments_and_results_are_typed_as_in_process() -> None:
    assert run("add", a=2).content == "3"
    assert run("shift", point={"x": 1}).content == '{"x":2}'


def test_called_directly_an_isolated_tool_is_its_function() -> None:
    assert add(1, 2) == 3


def test_bad_arguments_are_answered_without_a_process() -> None:
    assert run("add", a="x").content == 'argument "a" should be an integer, got "x"'


def test_a_tool_error_comes_back() -> None:
    result = run("refuse")
    assert (result.error, result.content) == ("tool_error", "not today")


def test_any_other_exception_is_a_failure_of_the_tool() -> None:
    with pytest.raises(Failure) as raised:
        run("break_down")
    assert (raised.value.cause, raised.value.detail) == ("tool:break_down", "KeyError: 'missing'")


def test_what_a_tool_prints_or_reads_does_not_disturb_the_worker() -> None:
    assert [run("chatter").content, run("add", a=1).content] == ["''", "2"]


def test_long_output_is_cut_in_the_worker() -> None:
    assert "[… 984,000 characters cut …]" in run("flood").content


def test_a_hung_tool_is_killed_with_the_processes_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    result = run("hang", pid_file=str(file))
    assert (result.error, result.content) == ("timeout", "hang timed out after 0.3 s")
    assert wait_for_end(*wait_for(file))


def test_a_cancelled_call_is_killed_with_the_processes_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pids"

    async def main() -> list[int]:
        task = asyncio.create_task(call("hang_long", pid_file=str(file)))
        pids = await asyncio.to_thread(wait_for, file)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pids

    assert wait_for_end(*asyncio.run(main()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit")
def test_memory_beyond_the_limit_is_an_answer_and_below_it_is_not() -> None:
    assert run("allocate", mb=32).content == str(32 << 20)
    result = run("allocate", mb=128)
    assert (result.error, result.content) == (
        "resources",
        "allocate ran out of resources: MemoryError",
    )


@pytest.mark.parametrize(
    ("name", "arguments", "end"),
    [
        ("die", {"number": signal.SIGKILL}, "its process ended, killed by SIGKILL"),
        ("die", {"number": signal.SIGSEGV}, "its process ended, killed by SIGSEGV"),
        ("leave", {}, "its process ended, exit status 0"),
        ("recurse", {}, "RecursionError"),
    ],
)
def test_a_dead_worker_is_an_answer_and_the_next_call_gets_another(
    name: str, arguments: dict[str, Any], end: str
) -> None:
    result = run(name, **arguments)
    assert result.error == "resources"
    assert end in result.content
    assert run("add", a=1).content == "2"


def test_a_worker_that_died_while_idle_is_replaced() -> None:
    pid = int(run("process_id").content)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid)
    assert run("process_id").error is None


def test_concurrent_calls_use_several_workers_but_not_too_many() -> None:
    async def main() -> list[ToolResult]:
        return await asyncio.gather(*(call("add", a=i) for i in range(12)))

    assert [result.content for result in asyncio.run(main())] == [str(i + 1) for i in range(12)]


_SCRIPT = """
import asyncio, os, pathlib, sys, time
from palestra.tools import run_call, tool

@tool(isolated=True)
def double(n: int) -> int:
    return 2 * n

@tool(isolated=True)
def hang(path: str) -> None:
    pathlib.Path(path).write_text(f"{os.getpid()} {os.getppid()}")
    while True:
        pass

def call(tool, **arguments):
    request = {"function": {"name": tool.name, "arguments": arguments}}
    return asyncio.run(run_call(request, {tool.name: tool}, {})).content
"""


def test_tools_of_a_script_run_isolated(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT + '\nif __name__ == "__main__":\n    print(call(double, n=21))\n')
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_a_script_without_main_guard_is_told_to_write_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT + "\nprint(call(double, n=21))\n")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert 'under `if __name__ == "__main__":`' in done.stderr


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script, file = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(
        _SCRIPT + f'\nif __name__ == "__main__":\n    call(hang, path={str(file)!r})\n'
    )
    parent = subprocess.Popen([sys.executable, script])
    worker, _ = wait_for(file)
    parent.kill()
    parent.wait()
    assert wait_for_end(worker)


def test_a_module_that_cannot_be_imported_again_is_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        _SCRIPT
        + "\nif __name__ != '__main__':\n    raise OSError('licence server is down')\n"
        + "call(double, n=21)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Failure: tool:double: OSError: licence server is down" in done.stderr


def test_a_forked_process_has_workers_of_its_own_and_leaves_its_parents_alone(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        _SCRIPT
        + """
@tool(isolated=True)
def process_id() -> int:
    return os.getpid()

if __name__ == "__main__":
    first = call(process_id)
    child = os.fork()
    if child == 0:
        sys.exit(0 if call(process_id) != first else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), call(process_id) == first)
"""
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("0 True\n", "")
