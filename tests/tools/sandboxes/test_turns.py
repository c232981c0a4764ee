"""A lock of which the holders may run on any event loop and thread."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from palestra.tools.sandboxes.turns import Turns


def test_one_at_a_time_over_threads_and_loops() -> None:
    turns, inside, most = Turns(), 0, 0

    async def take() -> None:
        nonlocal inside, most
        for _ in range(20):
            async with turns:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.0005)
                inside -= 1

    async def several() -> None:
        await asyncio.gather(*(take() for _ in range(3)))

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(lambda: asyncio.run(several())) for _ in range(4)]:
            future.result(60)
    assert most == 1 and inside == 0


def test_first_come_first_served() -> None:
    async def run() -> list[int]:
        turns, order = Turns(), []

        async def take(number: int) -> None:
            async with turns:
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(take(number) for number in range(10)))
        return order

    assert asyncio.run(run()) == list(range(10))


def test_who_gives_up_waiting_takes_no_turn() -> None:
    async def run() -> None:
        turns = Turns()
        async with turns:
            waiting = [asyncio.ensure_future(take(turns)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            waiting[2].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[0]
        await asyncio.wait_for(waiting[1], 5)
        await asyncio.wait_for(take(turns), 5)

    async def take(turns: Turns) -> None:
        async with turns:
            await asyncio.sleep(0)

    asyncio.run(run())


def test_a_turn_given_to_one_who_is_just_cancelled_goes_to_the_next() -> None:
    async def run() -> None:
        turns = Turns()

        async def take() -> None:
            async with turns:
                await asyncio.sleep(0)

        for _ in range(50):
            await turns.__aenter__()
            waiting = [asyncio.ensure_future(take()) for _ in range(2)]
            await asyncio.sleep(0)
            await turns.__aexit__(None, None, None)
            waiting[0].cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await asyncio.wait_for(take(), 5)

    asyncio.run(run())


def test_a_loop_that_ends_while_it_waits_holds_nobody() -> None:
    turns = Turns()
    held, done = threading.Event(), threading.Event()

    async def hold() -> None:
        async with turns:
            held.set()
            await asyncio.to_thread(done.wait, 10)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(turns.__aenter__(), 0.05)

    holder = threading.Thread(target=lambda: asyncio.run(hold()))
    holder.start()
    held.wait(10)
    asyncio.run(give_up())
    done.set()
    holder.join()

    async def take() -> float:
        began = time.monotonic()
        async with turns:
            return time.monotonic() - began

    assert asyncio.run(asyncio.wait_for(take(), 5)) < 5
