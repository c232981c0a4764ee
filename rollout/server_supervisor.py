"""Keeps a model server that we started alive: whenever it dies, it is started again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from palestra.rollout.engine_errors import ConnectionLost, ServerDied
from palestra.rollout.server_process import ServerProcess

_log = logging.getLogger(__name__)

_DEATH_TIMEOUT_S = 5.0
# A server that dies so often without a completion in between is not started again.
_MAX_DEATHS_IN_A_ROW = 3


class ServerSupervisor:
    """Watches a running server; requests that come while it is down wait for it.

    Args:
        server: started; closing the supervisor stops it.
        restarted: awaited each time it was started again, before waiting requests go on. It may
            call `until_up` itself and does not wait there.
    """

    def __init__(self, server: ServerProcess, restarted: Callable[[], Awaitable[None]]) -> None:
        self.server = server
        self._restarted = restarted
        self._up = asyncio.Event()
        self._up.set()
        self._given_up: str | None = None
        self._deaths_in_a_row = 0
        self._task = asyncio.create_task(self._watch())

    @property
    def trouble(self) -> str:
        """Why the server answers nothing at the moment, "" while it runs."""
        if self._given_up is not None:
            return self._given_up
        return "" if self._up.is_set() else f"{self.server.name} ended and is started again"

    def note_completion(self) -> None:
        """The server works: earlier deaths no longer count against it."""
        self._deaths_in_a_row = 0

    async def until_up(self) -> None:
        """Wait while it is being started again. Raises ServerDied if it is not any more."""
        if asyncio.current_task() is not self._task:
            await self._up.wait()
        if self._given_up is not None:
            raise ServerDied(self._given_up)

    async def raise_if_dead(self, error: Exception) -> None:
        """Raise ServerDied, because of `error`, if the server has ended or is about to."""
        with suppress(TimeoutError):
            how = await asyncio.wait_for(self.server.wait(), _DEATH_TIMEOUT_S)
            raise ServerDied(
                f"{self.server.name} ended ({how}) during a request and is started again"
            ) from error

    async def aclose(self) -> None:
        """Stop the server for good. May be called more than once."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self.server.stop()

    async def _watch(self) -> None:
        name = self.server.name
        while True:
            how = await self.server.wait()
            self._up.clear()
            self._deaths_in_a_row += 1
            cause = f"{name} ended ({how})"
            try:
                if self._deaths_in_a_row > _MAX_DEATHS_IN_A_ROW:
                    raise ServerDied(
                        f"{cause}; it was started {self._deaths_in_a_row} times without completing "
                        "a generation"
                    )
                _log.warning("%s; it is started again", cause)
                await self.server.restart()
                await self._restarted()
            except ConnectionLost:  # it died again, or does not answer
                if self.server.alive:
                    await self.server.stop()
            except Exception as error:
                self._given_up = f"{type(error).__name__}: {error}"
                _log.error("%s is not started again: %s", name, self._given_up)
                self._up.set()
                return
            else:
                self._up.set()
