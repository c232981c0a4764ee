"""`Slots`: an engine's places, shared fairly among the rollouts that use it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import AbstractAsyncContextManager


class Slots:
    """So many generations at once; rollouts that wait for a place get one in turn.

    Give the same `Slots` to every rollout that uses an engine (evaluations and environments beside
    one another, say). An engine's own queue serves first what came first, so that a rollout of a
    thousand episodes starves one of ten; with `count` places, about what the engine runs at once,
    each rollout that has something to generate gets as many as any other.

    It belongs to one event loop. Raises ValueError if `count` is below 1.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"an engine needs at least 1 slot, got {count}")
        self._free = count
        # Lanes with generations that wait; whose turn it is comes first.
        self._waiting: OrderedDict[Lane, deque[asyncio.Future[None]]] = OrderedDict()

    def lane(self) -> Lane:
        """A queue of one's own: `async with lane:` holds a place, as often as needed at once."""
        return Lane(self)

    async def _take(self, lane: Lane) -> None:
        if self._free:
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(lane, deque())
        queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it had just been given to us
                self._give_back()
            elif place in queue:
                queue.remove(place)
                if not queue:
                    self._waiting.pop(lane, None)
            raise

    def _give_back(self) -> None:
        while self._waiting:
            lane, queue = next(iter(self._waiting.items()))
            place = queue.popleft()
            if queue:
                self._waiting.move_to_end(lane)
            else:
                del self._waiting[lane]
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class Lane(AbstractAsyncContextManager[None]):
    """One rollout's way to the slots."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    async def __aenter__(self) -> None:
        await self._slots._take(self)

    async def __aexit__(self, *exception: object) -> None:
        self._slots._give_back()
