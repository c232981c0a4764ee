"""Going down: requests in progress end by themselves, or are told why they do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.traffic import Traffic


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, timeout=20))


async def numbers(count: int, *, pause_s: float, closed: list[str]) -> AsyncGenerator[int, None]:
    try:
        for number in range(count):
            yield number
            await asyncio.sleep(pause_s)
    finally:
        closed.append("source")


async def answer(traffic: Traffic, items: AsyncGenerator[int, None], got: list[Any]) -> None:
    with traffic.request():
        try:
            async for item in traffic.attend(items):
                got += [item]
        except ApiError as error:
            got.append(error.code)


def test_draining_waits_for_requests_in_progress() -> None:
    got: list[Any] = []

    async def go() -> bool:
        traffic = Traffic()
        asking = asyncio.create_task(answer(traffic, numbers(3, pause_s=0.05, closed=[]), got))
        await asyncio.sleep(0.01)
        assert traffic.in_flight == 1
        ended = await traffic.drain(10)
        assert traffic.is_draining
        await asking
        return ended

    assert run(go()) is True
    assert got == [0, 1, 2]


@pytest.mark.parametrize("how", ["too late", "hurried"])
def test_what_does_not_end_is_cut_off_with_the_reason(how: str) -> None:
    got: list[Any] = []
    closed: list[str] = []

    async def go() -> bool:
        traffic = Traffic()
        items = numbers(1, pause_s=3600, closed=closed)
        asking = asyncio.create_task(answer(traffic, items, got))
        await asyncio.sleep(0.01)
        if how == "hurried":
            asyncio.get_running_loop().call_later(0.02, traffic.hurry)
        ended = await traffic.drain(0.05 if how == "too late" else 3600)
        await asking
        assert not asking.cancelled()
        return ended

    assert run(go()) is False
    assert got == [0, "shutting_down"]
    assert closed == ["source"]


def test_a_cancellation_of_others_stays_one() -> None:
    async def go() -> None:
        traffic = Traffic()
        asking = asyncio.create_task(answer(traffic, numbers(1, pause_s=3600, closed=[]), []))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert traffic.in_flight == 0
        assert await traffic.drain(0)

    run(go())
