"""The driver: plays many episodes at once and yields them as they end.

Nothing that goes wrong in one episode holds or harms another, and leaving early leaves nothing
running behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Any

import gymnasium

from palestra.envs.env import Env
from palestra.rollout.deadline import within
from palestra.rollout.episode import (
    DEFAULT_LIMITS,
    DEFAULT_SAMPLING,
    Limits,
    env_id,
    run_episode,
)
from palestra.rollout.groups import Groups
from palestra.rollout.policy import Policy
from palestra.rollout.recorder import Recorder
from palestra.types import Episode, Outcome, Sampling, Task

__all__ = ["Limits", "rollout", "run_episode"]

_log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 10.0


async def rollout(
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    tasks: Iterable[Task],
    policy: Policy,
    *,
    n_per_task: int = 1,
    max_concurrent: int = 256,
    limits: Limits = DEFAULT_LIMITS,
    sampling: Sampling = DEFAULT_SAMPLING,
    seed: int = 0,
    max_attempts: int = 2,
    recorder: Recorder | None = None,
) -> AsyncGenerator[Episode, None]:
    """Play `n_per_task` episodes of each task and yield them as they end.

    An episode that is not scored is yielded and then attempted again, up to `max_attempts` times.
    Where the environment's verifier judges all episodes of a task together, they come together.
    At most `max_concurrent` are in progress or waiting to be taken, so `tasks` may be endless.
    Environments are made as needed and reused. Leave early through `contextlib.aclosing`, which
    cancels what is in progress; nothing stays behind.

    Raises:
        ValueError: a number out of range, `make_env` makes something else than a palestra Env, or
            its verifier judges more episodes together than `max_concurrent`.
        OSError: the recorder cannot write.
    """
    for name, number in {
        "n_per_task": n_per_task,
        "max_concurrent": max_concurrent,
        "max_attempts": max_attempts,
    }.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    envs = _EnvPool(make_env)
    groups = Groups(n_per_task, room=max_concurrent)
    room = asyncio.Semaphore(max_concurrent)
    # An episode and whether it was its sample's last attempt; None after all of them.
    finished: asyncio.Queue[tuple[Episode, bool] | None] = asyncio.Queue()

    async def play(task: Task, sample: int) -> None:
        for attempt in range(max_attempts):
            env = envs.take()
            episode = await run_episode(
                env,
                policy,
                task,
                limits=limits,
                sampling=sampling,
                seed=seed,
                sample=sample,
                attempt=attempt,
            )
            await envs.give_back(env, episode)
            is_last = episode.outcome is Outcome.SCORED or attempt == max_attempts - 1
            verifier = getattr(env, "verifier", None)
            for judged in await groups.add(verifier, episode) if is_last else (episode,):
                if recorder is not None:
                    recorder.append(judged)
                finished.put_nowait((judged, is_last))
            if is_last:
                break

    async def play_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for task, sample in _samples(tasks, n_per_task):
                    await room.acquire()
                    group.create_task(play(task, sample))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            finished.put_nowait(None)

    playing = asyncio.create_task(play_all())
    try:
        while (item := await finished.get()) is not None:
            episode, is_last = item
            if is_last:
                room.release()
            yield episode
        await playing
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        await envs.close()


class _EnvPool:
    """Environments to use again, except those whose last episode failed or was cut off."""

    def __init__(self, make_env: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        self._make_env = make_env
        self._idle: list[Env] = []
        self._busy: set[Env] = set()

    def take(self) -> Env:
        env = self._idle.pop() if self._idle else self._make_env().unwrapped
        if not isinstance(env, Env):
            raise ValueError(f"make_env must make a palestra Env, got a {type(env).__name__}")
        self._busy.add(env)
        return env

    async def give_back(self, env: Env, episode: Episode) -> None:
        self._busy.remove(env)
        if episode.outcome is Outcome.FAILED or episode.stop_reason == "deadline":
            await _close(env)
        else:
            self._idle.append(env)

    async def close(self) -> None:
        await asyncio.gather(*map(_close, (*self._idle, *self._busy)))


async def _close(env: Env) -> None:
    try:
        await within(_CLOSE_TIMEOUT_S, env.aclose(), cause="env")
    except Exception:
        _log.warning("%s could not be closed", env_id(env), exc_info=True)


def _samples(tasks: Iterable[Task], n_per_task: int) -> Iterator[tuple[Task, int]]:
    """Each task with its sample numbers; a task that comes again goes on counting."""
    counts: Counter[str] = Counter()
    for task in tasks:
        for _ in range(n_per_task):
            yield task, counts[task.id]
            counts[task.id] += 1
