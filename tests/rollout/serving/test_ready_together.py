"""Items that are ready at once come together, and nothing of the source is lost or left running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from palestra.rollout.serving.ready_together import ready_together


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, timeout=20))


def test_what_needs_no_waiting_comes_in_one_list() -> None:
    async def items() -> AsyncGenerator[int, None]:
        yield 0
        yield 1
        await asyncio.sleep(0.01)
        yield 2
        await asyncio.sleep(0)
        yield 3
        yield 4

    async def collect() -> list[list[int]]:
        return [batch async for batch in ready_together(items())]

    assert run(collect()) == [[0, 1], [2], [3, 4]]


def test_an_item_is_handed_on_before_the_next_is_there() -> None:
    more = asyncio.Event()

    async def items() -> AsyncGenerator[int, None]:
        yield 0
        await more.wait()
        yield 1

    async def read() -> list[int]:
        async with aclosing(ready_together(items())) as batches:
            first = await anext(batches)
            more.set()
            return first + await anext(batches)

    assert run(read()) == [0, 1]


def test_a_source_that_never_waits_is_handed_on_all_the_same() -> None:
    async def items() -> AsyncGenerator[int, None]:
        for number in range(200):
            yield number

    async def collect() -> list[list[int]]:
        return [batch async for batch in ready_together(items())]

    batches = run(collect())
    assert [number for batch in batches for number in batch] == list(range(200))
    assert max(map(len, batches)) == 64


def test_an_error_comes_after_the_items_before_it() -> None:
    async def items() -> AsyncGenerator[int, None]:
        yield 0
        raise KeyError("broken")

    async def read() -> list[int]:
        batches = ready_together(items())
        got = await anext(batches)
        with pytest.raises(KeyError):
            await anext(batches)
        return got

    assert run(read()) == [0]


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_closing_it_while_an_item_is_on_its_way_closes_the_source(how: str) -> None:
    ended: list[str] = []

    async def items() -> AsyncGenerator[int, None]:
        try:
            yield 0
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)  # as one who tells a server
            ended.append("source")

    async def read() -> None:
        async with aclosing(ready_together(items())) as batches:
            async for _ in batches:
                if how == "closed":
                    return

    async def go() -> None:
        reading = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        if how == "cancelled":
            reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    run(go())
    assert ended == ["source"]
