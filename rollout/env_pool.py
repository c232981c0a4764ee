"""`EnvPool`: environments made as needed, and used again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import gymnasium

from palestra.envs.env import Env
from palestra.rollout.deadline import within
from palestra.rollout.episode import env_id
from palestra.types import Episode, Outcome

_log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 10.0


class EnvPool:
    """Environments to use again, except those whose last episode failed or was cut off."""

    def __init__(self, make_env: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        self._make_env = make_env
        self._idle: list[Env] = []
        self._busy: set[Env] = set()

    def take(self) -> Env:
        """One that nobody uses. Raises ValueError if `make_env` makes something else."""
        env = self._idle.pop() if self._idle else self._make_env().unwrapped
        if not isinstance(env, Env):
            raise ValueError(f"make_env must make a palestra Env, got a {type(env).__name__}")
        self._busy.add(env)
        return env

    def peek(self) -> Env:
        """One to look at: the next that is taken."""
        env = self.take()
        self._busy.remove(env)
        self._idle.append(env)
        return env

    async def give_back(self, env: Env, episode: Episode) -> None:
        """After an episode."""
        self._busy.remove(env)
        if episode.outcome is Outcome.FAILED or episode.stop_reason == "deadline":
            await _close(env)
        else:
            self._idle.append(env)

    async def close(self) -> None:
        """Close all of them, also those in use."""
        await asyncio.gather(*map(_close, (*self._idle, *self._busy)))


async def _close(env: Env) -> None:
    try:
        await within(_CLOSE_TIMEOUT_S, env.aclose(), cause="env")
    except Exception:
        _log.warning("%s could not be closed", env_id(env), exc_info=True)
