"""Rollouts: policies, engines, the chat format, the driver and evaluation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat
    from palestra.rollout.driver import rollout
    from palestra.rollout.engine import Engine
    from palestra.rollout.episode import Limits, run_episode
    from palestra.rollout.policy import (
        ContextFull,
        OraclePolicy,
        Policy,
        ScriptedPolicy,
        TokenPolicy,
        tool_call,
    )
    from palestra.rollout.random_policy import RandomPolicy
    from palestra.rollout.recorder import Recorder, read_episodes

# `evaluate` is missing on purpose: its module has that name too, and importing it would make
# `palestra.rollout.evaluate` the module for some importers and the function for others.
__all__ = [
    "ChatFormat",
    "ContextFull",
    "Engine",
    "Limits",
    "OraclePolicy",
    "Policy",
    "RandomPolicy",
    "Recorder",
    "ScriptedPolicy",
    "TokenPolicy",
    "read_episodes",
    "rollout",
    "run_episode",
    "tool_call",
]

# Gymnasium and tokenizers are slow to import, so each name is fetched when first used.
_HOME = {
    "ChatFormat": "chat_format",
    "ContextFull": "policy",
    "Engine": "engine",
    "Limits": "episode",
    "OraclePolicy": "policy",
    "Policy": "policy",
    "RandomPolicy": "random_policy",
    "Recorder": "recorder",
    "ScriptedPolicy": "policy",
    "TokenPolicy": "policy",
    "read_episodes": "recorder",
    "rollout": "driver",
    "run_episode": "episode",
    "tool_call": "policy",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'palestra.rollout' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"palestra.rollout.{_HOME[name]}"), name)
    globals()[name] = value
    return value
