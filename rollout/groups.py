"""Groups: a task's episodes wait for one another, where they are judged or trained on together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from palestra.rollout.episode import CANCELLED, is_final
from palestra.types import Episode, Outcome
from palestra.verifiers.group import group_parts, judge_group

# A task's id and which of its groups.
GroupKey = tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeGroup:
    """All attempts at the samples of one task that are compared, by sample and attempt.

    `surplus` if as many groups as were wanted had been finished before it: its unfinished episodes
    are `failed` with the cause "cancelled", and samples that had not begun are missing.
    """

    episodes: tuple[Episode, ...]
    surplus: bool = False


class Groups:
    """Collects the last attempts at the samples of each task, `size` to a group.

    `room` is how many episodes there may be at once, waiting ones included.
    """

    def __init__(self, size: int, *, room: int) -> None:
        self._size = size
        self._room = room
        self._waiting: dict[GroupKey, list[Episode]] = {}

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
        key = group_key(episode, self._size)
        group = self._waiting.setdefault(key, [])
        group.append(episode)
        if len(group) < self._size:
            return ()
        del self._waiting[key]
        return await judge_group(parts, sorted(group, key=lambda e: e.sample))

    def give_up(self) -> list[Episode]:
        """Those that still wait for others, which will not come: without a verdict, cancelled."""
        waiting = [episode for group in self._waiting.values() for episode in group]
        self._waiting.clear()
        return [
            replace(
                episode,
                outcome=Outcome.FAILED,
                stop_reason="failed",
                cause=CANCELLED,
                detail="the others of its group, with which it is judged, were cancelled",
                scores={},
                rewards={},
            )
            for episode in waiting
        ]


def group_key(episode: Episode, size: int) -> GroupKey:
    """Which group of `size` samples an episode belongs to."""
    return episode.task.id, episode.sample // size


def complete_groups(episodes: Iterable[Episode], size: int, max_attempts: int) -> list[Episode]:
    """The episodes whose groups have all their samples' last attempts."""
    groups: defaultdict[GroupKey, list[Episode]] = defaultdict(list)
    for episode in episodes:
        groups[group_key(episode, size)].append(episode)
    return [
        episode
        for group in groups.values()
        if len({e.sample for e in group if is_final(e, max_attempts)}) == size
        for episode in group
    ]
