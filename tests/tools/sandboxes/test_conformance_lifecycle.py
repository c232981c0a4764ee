"""Every backend: snapshots, concurrent and cancelled calls, the end, and what is inside."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from palestra.tools.sandboxes import FileRefused, Sandbox, SandboxDied, SandboxSpec, Snapshot
from palestra.tools.sandboxes.choose import backend_class
from palestra.types import Failure

Start = Callable[..., Sandbox]


class TestSnapshots:
    """A snapshot restored into another sandbox is a fork."""

    def test_files_and_variables_come_back(self, spec: SandboxSpec, start: Start) -> None:
        one, other = start(spec), start(spec)
        one.sync.python("import math as m\na = [1]\nb = a\nwords = {'é': {1, 2}}")
        one.sync.write("d/file", bytes(range(256)))
        one.sync.run("chmod 755 d/file; ln d/file hard; ln -s d/file soft; mkdir empty")
        snapshot = one.sync.snapshot()
        one.sync.python("a.append(2)")
        other.sync.restore(snapshot)
        assert other.sync.python("b.append(3)\na, b, words, m.floor(2.5)").value == (
            "([1, 3], [1, 3], {'é': {1, 2}}, 2)"
        )
        assert one.sync.python("a").value == "[1, 2]"
        assert other.sync.read("d/file") == other.sync.read("hard") == bytes(range(256))
        assert other.sync.run(
            "readlink soft; test -x d/file && test -d empty && echo both"
        ).stdout == ("d/file\nboth\n")

    def test_what_cannot_be_pickled_is_named_and_the_rest_is_kept(
        self, spec: SandboxSpec, start: Start
    ) -> None:
        one, other = start(spec), start(spec)
        one.sync.python(
            "def f(): pass\nclass C: pass\nc = C()\ng = lambda: 1\n"
            "file = open('/dev/null')\nx = 1\nclass D(dict):\n"
            "  def __reduce__(self): raise SystemExit\nd = D()"
        )
        snapshot = one.sync.snapshot()
        assert {"f", "C", "c", "g", "file", "d"} <= set(snapshot.dropped)
        other.sync.restore(snapshot)
        assert other.sync.python("x").value == "1"
        assert one.sync.python("f() is None").value == "True"

    def test_special_files_are_left_out(self, spec: SandboxSpec, start: Start) -> None:
        one, other = start(spec), start(spec)
        one.sync.run("mkfifo fifo; echo text > file")
        other.sync.restore(one.sync.snapshot())
        assert [entry.name for entry in other.sync.list()] == ["file"]

    def test_one_that_is_too_large_is_refused(self, spec: SandboxSpec, start: Start) -> None:
        sandbox = start(spec, disk_mb=1, file_bytes=1024, output_bytes=1024)
        sandbox.sync.python("import os\nx = os.urandom(24_000_000)")
        with pytest.raises(FileRefused, match="more than"):
            sandbox.sync.snapshot()
        assert sandbox.sync.python("len(x)").value == "24000000"

    @pytest.mark.parametrize(
        "snapshot",
        [
            Snapshot(files=b"", variables=b""),
            Snapshot(files=b"no tar" * 1000, variables=b"no pickle"),
            Snapshot(files=b"\x1f\x8b\x08", variables=b"cos\n_exit\n(I1\ntR."),
        ],
        ids=["empty", "garbage", "hostile"],
    )
    def test_garbage_is_refused_and_does_no_harm(
        self, sandbox: Sandbox, snapshot: Snapshot
    ) -> None:
        with pytest.raises(FileRefused):
            sandbox.sync.restore(snapshot)
        assert sandbox.sync.python("1 + 1").value == "2"

    def test_variables_that_end_the_session_end_only_that(self, sandbox: Sandbox) -> None:
        files = sandbox.sync.snapshot().files
        with pytest.raises(FileRefused):
            sandbox.sync.restore(Snapshot(files=files, variables=b"cos\n_exit\n(I1\ntR."))
        assert sandbox.sync.python("1 + 1").value == "2"

    def test_a_session_in_ruins_cannot_be_saved_and_says_so(self, sandbox: Sandbox) -> None:
        sandbox.sync.python("import pickle, os\npickle.dumps = lambda value: os._exit(0)")
        with pytest.raises(FileRefused):
            sandbox.sync.snapshot()
        assert sandbox.sync.python("1 + 1").value == "2"


class TestConcurrency:
    """Calls wait for one another, whoever makes them."""

    def test_calls_wait_for_one_another(self, spec: SandboxSpec) -> None:
        async def run() -> list[str]:
            sandbox = backend_class(spec.backend)(spec)
            await sandbox.start()
            try:
                code = "import time\nprint({0}, end='')\ntime.sleep(0.1)\nprint({0}, end='')"
                calls = (sandbox.python(code.format(number)) for number in range(5))
                return [result.output for result in await asyncio.gather(*calls)]
            finally:
                await sandbox.kill()

        assert asyncio.run(run()) == ["00", "11", "22", "33", "44"]

    def test_threads_share_a_sandbox(self, sandbox: Sandbox) -> None:
        sandbox.sync.python("count = 0")

        def add(number: int) -> str:
            sandbox.sync.python("import time\nseen = count\ntime.sleep(0.005)\ncount = seen + 1")
            return sandbox.sync.run(["echo", str(number)]).stdout

        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(add, range(24)))
        assert said == [f"{number}\n" for number in range(24)]
        assert sandbox.sync.python("count").value == "24"

    def test_event_loops_share_a_sandbox(self, sandbox: Sandbox) -> None:
        """Each thread with a loop of its own, all at once, and the synchronous face beside them."""
        sandbox.sync.python("count = 0\nimport time")
        ready = threading.Barrier(5)

        def add(number: int) -> None:
            async def call() -> None:
                for _ in range(5):
                    await sandbox.python("seen = count\ntime.sleep(0.01)\ncount = seen + 1")

            ready.wait(10)
            asyncio.run(call())

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(add, number) for number in range(4)]
            ready.wait(10)
            for _ in range(5):
                sandbox.sync.python("seen = count\ntime.sleep(0.01)\ncount = seen + 1")
            for future in futures:
                future.result(60)
        assert sandbox.sync.python("count").value == "25"

    def test_a_sandbox_outlives_the_loop_that_started_it(self, spec: SandboxSpec) -> None:
        sandbox = backend_class(spec.backend)(spec)
        asyncio.run(sandbox.start())
        try:
            assert asyncio.run(sandbox.python("x = 2; x")).value == "2"
            assert asyncio.run(sandbox.python("x + 1")).value == "3"
        finally:
            asyncio.run(sandbox.kill())

    def test_a_cancelled_call_ends_the_sandbox(self, spec: SandboxSpec) -> None:
        async def run() -> None:
            sandbox = backend_class(spec.backend)(spec)
            await sandbox.start()
            call = asyncio.ensure_future(sandbox.run("sleep 60"))
            await asyncio.sleep(0.3)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert not await sandbox.answers()
            with pytest.raises(Failure, match=f"sandbox:{spec.backend}: a call was cancelled"):
                await sandbox.run("true")
            await sandbox.kill()

        asyncio.run(run())

    def test_a_call_cancelled_while_it_waits_harms_nobody(self, spec: SandboxSpec) -> None:
        async def run() -> None:
            sandbox = backend_class(spec.backend)(spec)
            await sandbox.start()
            try:
                first = asyncio.ensure_future(sandbox.run("sleep 0.5; echo done"))
                second = asyncio.ensure_future(sandbox.run("echo second"))
                await asyncio.sleep(0.2)
                second.cancel()
                assert (await first).stdout == "done\n"
                assert (await sandbox.run("echo third")).stdout == "third\n"
            finally:
                await sandbox.kill()

        asyncio.run(run())

    def test_many_start_and_end_at_once(self, spec: SandboxSpec) -> None:
        async def one(number: int) -> str:
            sandbox = backend_class(spec.backend)(spec)
            await sandbox.start()
            try:
                await sandbox.write("file", str(number))
                return (await sandbox.python("open('file').read()")).value
            finally:
                await sandbox.kill()

        async def run() -> list[str]:
            return await asyncio.gather(*(one(number) for number in range(6)))

        assert asyncio.run(run()) == [repr(str(number)) for number in range(6)]


class TestEnd:
    """Death is told to every later call, with its cause."""

    def test_kill_may_be_called_again(self, sandbox: Sandbox) -> None:
        assert asyncio.run(sandbox.answers())
        for _ in range(3):
            sandbox.sync.kill()
        assert not asyncio.run(sandbox.answers())

    def test_one_that_was_never_started_can_be_killed(self, spec: SandboxSpec) -> None:
        sandbox = backend_class(spec.backend)(spec)
        sandbox.sync.kill()
        assert not asyncio.run(sandbox.answers())

    def test_a_killed_one_is_its_owner_s_doing(self, sandbox: Sandbox) -> None:
        sandbox.sync.kill()
        calls: list[Callable[[], object]] = [
            lambda: sandbox.sync.python("1"),
            lambda: sandbox.sync.run("true"),
            lambda: sandbox.sync.read("file"),
            lambda: sandbox.sync.write("file", "text"),
            sandbox.sync.list,
            sandbox.sync.snapshot,
            lambda: sandbox.sync.restore(Snapshot(files=b"", variables=b"")),
        ]
        for call in calls:
            with pytest.raises(Failure, match=f"sandbox:{sandbox.backend}"):
                call()

    def test_no_folder_is_left_behind_however_it_is_locked(self, sandbox: Sandbox) -> None:
        # The sandbox's own folder, where that is one of the host's.
        home = Path(sandbox.sync.run("pwd").stdout.strip())
        sandbox.sync.run("mkdir -p locked/deep; touch locked/deep/f; chmod 0 locked/deep locked")
        sandbox.sync.kill()
        if home.is_relative_to(tempfile.gettempdir()):
            assert not home.exists()

    def test_kill_interrupts_a_call(self, spec: SandboxSpec) -> None:
        async def run() -> None:
            sandbox = backend_class(spec.backend)(spec)
            await sandbox.start()
            call = asyncio.ensure_future(sandbox.run("sleep 60", timeout_s=60))
            await asyncio.sleep(0.3)
            await sandbox.kill()
            with pytest.raises(Failure, match="killed by its owner"):
                await asyncio.wait_for(call, 10)

        asyncio.run(run())

    def test_its_life_ends_even_if_nobody_asks(self, spec: SandboxSpec, start: Start) -> None:
        sandbox = start(spec, wall_s=1.5)
        began = time.monotonic()
        with pytest.raises(SandboxDied, match=r"1\.5 s of life"):
            sandbox.sync.run("trap '' TERM ALRM; while :; do :; done", timeout_s=30)
        assert time.monotonic() - began < 10
        with pytest.raises(SandboxDied):
            sandbox.sync.run("true")


class TestInside:
    """What is there, and what is not."""

    def test_no_variable_of_the_host_is_inside(self, sandbox: Sandbox, canary: str) -> None:
        seen = sandbox.sync.run("env; cat /proc/self/environ /proc/$PPID/environ | tr '\\0' '\\n'")
        assert "HOME=" in seen.stdout
        assert canary not in seen.stdout + seen.stderr
        assert canary not in sandbox.sync.python("import os; dict(os.environ)").value

    def test_variables_of_the_specification_are(self, spec: SandboxSpec, start: Start) -> None:
        sandbox = start(dataclasses.replace(spec, env=(("TOKEN", "a b"), ("LANG", "C"))))
        assert sandbox.sync.run("echo $TOKEN $LANG").stdout == "a b C\n"
        assert sandbox.sync.python("import os; os.environ['TOKEN']").value == "'a b'"

    def test_modules_can_be_there_already(self, spec: SandboxSpec, start: Start) -> None:
        sandbox = start(dataclasses.replace(spec, preload=("sqlite3", "xml.dom.minidom")))
        code = "import sys; {'sqlite3', 'xml.dom.minidom'} <= sys.modules.keys()"
        assert sandbox.sync.python(code).value == "True"

    def test_python_a_shell_and_the_usual_tools_are_there(self, sandbox: Sandbox) -> None:
        tools = "awk cat cp cut find grep head ls mkdir mv python3 rm sed sort tail tar tr wc xargs"
        missing = [
            tool for tool in tools.split() if sandbox.sync.run(f"command -v {tool}").exit_code != 0
        ]
        assert missing == []

    def test_temporary_files_and_threads_work(self, sandbox: Sandbox) -> None:
        code = """
import sqlite3, subprocess, tempfile, threading
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
database = sqlite3.connect("data.sqlite")
database.execute("create table t (a)")
database.execute("insert into t values (1)")
database.commit()
seen = []
thread = threading.Thread(target=lambda: seen.append(1))
thread.start()
thread.join()
subprocess.run(["true"], check=True)
seen, database.execute("select a from t").fetchall()"""
        result = sandbox.sync.python(code)
        assert result.value == "([1], [(1,)])", result.error

    def test_a_pool_of_processes_works(self, sandbox: Sandbox) -> None:
        if sandbox.sync.run(": > /dev/shm/try").exit_code != 0:
            pytest.skip("it has no /dev/shm, where semaphores live")
        code = """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    seen = pool.map(abs, [-1, -2])
seen"""
        result = sandbox.sync.python(code)
        assert result.value == "[1, 2]", result.error

    def test_two_sandboxes_share_no_files(self, spec: SandboxSpec, start: Start) -> None:
        one, other = start(spec), start(spec)
        one.sync.write("file", "one")
        assert other.sync.list() == ()
