"""Gymnasium environments for tool-using language-model agents."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palestra.envs.check import check
    from palestra.envs.env import Env, Step
    from palestra.envs.outcome import UsageError, guarded_reset, guarded_score, guarded_step
    from palestra.envs.registry import list_ids as list
    from palestra.envs.registry import make, register, spec
    from palestra.envs.spaces import Chat, Reply
    from palestra.envs.tasks import TaskSet
    from palestra.envs.tool_env import ToolEnv

__all__ = [
    "Chat",
    "Env",
    "Reply",
    "Step",
    "TaskSet",
    "ToolEnv",
    "UsageError",
    "check",
    "guarded_reset",
    "guarded_score",
    "guarded_step",
    "list",
    "make",
    "register",
    "spec",
]

# Gymnasium is slow to import, so each name is fetched from its module when first used.
_HOME = {
    "Chat": "spaces:Chat",
    "Env": "env:Env",
    "Reply": "spaces:Reply",
    "Step": "env:Step",
    "TaskSet": "tasks:TaskSet",
    "ToolEnv": "tool_env:ToolEnv",
    "UsageError": "outcome:UsageError",
    "check": "check:check",
    "guarded_reset": "outcome:guarded_reset",
    "guarded_score": "outcome:guarded_score",
    "guarded_step": "outcome:guarded_step",
    "list": "registry:list_ids",
    "make": "registry:make",
    "register": "registry:register",
    "spec": "registry:spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'palestra.envs' has no attribute {name!r}")
    module, attribute = _HOME[name].split(":")
    value = getattr(importlib.import_module(f"palestra.envs.{module}"), attribute)
    globals()[name] = value
    return value
