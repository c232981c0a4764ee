"""`ready_together`: what an asynchronous generator has ready at once, in one list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# A source that never waits is handed on all the same.
_MOST = 64


async def ready_together(items: AsyncGenerator[T, None]) -> AsyncGenerator[list[T], None]:
    """The items as they come; those that need no waiting for one another come in one list.

    An item is never held back to wait for the next. Closing this closes `items`.
    """
    async with aclosing(items):
        batch: list[T] = []
        while True:
            begun = _Begun(anext(items))
            try:
                if batch and (not begun.is_there or len(batch) >= _MOST):
                    yield batch
                    batch = []
            except BaseException:  # closed or cancelled while the next item is on its way
                await begun.cancel()
                raise
            try:
                batch.append(await begun)
            except StopAsyncIteration:
                return


class _Begun(Generic[T]):
    """An awaitable that has been run up to where it waits for the first time, if it does.

    The task that made it must either await or `cancel` it.
    """

    def __init__(self, work: Awaitable[T]) -> None:
        self._work = work.__await__()
        self._waits_for: Any = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._waits = True
        self._run(self._work.send, None)

    @property
    def is_there(self) -> bool:
        """Whether it gave its result without waiting."""
        return not self._waits and self._error is None

    def __await__(self) -> Generator[Any, Any, T]:
        while self._waits:
            try:
                sent = yield self._waits_for
            except BaseException as error:
                self._run(self._work.throw, error)
            else:
                self._run(self._work.send, sent)
        if self._error is not None:
            raise self._error
        result: T = self._result
        return result

    async def cancel(self) -> None:
        """End it, as cancelling its task would."""
        if self._waits:
            self._run(self._work.throw, asyncio.CancelledError())
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await self

    def _run(self, resume: Callable[[Any], Any], value: Any) -> None:
        """Up to where it waits next, or to its end."""
        try:
            self._waits_for = resume(value)
        except StopIteration as end:
            self._waits, self._result = False, end.value
        except BaseException as error:
            self._waits, self._error = False, error
