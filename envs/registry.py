"""Environments by id, in Gymnasium's own registry.

Importing this module registers the built-in environments and those that installed packages
declare under the entry point group "palestra.envs" (`"acme/Sum-v0" = "acme.envs:SumEnv"`); none
of them is imported before it is made.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, parse_env_id

# Nothing else of palestra is imported here: this module may be running because another one of
# ours is in the middle of importing Gymnasium (see `on_gymnasium`).
if TYPE_CHECKING:
    from palestra.envs.env import Env

NAMESPACE = "palestra"
ENTRY_POINT_GROUP = "palestra.envs"

_BUILT_IN = {"palestra/Arithmetic-v0": "palestra.envs.arithmetic:ArithmeticEnv"}
_ids: list[str] = []


def register(
    id: str,
    entry_point: str | Callable[..., Env],
    *,
    max_episode_steps: int | None = None,
    reward_threshold: float | None = None,
    nondeterministic: bool = False,
    force: bool = False,
    **kwargs: Any,
) -> None:
    """Make `entry_point(**kwargs)` available as `id`, to palestra and to Gymnasium.

    An id without a namespace goes under "palestra/". `entry_point` is a class, a function or
    "module:name", imported when first made. `tasks=` arrives there as a `TaskSource`, which
    `ToolEnv` and `TaskSet.load` read.

    Raises:
        ValueError: malformed id, or one that is taken (unless `force`).
    """
    id = _full_id(id)
    if id in gymnasium.registry:
        if not force:
            raise ValueError(f'"{id}" is already registered; pass force=True to replace it')
        del gymnasium.registry[id]
    if "tasks" in kwargs:
        from palestra.envs.tasks import TaskSource

        kwargs["tasks"] = TaskSource.of(kwargs["tasks"])
    try:
        gymnasium.register(
            id,
            entry_point,
            max_episode_steps=max_episode_steps,
            reward_threshold=reward_threshold,
            nondeterministic=nondeterministic,
            kwargs=kwargs,
        )
    except gymnasium.error.Error as error:
        raise ValueError(str(error)) from None
    if id not in _ids:
        _ids.append(id)


def make(id: str, **kwargs: Any) -> Env:
    """The environment itself, for asynchronous use; `gymnasium.make` gives it in wrappers.

    Raises:
        ValueError: unknown id (the nearest one is named), or arguments it cannot be made with.
    """
    from palestra.envs.env import Env

    found = spec(id)
    try:
        env = gymnasium.make(found, **kwargs).unwrapped
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        # Gymnasium adds all other arguments, in full.
        reason = str(error).partition(" was raised from")[0]
        raise ValueError(f'"{found.id}" cannot be made so: {reason}') from None
    if not isinstance(env, Env):
        raise ValueError(f'"{found.id}" is a {type(env).__name__}, not a palestra environment')
    return env


def spec(id: str) -> EnvSpec:
    """Gymnasium's specification of an id.

    "module:Name-v0" imports the module first, which registers it, as `gymnasium.make` does.

    Raises:
        ValueError: unknown id (the nearest one is named), or no such module.
    """
    module, colon, name = id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}: is it installed, or on PYTHONPATH?") from None
    full_id = _full_id(name)
    if full_id in gymnasium.registry:
        return gymnasium.registry[full_id]
    nearest = difflib.get_close_matches(full_id, _ids, n=1, cutoff=0)
    hint = f'; did you mean "{nearest[0]}"?' if nearest else ""
    raise ValueError(f'unknown environment "{id}"{hint}')


def list_ids() -> list[str]:
    """Every id registered with palestra, sorted."""
    return sorted(id for id in _ids if id in gymnasium.registry)


def _full_id(id: str) -> str:
    if "/" not in id:
        id = f"{NAMESPACE}/{id}"
    try:
        parse_env_id(id)
        well_formed = ":" not in id  # Gymnasium registers such ids but cannot make them
    except gymnasium.error.Error:
        well_formed = False
    if not well_formed:
        raise ValueError(f'malformed environment id "{id}": write Name-v0 or namespace/Name-v0')
    return id


def _register_known() -> None:
    for id, entry_point in _BUILT_IN.items():
        register(id, entry_point)
    for found in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            register(found.name, found.value)
        except ValueError as error:  # one bad package must not take the others down
            warnings.warn(f"entry point {found.name!r} is skipped: {error}", stacklevel=2)


_register_known()
