"""`Context`: the finished episode as verifiers get it, and what stands in for an empty answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from palestra.tools.sandboxes.sandbox import Sandbox
from palestra.tools.state import State
from palestra.types import Episode, Message, Outcome, Score, Task, Turn
from palestra.verifiers.verifier import Declaration

# What a verifier may ask for by parameter name. `reply` is the text of the last assistant message,
# `answer` the task's reference, `episode` the conversation as turns (without token ids, which only
# the driver has).
KNOWN_PARAMETERS = (
    "task",
    "answer",
    "reply",
    "messages",
    "episode",
    "state",
    "sandbox",
    "stop_reason",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """All that a verdict may depend on, and the time for it."""

    task: Task
    messages: Sequence[Message]
    answer: Any
    reply: str
    state: State | None
    sandbox: Sandbox | None
    fresh_sandbox: Callable[[], Sandbox] | None
    stop_reason: str
    timeout_s: float

    def argument(self, name: str) -> Any:
        """What a verifier gets for a parameter of this name, one of `KNOWN_PARAMETERS`."""
        if name == "episode":
            return episode_of(self.task, self.messages, self.stop_reason)
        return getattr(self, name)

    def without_answer(self) -> Context:
        """The same task with an empty reply right after the prompt, and no other sandbox."""
        prompt = _prompt(self.messages)
        return replace(
            self,
            reply="",
            messages=[*prompt, {"role": "assistant", "content": ""}],
        )

    def with_time(self, timeout_s: float) -> Context:
        """The same with another time limit."""
        return replace(self, timeout_s=timeout_s)


class Compound(ABC):
    """A verifier made of others, each of which is called, timed and blamed on its own."""

    declaration: Declaration

    @abstractmethod
    def __call__(self, *args: Any, **available: Any) -> Any:
        """As any other verifier."""

    @abstractmethod
    async def judge(self, context: Context) -> Score:
        """The verdict; raises Unscorable or Failure as its parts do."""


def last_reply(messages: Sequence[Message]) -> str:
    """The text of the last assistant message, its thinking left out; "" if there is none."""
    for message in reversed(messages):
        if message.get("role") == "assistant":
            return text_of(message)
    return ""


def text_of(message: Message) -> str:
    """A message's text, the text parts joined where its content is a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in it: space, control and format characters at most."""
    return not any(c.isprintable() and not c.isspace() for c in text)


def episode_of(task: Task, messages: Sequence[Message], stop_reason: str) -> Episode:
    """A conversation as an episode: turns hold messages and observations, nothing of the engine."""
    prompt = _prompt(messages)
    turns: list[Turn] = []
    for message in messages[len(prompt) :]:
        if message.get("role") == "assistant":
            parent = len(turns) - 1 if turns else None
            turns.append(Turn(message=message, parent=parent))
        else:
            turns[-1] = replace(turns[-1], observation=(*turns[-1].observation, message))
    return Episode(
        id=task.id,
        env_id="",
        task=task,
        prompt=tuple(prompt),
        turns=tuple(turns),
        outcome=Outcome.SCORED,
        stop_reason=stop_reason,
    )


def _prompt(messages: Sequence[Message]) -> list[Message]:
    prompt: list[Message] = []
    for message in messages:
        if message.get("role") == "assistant":
            break
        prompt.append(message)
    return prompt
