"""`Earlier`: the episodes of an interrupted rollout, which need not be played again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from palestra.rollout.episode import is_final, turn_seed
from palestra.rollout.groups import complete_groups
from palestra.types import Episode, Task
from palestra.verifiers.group import group_parts

_MOST_AT_ONCE = 64


class Earlier:
    """Finds what is known of each sample. Raises ValueError for an episode of another seed."""

    def __init__(self, episodes: Iterable[Episode], *, seed: int, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._attempts: dict[tuple[str, int], dict[int, Episode]] = {}
        for episode in episodes:
            _check_seed(episode, seed)
            attempts = self._attempts.setdefault((episode.task.id, episode.sample), {})
            attempts[episode.attempt] = episode  # of one attempt that is there twice, the later

    def __bool__(self) -> bool:
        return bool(self._attempts)

    def drop_incomplete_groups(self, verifier: Callable[..., Any] | None, size: int) -> None:
        """Forget groups that are judged together but of which the interruption left a part."""
        if not group_parts(verifier):
            return
        every = [e for attempts in self._attempts.values() for e in attempts.values()]
        kept = {(e.task.id, e.sample) for e in complete_groups(every, size, self._max_attempts)}
        self._attempts = {key: self._attempts[key] for key in kept}

    def take(self, task: Task, sample: int) -> list[Episode]:
        """The attempts at a sample, first to last: what follows a gap is left out.

        Raises:
            ValueError: they are attempts at another task of that id.
        """
        attempts = self._attempts.pop((task.id, sample), {})
        known: list[Episode] = []
        while (episode := attempts.get(len(known))) is not None:
            if episode.task.messages != task.messages:
                raise ValueError(f"the episode to resume of task {task.id!r} has other messages")
            known.append(episode)
            if is_final(episode, self._max_attempts):
                break
        return known


def _check_seed(episode: Episode, seed: int) -> None:
    for turn in episode.turns[:1]:
        if turn.sampling is None or turn.sampling.seed is None:
            continue
        # The first to end need not be the first that an agent asked for.
        expected = (
            turn_seed(seed, episode.task.id, episode.sample, episode.attempt, number)
            for number in range(_MOST_AT_ONCE)
        )
        if turn.sampling.seed not in expected:
            raise ValueError(
                f"episode {episode.id} was sampled with another seed than {seed}: resume with the "
                "seed that it was begun with, or begin anew"
            )
