"""Which tasks a step tries: fresh ones, and more of those that were not solved when last tried."""

from __future__ import annotations

import random
from collections.abc import Sequence


class Curriculum:
    """Draws `per_step` of `count` tasks, by index; the same seed draws the same.

    A share of `revisit` comes from tasks tried before, in proportion to 1 - their last success:
    tasks that are always solved have no variance and teach nothing. The others are drawn evenly
    from all tasks. Source: prioritized sampling of Kimi k1.5 (arXiv 2501.12599).
    """

    def __init__(self, count: int, *, per_step: int, revisit: float, seed: int) -> None:
        self._count = count
        self._per_step = min(per_step, count)
        self._revisit = revisit
        self._seed = seed
        self.failures: dict[int, float] = {}  # task -> 1 - its last success, where above 0

    def draw(self, step: int) -> list[int]:
        """The tasks of a step, none twice."""
        rng = random.Random(f"{self._seed}-{step}")
        wanted = min(round(self._revisit * self._per_step), len(self.failures))
        # The largest of u ** (1 / weight) are a weighted sample without replacement (Efraimidis
        # and Spirakis 2006).
        keys = {i: rng.random() ** (1 / weight) for i, weight in self.failures.items()}
        again = sorted(keys, key=keys.__getitem__, reverse=True)[:wanted]
        taken = set(again)
        fresh = rng.sample(range(self._count), self._per_step)
        return (again + [i for i in fresh if i not in taken])[: self._per_step]

    def record(self, task: int, scores: Sequence[float]) -> None:
        """What the attempts at a task scored, from 0 to 1; none is no news."""
        if not scores:
            return
        self.failures.pop(task, None)
        failure = 1.0 - sum(scores) / len(scores)
        if failure > 0:
            self.failures[task] = min(1.0, failure)
