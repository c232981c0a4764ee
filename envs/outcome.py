"""The outcome rule at an environment's boundary (DESIGN §2).

What goes wrong inside an environment becomes the end of the episode, with its cause in `info`,
never an exception: a rollout of thousands of episodes and a plain Gymnasium loop both go on.
Everything that steps environments does so through these three functions.
"""

from __future__ import annotations

import logging
import math
import traceback
from typing import TYPE_CHECKING, Any

from gymnasium.error import ResetNeeded

from palestra.envs.spaces import Action, Observation
from palestra.types import Failure, Outcome, Unscorable

if TYPE_CHECKING:
    from palestra.envs.env import Env, Step

_log = logging.getLogger(__name__)

# A tool or environment that calls `sys.exit` must not take the process with it.
_TROUBLE = (Exception, SystemExit)


class UsageError(ValueError):
    """The caller used an environment wrongly. It is raised, never turned into an outcome."""


# What the caller did wrong is the caller's to hear.
_MISUSE = (UsageError, ResetNeeded)


async def guarded_reset(
    env: Env, *, seed: int | None = None, options: dict[str, Any] | None = None
) -> tuple[Observation, dict[str, Any]]:
    """`env.areset`; on trouble an empty observation, and every step until the next reset fails.

    `info["outcome"]` is present only in case of trouble.
    """
    env.broken = None
    try:
        return await env.areset(seed=seed, options=options)
    except _MISUSE:
        raise
    except _TROUBLE as error:
        env.broken = await _blame(env, error)
        return (), dict(env.broken)


async def guarded_step(env: Env, action: Action) -> Step:
    """`env.astep`, scored if it ended the episode.

    On the last step `info["outcome"]` is "scored" (with "score" and "stop_reason") or "unscorable"
    or "failed" (with "cause" and "detail"; the reward is 0.0 and the step truncated).
    """
    if env.broken is not None:
        return (), 0.0, False, True, dict(env.broken)
    try:
        step = await env.astep(action)
        observation, reward, terminated, truncated, info = step
        if not math.isfinite(reward):
            raise Failure("env", f"a reward must be finite, got {reward}")
        if (terminated or truncated) and "outcome" not in info:
            stop_reason = info.get("stop_reason", "env")
            return await env.finish(
                observation, info, reward=reward, terminated=terminated, stop_reason=stop_reason
            )
        return step
    except _MISUSE:
        raise
    except _TROUBLE as error:
        return (), 0.0, False, True, await _blame(env, error)


async def guarded_score(env: Env, stop_reason: str) -> Step:
    """End and score an episode for a reason outside the environment, such as "deadline"."""
    if env.broken is not None:
        return (), 0.0, False, True, dict(env.broken)
    try:
        return await env.finish((), {}, terminated=False, stop_reason=stop_reason)
    except _MISUSE:
        raise
    except _TROUBLE as error:
        return (), 0.0, False, True, await _blame(env, error)


async def release(env: Env) -> None:
    """`env.arelease`; trouble there is logged, because the verdict is already in."""
    try:
        await env.arelease()
    except _TROUBLE:
        _log.warning("%s could not be released", type(env).__name__, exc_info=True)


async def _blame(env: Env, error: BaseException) -> dict[str, Any]:
    """Release the episode and say in `info` whose fault its end was."""
    await release(env)
    if isinstance(error, Unscorable):
        outcome, cause, detail = Outcome.UNSCORABLE, error.cause, str(error)
    elif isinstance(error, Failure):
        outcome, cause, detail = Outcome.FAILED, error.cause, error.detail
    else:
        outcome, cause, detail = Outcome.FAILED, "env", _describe(error)
    _log.info("episode %s: %s: %s", outcome, cause, detail, exc_info=error)
    return {"outcome": outcome, "cause": cause, "detail": detail, "stop_reason": "failed"}


def _describe(error: BaseException) -> str:
    """For example `KeyError: 'x' (at shop.py:31)`."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
