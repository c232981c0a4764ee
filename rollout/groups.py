"""`Groups`: a task's episodes wait for one another where a verifier judges them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from palestra.types import Episode
from palestra.verifiers.group import group_parts, judge_group


class Groups:
    """Collects the last attempts at the samples of each task, `size` to a group.

    `room` is how many episodes there may be at once, waiting ones included.
    """

    def __init__(self, size: int, *, room: int) -> None:
        self._size = size
        self._room = room
        self._waiting: dict[tuple[str, int], list[Episode]] = {}

    async def add(self, verifier: Callable[..., Any] | None, episode: Episode) -> Sequence[Episode]:
        """The episodes that are done with: this one, or its group once all of it is there.

        Their rewards then hold what the environment's verifier adds for the group (see
        `palestra.verifiers.group`). Empty while others are still being played.

        Raises:
            ValueError: a group that could never be complete, for want of room.
        """
        parts = group_parts(verifier)
        if not parts:
            return (episode,)
        if self._size > self._room:
            raise ValueError(
                f"the verifier judges {self._size} episodes of a task together: max_concurrent "
                f"must be at least that, got {self._room}"
            )
        key = (episode.task.id, episode.sample // self._size)
        group = self._waiting.setdefault(key, [])
        group.append(episode)
        if len(group) < self._size:
            return ()
        del self._waiting[key]
        return await judge_group(parts, sorted(group, key=lambda e: e.sample))
