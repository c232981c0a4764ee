"""Policies: what answers a conversation. Those here run in this process."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from palestra.rollout.engine_errors import ContextOverflow
from palestra.tools import parse_reply
from palestra.types import Completion, Failure, Message, Sampling, Task, ToolSchema, Turn

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat
    from palestra.rollout.engine import Engine


_log = logging.getLogger(__name__)


class Policy(Protocol):
    """Anything that replies; one object serves many episodes at once, so it keeps no state."""

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        """The next turn of the conversation `messages`.

        `history` holds this agent's earlier turns, each with what the environment observed after
        it. A model sees `messages` and `tools`; `task`, with the answer, is for oracles.

        Raises:
            ContextFull: there is no room for a reply.
            Failure: infrastructure trouble, with its cause. Any other exception counts as a
                failure of the policy.
        """
        ...


class ContextFull(Exception):
    """The conversation leaves no room for a reply in the engine's context."""


# A reply as raw text (Hermes calls and all) or as an assistant message.
Reply = str | Message


class ScriptedPolicy:
    """Says reply number n in turn n: text, a message, or a function of the conversation.

    `ScriptedPolicy([tool_call("add", a=17, b=25), "42"])` drives tests and first environments.
    """

    def __init__(self, replies: Sequence[Reply | Callable[[Sequence[Message]], Reply]]) -> None:
        if isinstance(replies, str):
            raise ValueError("replies must be a list with one entry per turn, got a single string")
        self._replies = tuple(
            parse_reply(reply) if isinstance(reply, str) else reply for reply in replies
        )

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        """The scripted reply of this turn; ValueError when the script has run out."""
        if len(history) >= len(self._replies):
            raise ValueError(
                f"the script has {len(self._replies)} replies, but turn {len(history) + 1} began: "
                "add a reply or end the episode earlier"
            )
        reply = self._replies[len(history)]
        return _turn(reply(messages) if callable(reply) else reply, sampling)


class OraclePolicy:
    """Replies by a function that knows the task and so its answer, for demonstrations and checks.

    `solve(task, messages)` gives the next reply.
    """

    def __init__(self, solve: Callable[[Task, Sequence[Message]], Reply]) -> None:
        self._solve = solve

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        """What `solve` says."""
        return _turn(self._solve(task, messages), sampling)


class TokenPolicy:
    """A language model: renders the conversation, has an engine sample, parses what comes back.

    From the second turn on the prompt is the previous ids plus the ids of the new messages, and
    the turn's `parent` is the one it extends. Where the template rewrites what came before, or the
    environment replaced the conversation, it is rendered afresh and the turn is a new root.
    """

    def __init__(self, engine: Engine, chat_format: ChatFormat) -> None:
        self.engine = engine
        self.chat_format = chat_format
        self._has_warned = False

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        """A sampled turn, with its exact ids and log-probabilities.

        Raises:
            ContextFull: the prompt leaves no room in the engine's context.
            Failure: the engine raised, aborted or returned something inconsistent.
        """
        extended = self._extend(messages, tools, history[-1]) if history else None
        prompt_ids = (
            tuple(self.chat_format.render(messages, tools)) if extended is None else extended
        )
        room = self.engine.context_length - len(prompt_ids)
        if room < 1:
            raise ContextFull(
                f"the prompt has {len(prompt_ids)} tokens, the engine's context "
                f"{self.engine.context_length}"
            )
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        try:
            completion = await self.engine.generate(prompt_ids, sampling)
        except ContextOverflow as error:  # a server's context may be smaller than it said
            raise ContextFull(str(error)) from error
        except Exception as error:
            raise Failure("engine", f"{type(error).__name__}: {error}") from error
        _check(completion, sampling)
        return Turn(
            message=self.chat_format.parse(completion.ids),
            parent=None if extended is None else len(history) - 1,
            prompt_ids=prompt_ids,
            completion_ids=completion.ids,
            logprobs=completion.logprobs,
            sampling=sampling,
            version_spans=completion.version_spans,
            stop_reason=completion.stop_reason,
        )

    def _extend(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], last: Turn
    ) -> tuple[int, ...] | None:
        if last.replaces:
            return None
        added = self.chat_format.continuation(
            last.completion_ids[-1],
            messages[: len(messages) - len(last.observation) - 1],
            last.message,
            last.observation,
            tools,
        )
        if added is not None:
            # Once over the ids: there may be a hundred thousand.
            return last.prompt_ids + (last.completion_ids + tuple(added))
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the chat template prints earlier turns otherwise than they were sampled: the "
                "conversation branches there, each time with a prompt that is computed anew "
                '(count_rewrites counts them; a chat format with history="keep" leaves them alone)'
            )
        return None


def tool_call(name: str, **arguments: Any) -> str:
    """The text with which a model calls a tool, in the Hermes form that environments parse."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _turn(reply: Reply, sampling: Sampling) -> Turn:
    message = parse_reply(reply) if isinstance(reply, str) else reply
    return Turn(message=message, sampling=sampling)


def _check(completion: Completion, sampling: Sampling) -> None:
    """An engine's mistakes must not become training data."""
    ids, logprobs = completion.ids, completion.logprobs
    if completion.stop_reason not in ("stop", "length"):
        raise Failure("engine", f"the generation ended with {completion.stop_reason!r}")
    if not 0 < len(ids) <= sampling.max_tokens:
        raise Failure("engine", f"{len(ids)} tokens came back, 1 to {sampling.max_tokens} asked")
    if len(logprobs) != len(ids):
        raise Failure("engine", f"{len(ids)} tokens came with {len(logprobs)} log-probabilities")
    if not all(map(math.isfinite, logprobs)):
        raise Failure("engine", "a log-probability is not a finite number")
