"""`merged`: several asynchronous generators read at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")

# Bounded, so that a client that reads slowly slows the generations down.
_MAX_WAITING = 64


async def merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """What the generators yield, as it comes.

    The first exception of one is raised. Then, and when this one is closed, all are closed.
    """
    queue: asyncio.Queue[tuple[T] | Exception | None] = asyncio.Queue(_MAX_WAITING)

    async def read(source: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    await queue.put((item,))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    readers = [asyncio.create_task(read(source)) for source in sources]
    try:
        unfinished = len(readers)
        while unfinished:
            news = await queue.get()
            if isinstance(news, Exception):
                raise news
            if news is None:
                unfinished -= 1
            else:
                yield news[0]
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
