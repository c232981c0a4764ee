"""`RolloutRequest`: which episodes to play, as data that crosses processes; `play` does it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from palestra import envs
from palestra.rollout.driver import rollout
from palestra.rollout.episode import DEFAULT_LIMITS, DEFAULT_SAMPLING, EpisodeInProgress, Limits
from palestra.rollout.policy import Policy, TokenPolicy
from palestra.rollout.recorder import Recorder, read_episodes
from palestra.types import Episode, Sampling, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """`n_per_task` episodes of each of an environment's tasks, named by their ids.

    With an `agent`, "module:function", that program plays them through the gateway.
    """

    env: str
    env_args: Mapping[str, Any] = field(default_factory=dict)
    split: str
    task_ids: tuple[str, ...]
    n_per_task: int = 1
    max_concurrent: int = 256
    limits: Limits = DEFAULT_LIMITS
    sampling: Sampling = DEFAULT_SAMPLING
    seed: int = 0
    record_to: str | None = None
    agent: str | None = None

    def to_json(self) -> str:
        """One line of JSON. Raises ValueError if an argument of the environment has no JSON."""
        try:
            return json.dumps(asdict(self))
        except TypeError as error:
            raise ValueError(
                f"the arguments of {self.env} must be plain JSON to reach another process: {error}"
            ) from None

    @staticmethod
    def from_json(line: str) -> RolloutRequest:
        """Read it back."""
        data = json.loads(line)
        return RolloutRequest(
            **{
                **data,
                "task_ids": tuple(data["task_ids"]),
                "limits": Limits(**data["limits"]),
                "sampling": Sampling(**data["sampling"]),
            }
        )


def read_tasks(env_id: str, env_args: Mapping[str, Any], split: str) -> Sequence[Task]:
    """The tasks of an environment. Raises ValueError if it has no sequence of them."""
    env = envs.make(env_id, split=split, **env_args)
    try:
        tasks: Sequence[Task] | None = getattr(env, "tasks", None)
    finally:
        env.close()
    if tasks is None:
        raise ValueError(f'"{env_id}" has no `tasks`: training needs a sequence of them')
    return tasks


class TaskIndex:
    """The tasks of environments by id, read once for each environment and split."""

    def __init__(self) -> None:
        self._tasks: dict[str, Mapping[str, Task]] = {}

    def find(self, request: RolloutRequest) -> list[Task]:
        """The tasks that a request names. Raises ValueError for one that does not exist."""
        key = json.dumps([request.env, dict(request.env_args), request.split], default=str)
        if key not in self._tasks:
            every = read_tasks(request.env, request.env_args, request.split)
            self._tasks[key] = {task.id: task for task in every}
        tasks = self._tasks[key]
        for task_id in request.task_ids:
            if task_id not in tasks:
                raise ValueError(f"{request.env} has no task {task_id!r} in split {request.split}")
        return [tasks[task_id] for task_id in request.task_ids]


async def play(
    request: RolloutRequest, policy: Policy, tasks: TaskIndex
) -> AsyncGenerator[Episode, None]:
    """Play the episodes and yield them as they end; see `rollout`.

    Those that `record_to` holds already are not played again.

    Raises:
        ValueError: as `rollout`, or no such agent, or one for a policy that is no `TokenPolicy`.
    """
    recorder: Recorder | None = None
    recorded: list[Episode] = []
    if request.record_to is not None:
        recorder = Recorder(request.record_to)
        recorded = read_episodes(request.record_to)
    try:
        async with _player(request.agent, policy) as make_episode:
            episodes = rollout(
                lambda: envs.make(request.env, split=request.split, **request.env_args),
                tasks.find(request),
                policy,
                n_per_task=request.n_per_task,
                max_concurrent=request.max_concurrent,
                limits=request.limits,
                sampling=request.sampling,
                seed=request.seed,
                recorder=recorder,
                resume=recorded,
                make_episode=make_episode,
            )
            async with aclosing(episodes):
                async for episode in episodes:
                    yield episode
    finally:
        if recorder is not None:
            recorder.close()


@asynccontextmanager
async def _player(
    agent: str | None, policy: Policy
) -> AsyncGenerator[Callable[..., EpisodeInProgress], None]:
    """How episodes are played: by the policy, or by an agent through a gateway of their own."""
    if agent is None:
        yield EpisodeInProgress
        return
    from palestra.rollout.serving.agent_episode import AgentEpisode
    from palestra.rollout.serving.agents import load_agent
    from palestra.rollout.serving.gateway import Gateway
    from palestra.rollout.serving.gateway_server import run_gateway

    if not isinstance(policy, TokenPolicy):
        raise ValueError(f"agents need a TokenPolicy to talk to, got a {type(policy).__name__}")
    program = load_agent(agent)
    gateway = Gateway(policy.engine, policy.chat_format)
    async with run_gateway(gateway):
        yield partial(AgentEpisode, agent=program, gateway=gateway)
