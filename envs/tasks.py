"""`TaskSet`: the tasks of one split, read once and then shared."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from palestra.envs.task_rows import task_from_row
from palestra.envs.task_sources import rows
from palestra.types import Task


class TaskSet(Sequence[Task]):
    """Tasks with distinct ids, in a fixed order.

    Gymnasium deep-copies the arguments of every environment it makes; a deep copy of a task set
    is the set itself.

    Raises:
        ValueError: no tasks, or two with the same id.
    """

    def __init__(self, tasks: Iterable[Task], *, name: str = "tasks", split: str = "train") -> None:
        self._tasks = tuple(tasks)
        self.name = name
        self.split = split
        if not self._tasks:
            raise ValueError(f'{name} has no tasks in split "{split}"')
        if len(self._by_id) < len(self._tasks):
            first_seen: dict[str, int] = {}
            for index, task in enumerate(self._tasks):
                if (earlier := first_seen.setdefault(task.id, index)) != index:
                    raise ValueError(
                        f'{name}: tasks {earlier} and {index} have the same id "{task.id}"; '
                        f"ids must differ (leave them out to have them numbered)"
                    )

    @staticmethod
    def load(
        source: Any, *, split: str = "train", seed: int = 0, limit: int | None = None
    ) -> TaskSet:
        """Read the first `limit` tasks of a split from any source.

        `source` is a `TaskSet` (taken as it is, whatever its split), a sequence of tasks or rows,
        the path of a .jsonl file or of a folder of `{split}.jsonl`, "hf:owner/name", a
        `datasets.Dataset` or `DatasetDict`, a function that yields rows (called with `split` and
        `seed` as far as it takes them; it may be endless if there is a limit), or a mapping from
        split to any of these. For rows see `task_from_row`; tasks without an id get
        "{split}-{index}".

        Raises:
            ValueError: unreadable source, unknown split, bad row (named by file and line), no
                task, or ids that are not distinct.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        if isinstance(source, TaskSource):
            return source.load(split=split, seed=seed, limit=limit)
        if isinstance(source, TaskSet):
            return source if limit is None else source[:limit]
        return TaskSet(
            (
                task_from_row(row, where=where, default_id=f"{split}-{index}")
                for index, (where, row) in enumerate(
                    rows(source, split=split, seed=seed, limit=limit)
                )
            ),
            name=source if isinstance(source, str) else "tasks",
            split=split,
        )

    @cached_property
    def _by_id(self) -> dict[str, Task]:
        return {task.id: task for task in self._tasks}

    def by_id(self, task_id: str) -> Task:
        """The task with this id. Raises ValueError, naming the nearest id, if there is none."""
        try:
            return self._by_id[task_id]
        except KeyError:
            nearest = difflib.get_close_matches(task_id, self._by_id, n=1, cutoff=0)
            raise ValueError(
                f'no task "{task_id}" in {self!r}; did you mean "{nearest[0]}"?'
            ) from None

    def sample(self, rng: np.random.Generator) -> Task:
        """One task, each equally likely."""
        return self._tasks[int(rng.integers(len(self._tasks)))]

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> TaskSet: ...
    def __getitem__(self, index: int | slice) -> Task | TaskSet:
        if isinstance(index, slice):
            return TaskSet(self._tasks[index], name=self.name, split=self.split)
        return self._tasks[index]

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskSet:
        return self

    def __repr__(self) -> str:
        return f'TaskSet({self.name}, split="{self.split}", {len(self)} tasks)'


class TaskSource:
    """What an environment was registered with: read once per split, seed and limit.

    A deep copy of it is itself, so that all environments made from one id share their tasks.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self._loaded: dict[tuple[str, int, int | None], TaskSet] = {}

    @staticmethod
    def of(source: Any) -> TaskSource:
        """The source itself if it is one already."""
        return source if isinstance(source, TaskSource) else TaskSource(source)

    def load(self, *, split: str = "train", seed: int = 0, limit: int | None = None) -> TaskSet:
        """See `TaskSet.load`."""
        key = (split, seed, limit)
        if key not in self._loaded:
            self._loaded[key] = TaskSet.load(self.source, split=split, seed=seed, limit=limit)
        return self._loaded[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskSource:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_loaded": {}}

    def __repr__(self) -> str:
        return f"TaskSource({self.source!r:.80})"
