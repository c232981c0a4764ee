"""Rollouts: policies, engines, the chat format, the driver and evaluation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat
    from palestra.rollout.driver import rollout, rollout_groups
    from palestra.rollout.endpoint_policy import EndpointPolicy
    from palestra.rollout.engine import Engine
    from palestra.rollout.episode import Limits, count_rewrites, run_episode
    from palestra.rollout.groups import EpisodeGroup
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
    from palestra.rollout.router import RoutedEngine
    from palestra.rollout.slots import Slots

# `evaluate` is missing on purpose: its module has that name too, and importing it would make
# `palestra.rollout.evaluate` the module for some importers and the function for others.
__all__ = [
    "ChatFormat",
    "ContextFull",
    "EndpointPolicy",
    "Engine",
    "EpisodeGroup",
    "Limits",
    "OraclePolicy",
    "Policy",
    "RandomPolicy",
    "Recorder",
    "RoutedEngine",
    "ScriptedPolicy",
    "Slots",
    "TokenPolicy",
    "count_rewrites",
    "read_episodes",
    "rollout",
    "rollout_groups",
    "run_episode",
    "tool_call",
]

# Gymnasium and tokenizers are slow to import, so each name is fetched when first used.
_HOME = {
    "ChatFormat": "chat_format",
    "ContextFull": "policy",
    "EndpointPolicy": "endpoint_policy",
    "Engine": "engine",
    "EpisodeGroup": "groups",
    "Limits": "episode",
    "OraclePolicy": "policy",
    "Policy": "policy",
    "RandomPolicy": "random_policy",
    "Recorder": "recorder",
    "RoutedEngine": "router",
    "ScriptedPolicy": "policy",
    "Slots": "slots",
    "TokenPolicy": "policy",
    "count_rewrites": "episode",
    "read_episodes": "recorder",
    "rollout": "driver",
    "rollout_groups": "driver",
    "run_episode": "episode",
    "tool_call": "policy",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'palestra.rollout' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"palestra.rollout.{_HOME[name]}"), name)
    globals()[name] = value
    return value
