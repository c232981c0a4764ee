"""What every API front end asks for and gets: a conversation in, replies out as they are sampled.

`Replier` is the seam: the front ends (chat completions, responses, messages) translate to and from
it, the served model (`model_replier.py`) and a recorded episode (`gateway_session.py`) answer it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from palestra.types import Message, Sampling, ToolSchema, Turn

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyRequest:
    """One request for `n` replies to a conversation of OpenAI chat messages.

    `tool_choice` is "auto", "none", "required" or "function", the last with the `tool_name` that
    must be called. `sampling.max_tokens` is cut to what the context has room for. A reply ends
    before the first of the `stop` strings. `top_logprobs` is None where no log-probabilities are
    wanted, 0 for those of the sampled tokens alone. Without `parallel_tool_calls` a reply ends
    after its first call.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    tool_choice: Literal["auto", "none", "required", "function"] = "auto"
    tool_name: str | None = None
    parallel_tool_calls: bool = True
    sampling: Sampling
    n: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A sampled token as the API shows it; `bytes` are its UTF-8, possibly part of a character."""

    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CallDelta:
    """More of tool call number `index` of a reply: its id and name come first, with no arguments
    yet; then its arguments, as pieces of JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyEnd:
    """How a reply ended. `message` is the whole of it, as the deltas added up; `turn` has the ids
    that were sent to the engine and sampled by it; `stop_string` is the one of the request's `stop`
    strings that ended it."""

    finish_reason: FinishReason
    message: Message
    turn: Turn
    stop_string: str | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, for usage."""
        return len(self.turn.prompt_ids)

    @property
    def completion_tokens(self) -> int:
        """Sampled tokens, for usage."""
        return len(self.turn.completion_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyDelta:
    """What one step adds to reply number `choice`; the last one of each has its `end`."""

    choice: int
    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    tokens: tuple[TokenLogprob, ...] = ()
    end: ReplyEnd | None = None


class Replier(Protocol):
    """Answers requests. `models` are the names it goes by; None: any name will do."""

    @property
    def models(self) -> tuple[str, ...] | None: ...

    def reply(self, request: ReplyRequest, *, stream: bool) -> AsyncGenerator[ReplyDelta, None]:
        """The replies, as they are sampled; without `stream` one delta for each.

        Closing the generator ends the generation.

        Raises:
            ApiError: before the first delta where the request is at fault or nobody can answer it;
                later only if the engine is lost in the middle.
        """
        ...

    def count_prompt(self, request: ReplyRequest) -> int:
        """The tokens of the prompt that the request's replies would have. Nothing is recorded.

        Raises:
            ApiError: the request is at fault.
        """
        ...
