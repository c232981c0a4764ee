"""`Request`, `Reply`, `EndpointError`: what goes to an endpoint and what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from palestra.endpoint.limits import asked_wait_s
from palestra.types import Message, ToolSchema

if TYPE_CHECKING:
    import openai

_MAX_DETAIL_CHARS = 300

# Parameters that some models refuse, and that a request can do without.
DISPENSABLE = ("response_format", "temperature", "max_tokens", "seed")

# What may be over after a while.
_PASSING = ("unreachable", "timeout", "rate_limited", "server", "malformed")


class EndpointError(Exception):
    """No usable reply, retries included.

    `kind` is "unreachable" (no connection, or one that broke), "timeout", "busy" (not even sent in
    time: other requests came first), "rate_limited", "quota" (nothing left to spend),
    "unauthorized", "not_found" (usually the model), "rejected" (another 4xx), "server" (5xx), or
    "malformed" (not a chat completion). `wait_s` is how long the server asks to wait; `parameter`
    is the one that it does not accept and `code` its own name for the trouble, where it says so.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        wait_s: float | None = None,
        parameter: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.wait_s = wait_s
        self.parameter = parameter
        self.code = code

    @property
    def may_pass(self) -> bool:
        """Whether asking again could help."""
        return self.kind in _PASSING


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A chat completion to ask for. What is None is not sent.

    `schema` is a JSON Schema that the reply is to follow, asked for as `response_format` where the
    endpoint takes it: readers must not rely on it. `extra` is added to the request's body.
    """

    model: str
    messages: Sequence[Message]
    tools: Sequence[ToolSchema] = ()
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, refused: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The request as JSON, without the parameters that its model refuses."""
        response_format = None
        if self.schema is not None:
            response_format = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": self.schema},
            }
        body = {
            "model": self.model,
            "messages": list(self.messages),
            "tools": list(self.tools) or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "response_format": response_format,
        }
        sent = {k: v for k, v in body.items() if v is not None and k not in refused}
        if "max_tokens" in refused and self.max_tokens is not None:
            sent["max_completion_tokens"] = self.max_tokens  # the name that reasoning models want
        return {**sent, **self.extra}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a model answered. `cost` is None without a price, and 0 for a `cached` reply.

    `refusal` is what some providers put in place of a text. `tool_calls` are as the server sent
    them, of any shape, and `reasoning` is what it says apart from the text. Token counts are None
    where the server gave none.
    """

    text: str
    finish_reason: str
    model: str
    refusal: str | None = None
    tool_calls: tuple[Any, ...] = ()
    reasoning: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_prompt_tokens: int = 0
    cost: float | None = None
    cached: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the model ended it by itself: neither cut off nor filtered nor refused."""
        return self.finish_reason in ("stop", "tool_calls") and self.refusal is None


def read_reply(body: str, requested_model: str) -> Reply:
    """The reply in a response's body. Raises EndpointError("malformed")."""
    try:
        data = json.loads(body)
        choice = data["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise _malformed("no chat completion", body) from None
    if text is not None and not isinstance(text, str):
        raise _malformed("a message whose content is not text", body)
    tool_calls = message.get("tool_calls") or ()
    if not isinstance(tool_calls, list | tuple):
        raise _malformed("a message whose tool_calls are no list", body)
    if text is None and refusal is None and not tool_calls and not reasoning:
        raise _malformed("a message without content", body)
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    return Reply(
        text=text or "",
        finish_reason=str(choice.get("finish_reason")),
        model=str(data.get("model") or requested_model),
        refusal=None if refusal is None else str(refusal),
        tool_calls=tuple(tool_calls),
        reasoning=reasoning if isinstance(reasoning, str) else "",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_prompt_tokens=_count(details.get("cached_tokens")) or 0,
    )


def error_of_status(error: openai.APIStatusError, api_key: str) -> EndpointError:
    """What an HTTP status above 399 means."""
    status = error.status_code
    if status == 429:
        kind = "quota" if error.code == "insufficient_quota" else "rate_limited"
    elif status in (401, 403):
        kind = "unauthorized"
    elif status == 404:
        kind = "not_found"
    elif status >= 500 or status in (408, 409):
        kind = "server"
    else:
        kind = "rejected"
    return EndpointError(
        kind,
        shown(f"HTTP {status}: {error.message}", api_key),
        wait_s=asked_wait_s(error.response.headers),
        parameter=error.param,
        code=error.code if isinstance(error.code, str) else None,
    )


def shown(text: str, api_key: str) -> str:
    """A server's words on one line, cut, without the key that it may repeat."""
    if len(api_key) >= 8:
        text = text.replace(api_key, "…")
    text = " ".join(text.split())
    return text if len(text) <= _MAX_DETAIL_CHARS else text[: _MAX_DETAIL_CHARS - 1] + "…"


def _malformed(what: str, body: str) -> EndpointError:
    return EndpointError("malformed", f"{what}: {body[:100]!r}")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
