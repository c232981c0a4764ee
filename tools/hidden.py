"""What a tool is given without the model knowing: its episode's state and sandbox, and its time."""

from __future__ import annotations

from dataclasses import dataclass

from palestra.tools.sandboxes.sandbox import Sandbox
from palestra.tools.state import State


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """How long a call may take: the tool's `timeout_s`.

    Only for tools that end by themselves, with what they have so far: nothing else ends a call of
    an asynchronous tool that asks for it.
    """

    seconds: float


# Parameters of these types are given by the environment and absent from a tool's schema.
HIDDEN_TYPES: tuple[type, ...] = (State, Sandbox, TimeLimit)
