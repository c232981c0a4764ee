"""Train tool-using language-model agents with reinforcement learning from verifiable rewards.

Everything here is imported when first used: `import palestra` is quick and needs no torch.
Gymnasium knows palestra's environments as soon as both are imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from palestra.envs.on_gymnasium import register_envs
from palestra.types import Episode, Failure, Outcome, Score, Task, ToolError, Turn, Unscorable

if TYPE_CHECKING:
    from palestra import envs, rollout, tools, trainer, verifiers
    from palestra.envs import Env, TaskSet, ToolEnv, make, register
    from palestra.tools import Sandbox, SandboxSpec, State, tool

__version__ = "0.1.0"

__all__ = [
    "Env",
    "Episode",
    "Failure",
    "Outcome",
    "Sandbox",
    "SandboxSpec",
    "Score",
    "State",
    "Task",
    "TaskSet",
    "ToolEnv",
    "ToolError",
    "Turn",
    "Unscorable",
    "envs",
    "make",
    "register",
    "rollout",
    "tool",
    "tools",
    "trainer",
    "verifiers",
]

_HOME = {
    "Env": "palestra.envs",
    "Sandbox": "palestra.tools",
    "SandboxSpec": "palestra.tools",
    "State": "palestra.tools",
    "TaskSet": "palestra.envs",
    "ToolEnv": "palestra.envs",
    "make": "palestra.envs",
    "register": "palestra.envs",
    "tool": "palestra.tools",
}
_SUBPACKAGES = ("envs", "rollout", "tools", "trainer", "verifiers")


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"palestra.{name}")
    if name in _HOME:
        value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'palestra' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_envs()
