"""The driver: plays many episodes at once and yields them, or whole groups, as they end.

Nothing that goes wrong in one episode holds or harms another, and leaving early leaves nothing
running behind.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, nullcontext
from typing import Any

import gymnasium

from palestra.envs.env import Env
from palestra.rollout.earlier import Earlier
from palestra.rollout.env_pool import EnvPool
from palestra.rollout.episode import (
    CANCELLED,
    DEFAULT_LIMITS,
    DEFAULT_SAMPLING,
    EpisodeInProgress,
    Limits,
    is_final,
    run_episode,
)
from palestra.rollout.groups import EpisodeGroup, GroupKey, Groups, group_key
from palestra.rollout.policy import Policy
from palestra.rollout.recorder import Recorder
from palestra.rollout.slots import Slots
from palestra.types import Episode, Sampling, Task

__all__ = ["Limits", "rollout", "rollout_groups", "run_episode"]


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
    resume: Iterable[Episode] = (),
    slots: Slots | None = None,
    enough: asyncio.Event | None = None,
    make_episode: Callable[..., EpisodeInProgress] = EpisodeInProgress,
) -> AsyncGenerator[Episode, None]:
    """Play `n_per_task` episodes of each task and yield them as they end.

    An episode that is not scored is yielded and then attempted again, up to `max_attempts` times.
    Where the environment's verifier judges all episodes of a task together, they come together.
    At most `max_concurrent` are in progress or waiting to be taken, so `tasks` may be endless.
    Environments are made as needed and reused. Leave early through `contextlib.aclosing`, which
    cancels what is in progress; nothing stays behind.

    Args:
        resume: episodes of an interrupted rollout with the same arguments (`read_episodes` has
            what a recorder saved). They are yielded again but not played or recorded again.
        slots: the engine's places, shared fairly with other rollouts that are given the same.
        enough: once set, no further episode begins and those in progress are cancelled. They are
            yielded and recorded as `failed` with the cause "cancelled".
        make_episode: how an episode is played, `AgentEpisode` for one; called with the arguments of
            `EpisodeInProgress`.

    Raises:
        ValueError: a number out of range, `make_env` makes something else than a palestra Env,
            its verifier judges more episodes together than `max_concurrent`, or an episode to
            resume is of another seed or task.
        OSError: the recorder cannot write.
    """
    _check(n_per_task=n_per_task, max_concurrent=max_concurrent, max_attempts=max_attempts)
    envs = EnvPool(make_env)
    groups = Groups(n_per_task, room=max_concurrent)
    earlier = Earlier(resume, seed=seed, max_attempts=max_attempts)
    if earlier:
        earlier.drop_incomplete_groups(getattr(envs.peek(), "verifier", None), n_per_task)
    room = asyncio.Semaphore(max_concurrent)
    lane = nullcontext() if slots is None else slots.lane()
    in_progress: set[asyncio.Task[Any]] = set()
    cut_off: set[asyncio.Task[Any]] = set()
    enough = enough or asyncio.Event()
    # An episode and whether it was its sample's last attempt; None after all of them.
    finished: asyncio.Queue[tuple[Episode, bool] | None] = asyncio.Queue()

    async def play_once(env: Env, task: Task, sample: int, attempt: int) -> Episode:
        playing = asyncio.current_task()
        assert playing is not None
        episode = make_episode(
            env=env,
            policy=policy,
            task=task,
            limits=limits,
            sampling=sampling,
            seed=seed,
            sample=sample,
            attempt=attempt,
            lane=lane,
        )
        in_progress.add(playing)
        try:
            return await episode.play()
        except asyncio.CancelledError:
            if playing not in cut_off:
                raise
            playing.uncancel()
            return await episode.cut_off()
        finally:
            in_progress.discard(playing)

    async def play(task: Task, sample: int, first_attempt: int) -> None:
        for attempt in range(first_attempt, max_attempts):
            if enough.is_set():
                room.release()
                break
            env = envs.take()
            episode = await play_once(env, task, sample, attempt)
            await envs.give_back(env, episode)
            is_last = is_final(episode, max_attempts)
            verifier = getattr(env, "verifier", None)
            finish(await groups.add(verifier, episode) if is_last else (episode,), is_last)
            if is_last:
                break

    def finish(episodes: Iterable[Episode], is_last: bool) -> None:
        judged = tuple(episodes)
        if recorder is not None and judged:
            recorder.append(*judged)
        for episode in judged:
            finished.put_nowait((episode, is_last))

    async def play_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for task, sample in _samples(tasks, n_per_task):
                    await room.acquire()
                    # Let those already begun send their requests before the next is prepared.
                    await asyncio.sleep(0)
                    if enough.is_set():
                        break
                    known = earlier.take(task, sample)
                    for episode in known:
                        finished.put_nowait((episode, is_final(episode, max_attempts)))
                    if not known or not is_final(known[-1], max_attempts):
                        group.create_task(play(task, sample, len(known)))
            finish(groups.give_up(), True)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            finished.put_nowait(None)

    async def cut_off_the_rest() -> None:
        await enough.wait()
        cut_off.update(in_progress)
        for playing in in_progress:
            playing.cancel()

    background = [asyncio.create_task(play_all()), asyncio.create_task(cut_off_the_rest())]
    try:
        while (item := await finished.get()) is not None:
            episode, is_last = item
            if is_last:
                room.release()
            yield episode
        await background[0]
    finally:
        for work in background:
            work.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await envs.close()


async def rollout_groups(
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    tasks: Iterable[Task],
    policy: Policy,
    *,
    n_per_task: int,
    n_groups: int | None = None,
    max_concurrent: int = 256,
    limits: Limits = DEFAULT_LIMITS,
    sampling: Sampling = DEFAULT_SAMPLING,
    seed: int = 0,
    max_attempts: int = 2,
    recorder: Recorder | None = None,
    resume: Iterable[Episode] = (),
    slots: Slots | None = None,
    make_episode: Callable[..., EpisodeInProgress] = EpisodeInProgress,
) -> AsyncGenerator[EpisodeGroup, None]:
    """As `rollout`, but yields the episodes of a task together as soon as all have ended.

    With more tasks than `n_groups` the slowest are left behind: once so many groups are complete
    the rest is cancelled and comes last, as `surplus`. What is quickest to finish is not like the
    rest (short answers, easy tasks): training on it alone favours brevity, more so the more is
    left behind.

    Raises:
        ValueError: as `rollout`, or `n_groups` below 1.
    """
    if n_groups is not None:
        _check(n_groups=n_groups)
    enough = asyncio.Event()
    waiting: dict[GroupKey, list[Episode]] = {}
    complete = 0
    episodes = rollout(
        make_env,
        tasks,
        policy,
        n_per_task=n_per_task,
        max_concurrent=max_concurrent,
        limits=limits,
        sampling=sampling,
        seed=seed,
        max_attempts=max_attempts,
        recorder=recorder,
        resume=resume,
        slots=slots,
        enough=enough,
        make_episode=make_episode,
    )
    async with aclosing(episodes):
        async for episode in episodes:
            key = group_key(episode, n_per_task)
            group = waiting.setdefault(key, [])
            group.append(episode)
            if complete != n_groups and _is_complete(group, n_per_task, max_attempts):
                complete += 1
                if complete == n_groups:
                    enough.set()
                yield _in_order(waiting.pop(key))
    for key in sorted(waiting):
        yield _in_order(waiting[key], surplus=True)


def _is_complete(group: list[Episode], size: int, max_attempts: int) -> bool:
    final = sum(is_final(episode, max_attempts) for episode in group)
    return final == size and all(episode.cause != CANCELLED for episode in group)


def _in_order(episodes: list[Episode], *, surplus: bool = False) -> EpisodeGroup:
    in_order = sorted(episodes, key=lambda episode: (episode.sample, episode.attempt))
    return EpisodeGroup(episodes=tuple(in_order), surplus=surplus)


def _samples(tasks: Iterable[Task], n_per_task: int) -> Iterator[tuple[Task, int]]:
    """Each task with its sample numbers; a task that comes again goes on counting."""
    counts: Counter[str] = Counter()
    for task in tasks:
        for _ in range(n_per_task):
            yield task, counts[task.id]
            counts[task.id] += 1


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
