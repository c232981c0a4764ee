"""`RemoteEpisodes`: recorded episodes of agents elsewhere, which open and close them by request."""

from __future__ import annotations

import asyncio
import difflib
import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium

from palestra.rollout.env_pool import EnvPool
from palestra.rollout.episode import DEFAULT_LIMITS, DEFAULT_SAMPLING, Limits, env_id
from palestra.rollout.policy import TokenPolicy
from palestra.rollout.recorder import Recorder
from palestra.rollout.serving.agent_episode import AgentEpisode
from palestra.rollout.serving.agents import AgentTask
from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.gateway import Gateway
from palestra.types import Episode, Failure, Sampling, Task

_log = logging.getLogger(__name__)

# Closed episodes whose result is still told to those who ask.
_MOST_RESULTS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeResult:
    """What closing an episode answers; see `Episode`."""

    id: str
    task_id: str
    outcome: str
    score: float | None
    reward: float | None
    stop_reason: str
    cause: str | None
    detail: str
    turns: int

    @staticmethod
    def of(episode: Episode) -> EpisodeResult:
        """The result of an episode that has ended."""
        scored = episode.score is not None
        return EpisodeResult(
            id=episode.id,
            task_id=episode.task.id,
            outcome=str(episode.outcome),
            score=episode.score.value if episode.score is not None else None,
            reward=episode.reward if scored else None,
            stop_reason=episode.stop_reason,
            cause=episode.cause,
            detail=episode.detail,
            turns=len(episode.turns),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeState:
    """How an episode stands: "open", "closing" while it is judged, or "closed" with its result."""

    status: Literal["open", "closing", "closed"]
    turns: int
    result: EpisodeResult | None = None


class RemoteEpisodes:
    """Opens episodes of an environment's tasks, and has them judged when they are closed.

    An episode that is neither used nor closed for `idle_timeout_s` is abandoned: it ends as
    `failed` with the cause "agent:abandoned". `make_env` makes an environment of a split.

    Raises:
        ValueError: the environment has no such `split`, or a number is out of range.
    """

    def __init__(
        self,
        gateway: Gateway,
        policy: TokenPolicy,
        make_env: Callable[[str], gymnasium.Env[Any, Any]],
        *,
        recorder: Recorder | None = None,
        split: str = "train",
        limits: Limits = DEFAULT_LIMITS,
        sampling: Sampling = DEFAULT_SAMPLING,
        seed: int = 0,
        idle_timeout_s: float = 600.0,
        max_open: int = 10_000,
    ) -> None:
        if not idle_timeout_s > 0:
            raise ValueError(f"idle_timeout_s must be positive, got {idle_timeout_s}")
        self._gateway = gateway
        self._policy = policy
        self._make_env = make_env
        self._recorder = recorder
        self._split = split
        self._limits = limits
        self._sampling = sampling
        self._seed = seed
        self._idle_timeout_s = idle_timeout_s
        self._max_open = max_open
        self._splits: dict[str, _Split] = {}
        self._open: dict[str, _Open] = {}
        self._results: OrderedDict[str, EpisodeResult] = OrderedDict()
        self._split_named(split)

    async def open(self, task_id: str | None = None, split: str | None = None) -> AgentTask:
        """Begin an episode of a task, or of the one whose turn it is.

        Its URLs are paths where the gateway does not know its own address.

        Raises:
            ApiError: 400 for an unknown task or split, 429 with too many open, 503 if the
                environment could not begin.
        """
        if len(self._open) >= self._max_open:
            raise ApiError(
                429,
                f"{len(self._open)} episodes are open: close some first",
                code="too_many_episodes",
                retry_after_s=1.0,
            )
        try:
            chosen = self._split_named(split or self._split)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value", param="split") from None
        try:
            task, sample = chosen.pick(task_id)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value", param="task_id") from None
        agent = _Remote(self._gateway, self._idle_timeout_s)
        playing = asyncio.create_task(self._play(agent, chosen.envs, task, sample))
        await asyncio.wait((playing, agent.begun), return_when=asyncio.FIRST_COMPLETED)
        if not agent.begun.done():
            episode = playing.result()
            raise ApiError(
                503,
                f"the episode could not begin: {episode.cause}: {episode.detail}",
                code="episode_failed",
            )
        begun = agent.begun.result()
        if begun.api_key not in self._results:
            self._open[begun.api_key] = _Open(agent=agent, playing=playing)
        return begun

    async def close(self, key: str, answer: str | None = None) -> EpisodeResult:
        """End an episode and have it judged; again, it is the same result, whatever the answer.

        Raises:
            ApiError: 404 for a key that never was, or is long forgotten; 503 if the episode could
                not be recorded: make room and close it again.
        """
        if (result := self._results.get(key)) is not None:
            return result
        opened = self._opened(key)
        opened.agent.answer(answer)
        # Whoever asks may go away: the episode ends all the same.
        episode = await asyncio.shield(opened.playing)
        try:
            return self._keep(key, episode)
        except OSError as error:
            raise ApiError(503, str(error), code="not_recorded", retry_after_s=1.0) from error

    def has(self, key: str | None) -> bool:
        """Whether it is the key of an episode."""
        return key is not None and self._gateway.knows(key)

    def state(self, key: str) -> EpisodeState:
        """How an episode stands.

        Raises:
            ApiError: 404, as `close`.
        """
        if (result := self._results.get(key)) is not None:
            return EpisodeState(status="closed", turns=result.turns, result=result)
        if self._opened(key).playing.done() or not self._gateway.is_open(key):
            return EpisodeState(status="closing", turns=0)
        return EpisodeState(status="open", turns=len(self._gateway.find(key).turns))

    async def aclose(self) -> None:
        """End all open episodes as `failed`, record them and close the environments."""
        playing = [opened.playing for opened in self._open.values()]
        for opened in self._open.values():
            opened.agent.fail(Failure("gateway", "it was shut down"))
        await asyncio.gather(*playing)
        for split in self._splits.values():
            await split.envs.close()

    def _opened(self, key: str) -> _Open:
        if (opened := self._open.get(key)) is None:
            raise ApiError(404, "there is no such episode", code="unknown_episode")
        return opened

    def _split_named(self, name: str) -> _Split:
        """Raises ValueError if the environment has no such split, or no sequence of tasks."""
        if name not in self._splits:
            pool = EnvPool(lambda: self._make_env(name))
            env = pool.peek()
            tasks: Sequence[Task] = getattr(env, "tasks", ())
            if not tasks:
                raise ValueError(f'{env_id(env)} has no `tasks` in split "{name}"')
            self._splits[name] = _Split(tasks, pool)
        return self._splits[name]

    async def _play(self, agent: _Remote, envs: EnvPool, task: Task, sample: int) -> Episode:
        env = envs.take()
        episode = await AgentEpisode(
            env=env,
            policy=self._policy,
            task=task,
            limits=self._limits,
            sampling=self._sampling,
            seed=self._seed,
            sample=sample,
            attempt=0,
            agent=agent,
            gateway=self._gateway,
        ).play()
        await envs.give_back(env, episode)
        try:
            self._keep(agent.key, episode)
        except OSError:  # closing it tries again
            _log.exception("episode %s is not recorded", episode.id)
        return episode

    def _keep(self, key: str | None, episode: Episode) -> EpisodeResult:
        """Record an episode that has ended, once. Raises OSError, and may then be tried again."""
        if key is not None and key in self._results:
            return self._results[key]
        if self._recorder is not None:
            self._recorder.append(episode)
        result = EpisodeResult.of(episode)
        if key is not None:
            self._results[key] = result
            self._open.pop(key, None)
        if len(self._results) > _MOST_RESULTS:
            self._results.popitem(last=False)
        return result


class _Split:
    """The tasks of a split in turn, and environments for them."""

    def __init__(self, tasks: Sequence[Task], envs: EnvPool) -> None:
        self.envs = envs
        self._by_id = {task.id: task for task in tasks}
        self._turn = itertools.cycle(tasks)
        self._samples: Counter[str] = Counter()

    def pick(self, task_id: str | None) -> tuple[Task, int]:
        """A task, the next one if None, and which sample of it this is. Raises ValueError."""
        if task_id is None:
            task = next(self._turn)
        elif task_id in self._by_id:
            task = self._by_id[task_id]
        else:
            near = difflib.get_close_matches(task_id, self._by_id, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no task {task_id!r:.80}{hint}")
        self._samples[task.id] += 1
        return task, self._samples[task.id] - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Open:
    agent: _Remote
    playing: asyncio.Task[Episode]


class _Remote:
    """Stands for an agent that runs elsewhere: it waits for the answer."""

    def __init__(self, gateway: Gateway, idle_timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[AgentTask] = loop.create_future()
        self._ended: asyncio.Future[str | None] = loop.create_future()
        self._gateway = gateway
        self._idle_timeout_s = idle_timeout_s

    @property
    def key(self) -> str | None:
        """Of its episode, once that has begun."""
        return self.begun.result().api_key if self.begun.done() else None

    async def __call__(self, task: AgentTask) -> str | None:
        session = self._gateway.find(task.api_key)
        self.begun.set_result(task)
        while not self._ended.done():
            left_s = self._idle_timeout_s - session.idle_s
            if left_s <= 0:
                raise Failure(
                    "agent:abandoned",
                    f"it was neither used nor closed for {self._idle_timeout_s:g} s",
                )
            await asyncio.wait((self._ended,), timeout=left_s)
        return self._ended.result()

    def answer(self, answer: str | None) -> None:
        """The agent's, when it closes the episode; a second one counts for nothing."""
        if not self._ended.done():
            self._ended.set_result(answer)

    def fail(self, failure: Failure) -> None:
        """End the episode otherwise."""
        if not self._ended.done():
            self._ended.set_exception(failure)
