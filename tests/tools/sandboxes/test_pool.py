"""The pool, on the namespace backend: warm, bounded, fair, and nothing left behind."""

import asyncio
import gc
import os
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from palestra.tools.sandboxes import (
    LeasedSandbox,
    Limits,
    Sandbox,
    SandboxDied,
    SandboxPool,
    SandboxSpec,
    pool_of,
)
from palestra.tools.sandboxes.namespace import NamespaceSandbox
from palestra.types import Failure

SPEC = SandboxSpec(backend="namespace", packages=(), warm=2, max_live=4)

pytestmark = pytest.mark.skipif(
    not NamespaceSandbox.capabilities(SPEC).available and not os.environ.get("CI"),
    reason=NamespaceSandbox.capabilities(SPEC).problem,
)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def host_pid(sandbox: Sandbox) -> int:
    """The first process of a namespace sandbox, as the host numbers it."""
    assert isinstance(sandbox, NamespaceSandbox)
    lines = Path(f"/proc/self/fdinfo/{sandbox._pidfd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


async def until(condition: Any, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (of threads and processes, which set no event)
            await asyncio.sleep(0.01)


def test_a_released_sandbox_is_never_handed_out_again() -> None:
    async def main() -> None:
        pool = SandboxPool(SPEC)
        first = await pool.acquire()
        await first.python("secret = 1")
        await pool.release(first)
        for _ in range(4):
            sandbox = await pool.acquire()
            assert "NameError" in (await sandbox.python("secret")).error
            await pool.release(sandbox)
        await pool.aclose()

    run(main())


def test_warm_ones_are_kept_ready_and_replaced_when_taken() -> None:
    async def main() -> None:
        pool = SandboxPool(SPEC)
        first = await pool.acquire()
        await until(lambda: pool.counts()["idle"] == 2)
        second = await pool.acquire()
        assert pool.counts()["taken"] == 2
        await until(lambda: pool.counts()["idle"] == 2)
        await pool.release(first)
        await pool.release(second)
        await pool.aclose()

    run(main())


def test_no_more_than_the_most_are_alive_and_askers_are_served_in_order() -> None:
    order: list[int] = []

    async def main() -> None:
        pool = SandboxPool(SPEC)
        most = 0

        async def use(number: int) -> None:
            nonlocal most
            sandbox = await pool.acquire()
            order.append(number)
            counts = pool.counts()
            most = max(most, counts["taken"] + counts["idle"] + counts["starting"])
            await sandbox.python("1")
            await pool.release(sandbox)

        taken = [await pool.acquire() for _ in range(4)]
        users = []
        for number in range(12):
            users.append(asyncio.create_task(use(number)))
            await until(lambda: pool.counts()["waiting"] == len(users))
        for sandbox in taken:
            await pool.release(sandbox)
        await asyncio.gather(*users)
        assert most <= 4
        await pool.aclose()

    run(main())
    # Those who are called together may be ready in any order; there are never more than four.
    assert all(abs(number - place) <= 4 for place, number in enumerate(order))


def test_one_that_died_while_it_waited_is_replaced() -> None:
    async def main() -> None:
        pool = SandboxPool(SPEC)
        first = await pool.acquire()
        await until(lambda: pool.counts()["idle"] == 2)
        for sandbox in list(pool._idle):
            os.kill(host_pid(sandbox), 9)
        second = await pool.acquire()
        assert (await second.python("1 + 1")).value == "2"
        await pool.release(first)
        await pool.release(second)
        await pool.aclose()

    run(main())


def test_a_waiter_that_gives_up_costs_nobody_his_turn() -> None:
    async def main() -> None:
        pool = SandboxPool(SPEC)
        taken = [await pool.acquire() for _ in range(4)]
        impatient = asyncio.create_task(pool.acquire())
        patient = asyncio.create_task(pool.acquire())
        await until(lambda: pool.counts()["waiting"] == 2)
        impatient.cancel()
        await pool.release(taken.pop())
        sandbox = await asyncio.wait_for(patient, 20)
        assert await sandbox.answers()
        await pool.aclose()

    run(main())


def test_a_closed_pool_says_so_to_those_who_wait_and_those_who_come() -> None:
    async def main() -> None:
        pool = SandboxPool(SPEC)
        taken = [await pool.acquire() for _ in range(4)]
        waiter = asyncio.create_task(pool.acquire())
        await until(lambda: pool.counts()["waiting"] == 1)
        await pool.aclose()
        with pytest.raises(Failure, match="its pool is closed"):
            await waiter
        with pytest.raises(Failure, match="its pool is closed"):
            await pool.acquire()
        assert not any([await sandbox.answers() for sandbox in taken])

    run(main())


def test_threads_with_their_own_event_loops_share_a_pool() -> None:
    pool = SandboxPool(SPEC)
    values: list[str] = []

    def work() -> None:
        async def play() -> None:
            for _ in range(3):
                sandbox = await pool.acquire()
                values.append((await sandbox.python("6 * 7")).value)
                await pool.release(sandbox)

        asyncio.run(play())

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    pool.close()
    assert values == ["42"] * 18


def test_nothing_is_left_after_hundreds_of_sandboxes_with_random_deaths() -> None:
    def open_files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        pool = SandboxPool(SPEC)

        async def use(number: int) -> None:
            sandbox = await pool.acquire()
            try:
                if number % 5 == 0:
                    os.kill(host_pid(sandbox), 9)
                await sandbox.python("import os; os.system('sleep 1000 & sleep 1000 &')")
            except (SandboxDied, Failure):
                pass
            finally:
                await pool.release(sandbox)

        await asyncio.gather(*(use(number) for number in range(20)))
        before = open_files()
        await asyncio.gather(*(use(number) for number in range(200)))
        await until(lambda: pool.counts()["starting"] == 0)
        assert open_files() <= before + 8
        pids = [host_pid(sandbox) for sandbox in pool._idle]
        await pool.aclose()
        await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))

    run(main())


def test_a_lease_replaces_what_its_own_code_has_brought_down() -> None:
    async def main() -> None:
        leased = LeasedSandbox(SandboxSpec(**{**spec_fields(), "limits": Limits(wall_s=1.5)}))
        await leased.python("x = 1")
        with pytest.raises(SandboxDied, match=r"life are over\. The next call gets a new one"):
            await leased.python("import time; time.sleep(20)")
        assert "NameError" in (await leased.python("x")).error
        await leased.kill()
        await pool_of(leased.spec).aclose()

    run(main())


def test_a_lease_prepares_each_of_its_sandboxes() -> None:
    async def prepare(sandbox: Sandbox) -> None:
        await sandbox.write("task.txt", "42")

    async def main() -> None:
        leased = LeasedSandbox(SPEC, prepare=prepare)
        assert await leased.read("task.txt") == b"42"
        os.kill(host_pid(leased._sandbox), 9)  # type: ignore[arg-type]
        with pytest.raises(Failure, match="killed from outside"):
            await leased.read("task.txt")
        assert await leased.read("task.txt") == b"42"
        await leased.kill()
        with pytest.raises(Failure, match="after its episode had ended"):
            await leased.read("task.txt")
        await pool_of(SPEC).aclose()

    run(main())


def spec_fields() -> dict[str, Any]:
    return {"backend": "namespace", "packages": (), "warm": 0, "max_live": 4}
