"""Agents: programs that somebody has written, trained through the gateway as they are.

An agent gets a task and a base URL, talks to that URL with any OpenAI or Anthropic client, runs its
own tools, and returns its answer.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from palestra.types import Message, ToolSchema
from palestra.verifiers.context import text_of


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentTask:
    """What an agent is given for an episode; the task's answer is not in it.

    `messages` and `tools` are those of the environment at its reset. An agent may use them or bring
    its own: what trains is what it sends. `base_url` is for OpenAI clients, `anthropic_base_url`
    for Anthropic's; any model name will do. `api_key` opens this episode alone.
    """

    id: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    base_url: str
    anthropic_base_url: str
    api_key: str

    @property
    def prompt(self) -> str:
        """The text of the last message: the question."""
        return text_of(self.messages[-1]) if self.messages else ""


# What it returns is its answer, for the verifier; None: the policy's last reply is.
Agent = Callable[[AgentTask], Awaitable[str | None]]


class PolicyAtFault(Exception):
    """An agent raises it where the policy did what the agent cannot go on with.

    The episode ends there and is scored. Any other exception is a fault of the agent's code.
    """


# What frameworks raise in that case. An agent that uses one need not be changed to say so.
_OF_FRAMEWORKS = (
    "agents.exceptions.MaxTurnsExceeded",
    "agents.exceptions.ModelBehaviorError",
    "langgraph.errors.GraphRecursionError",
    "pydantic_ai.exceptions.UnexpectedModelBehavior",
    "pydantic_ai.exceptions.UsageLimitExceeded",
)


def is_policys_fault(error: BaseException) -> bool:
    """Whether an agent raised this because of what the policy said."""
    return isinstance(error, PolicyAtFault) or any(
        f"{kind.__module__}.{kind.__qualname__}" in _OF_FRAMEWORKS for kind in type(error).__mro__
    )


def tells_policys_fault(stderr: str) -> bool:
    """The same of a program, whose last words are Python's `module.Error: …`."""
    lines = stderr.strip().splitlines()
    kinds = (*_OF_FRAMEWORKS, f"{PolicyAtFault.__module__}.{PolicyAtFault.__qualname__}")
    return bool(lines) and lines[-1].partition(":")[0] in kinds


def load_agent(name: str) -> Agent:
    """The agent called "module:function".

    Raises:
        ValueError: no such module or function, or one that is not asynchronous: it would hold up
            the very server that it waits for.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f'an agent is named "module:function", got {name!r}')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"agent {name}: {error}: is it installed, or on PYTHONPATH?") from None
    found = getattr(module, attribute, None)
    if found is None:
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"agent {name}: {module_name} has no {attribute}{hint}")
    call = found if inspect.isroutine(found) else type(found).__call__
    if not inspect.iscoroutinefunction(call):
        raise ValueError(
            f"agent {name} must be an `async def`: run what blocks as a program of its own, with "
            "AgentProgram"
        )
    agent: Agent = found
    return agent
