"""`check`: does an environment keep its promises? For the tests of those who write one."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
from gymnasium.utils.env_checker import check_env, data_equivalence

from palestra.envs.env import Env
from palestra.envs.registry import make
from palestra.envs.spaces import Action, Observation
from palestra.types import Outcome

_MOST_STEPS = 100


def check(env: Env | str, *, episodes: int = 3, **kwargs: Any) -> None:
    """Pass Gymnasium's `check_env`, with warnings as errors, and palestra's own checks.

    Plays clumsy episodes: each tool is called without arguments, then anything is answered. They
    must be the same for the same seed, stay in the observation space, end within 100 steps, and be
    scored, however bad the policy.

    Raises:
        AssertionError: a promise is broken.
        ValueError: unknown id, or arguments it cannot be made with.
    """
    if isinstance(env, str):
        env = make(env, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            check_env(env, skip_render_check=env.spec is None)
        except (UserWarning, gymnasium.error.Error) as error:
            raise AssertionError(str(error)) from error
    for seed in range(episodes):
        steps = _clumsy_episode(env, seed)
        if env.spec is None or not env.spec.nondeterministic:
            again = _clumsy_episode(env, seed)
            assert data_equivalence(steps, again), f"two episodes with seed {seed} differ"


def _clumsy_episode(env: Env, seed: int) -> list[Any]:
    observation, info = env.reset(seed=seed)
    _check_observation(env, observation)
    _check_outcome(info, seed)
    steps: list[Any] = [(observation, info)]
    names = [tool["function"]["name"] for tool in info.get("tools", ())]
    actions: list[Action] = [
        f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>' for name in names
    ]
    env.action_space.seed(seed)
    for index in range(_MOST_STEPS):
        action = actions[index] if index < len(actions) else env.action_space.sample()
        step = env.step(action)
        observation, _, terminated, truncated, info = step
        steps.append(step)
        _check_observation(env, observation)
        if terminated or truncated:
            assert "outcome" in info, 'the last step has no info["outcome"]'
            _check_outcome(info, seed)
            return steps
    raise AssertionError(f"seed {seed}: an episode did not end within {_MOST_STEPS} steps")


def _check_observation(env: Env, observation: Observation) -> None:
    assert observation in env.observation_space, (
        f"an observation is a tuple of chat messages, got {observation!r:.200}"
    )


def _check_outcome(info: dict[str, Any], seed: int) -> None:
    outcome = info.get("outcome", Outcome.SCORED)
    assert outcome == Outcome.SCORED, (
        f"seed {seed}: the episode was {outcome}: {info['cause']}: {info['detail']}"
    )
