import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from palestra.tools import threads
from palestra.tools.threads import run_in_thread
from palestra.tools.trouble import TimedOut


def live_threads() -> int:
    return sum(thread.name == "palestra-call" for thread in threading.enumerate())


def test_a_thousand_calls_in_a_row_share_one_thread() -> None:
    async def main() -> set[str]:
        return {await run_in_thread(lambda: str(threading.get_ident())) for _ in range(1000)}

    # The thread becomes free just after its answer: now and then a second one is needed.
    assert len(asyncio.run(main())) <= 4


def test_hung_calls_are_replaced_and_their_threads_used_again_when_they_end() -> None:
    release = threading.Event()
    before = live_threads()

    async def main() -> None:
        for _ in range(5):
            with pytest.raises(TimedOut):
                await run_in_thread(lambda: release.wait(30), timeout_s=0.02)
        assert await run_in_thread(lambda: 42, timeout_s=10) == 42
        release.set()
        await asyncio.sleep(0.1)
        together = threading.Barrier(6, timeout=10)
        await asyncio.gather(*(run_in_thread(together.wait) for _ in range(6)))

    asyncio.run(main())
    assert live_threads() <= before + 6


def test_more_calls_than_threads_wait_without_timing_out() -> None:
    count = threads.MAX_THREADS * 2

    async def main() -> list[None]:
        calls = (run_in_thread(lambda: time.sleep(0.1), timeout_s=5) for _ in range(count))
        return await asyncio.gather(*calls)

    assert len(asyncio.run(main())) == count
    assert live_threads() <= threads.MAX_THREADS + 6


def test_an_idle_thread_keeps_nothing_of_its_last_call() -> None:
    class Big:
        pass

    async def main() -> weakref.ref[Big]:
        big = Big()
        await run_in_thread(lambda: str(big))
        return weakref.ref(big)

    reference = asyncio.run(main())
    deadline = time.monotonic() + 5
    while reference() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert reference() is None


def test_a_result_that_comes_after_the_loop_closed_is_dropped() -> None:
    release = threading.Event()

    async def main() -> None:
        with pytest.raises(TimedOut):
            await run_in_thread(lambda: release.wait(30), timeout_s=0.01)

    asyncio.run(main())
    release.set()
    assert asyncio.run(run_in_thread(lambda: 42)) == 42


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_interpreter_exits_while_a_call_hangs() -> None:
    done = run_python(
        """
import asyncio, time
from palestra.tools.threads import run_in_thread
from palestra.tools.trouble import TimedOut
try:
    asyncio.run(run_in_thread(lambda: time.sleep(1000), timeout_s=0.05))
except TimedOut:
    print("timed out")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "timed out\n", "")


def test_calls_work_in_a_forked_process() -> None:
    done = run_python(
        """
import asyncio, os, time
from palestra.tools.threads import run_in_thread
asyncio.run(run_in_thread(lambda: 1))
time.sleep(0.1)  # until the thread is idle
child = os.fork()
if child == 0:
    os._exit(asyncio.run(run_in_thread(lambda: 42, timeout_s=5)))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert (done.stdout, done.stderr) == ("42\n", "")
