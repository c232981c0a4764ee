"""Waiting with a deadline that holds whatever the awaited code does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from palestra.types import Failure

T = TypeVar("T")

# How long cancelled code may take to clean up.
GRACE_S = 1.0

_log = logging.getLogger(__name__)


class DeadlineExceeded(Exception):
    """The work took too long and was cancelled; `stuck` if it ignored even that."""

    def __init__(self, *, stuck: bool) -> None:
        super().__init__("took too long" + (" and ignores its cancellation" if stuck else ""))
        self.stuck = stuck


async def within(timeout_s: float, work: Coroutine[Any, Any, T], cause: str) -> T:
    """The result of `work`, or DeadlineExceeded after `timeout_s` seconds.

    Unlike `asyncio.timeout`, this also returns when `work` swallows its cancellation (it is then
    abandoned), and a cancellation that nobody asked for, such as that of a future which somebody
    else closed, is a Failure of `cause` instead of looking like ours.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task,), timeout=timeout_s)
        if not task.done():
            raise DeadlineExceeded(stuck=not await cancel(task))
    except asyncio.CancelledError:
        await cancel(task)
        raise
    if task.cancelled():
        raise Failure(cause, "it was cancelled from within")
    return task.result()


async def cancel(task: asyncio.Task[Any]) -> bool:
    """Cancel and wait for the end; False if there is none."""
    task.cancel()
    await asyncio.wait((task,), timeout=GRACE_S)
    if not task.done():
        _log.error("abandoned after it ignored its cancellation for %g s: %r", GRACE_S, task)
        return False
    if not task.cancelled():
        task.exception()  # seen: asyncio need not warn that nobody looked
    return True
