"""`EndpointPolicy`: a model behind any OpenAI-compatible endpoint, for evaluation only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from palestra.endpoint import Endpoint, EndpointError, Meter, Reply, Request, Usage
from palestra.rollout.endpoint_messages import reply_message, sent_message
from palestra.rollout.policy import ContextFull
from palestra.types import Failure, Message, Sampling, Task, ToolSchema, Turn

# What no other request of the same policy will fare better with.
_FINAL = ("unauthorized", "not_found", "quota")

_OVERFLOW = re.compile(
    r"context[ _](length|window|size)|(prompt|input|request) is too long|too many (input )?tokens",
    re.IGNORECASE,
)
_CONTEXT_TOKENS = re.compile(r"context length (?:is|of) (\d+)")
_PROMPT_TOKENS = re.compile(
    r"(\d+) (?:input tokens|in the messages|in the prompt|tokens in the prompt)"
)
_FILTERED = ("content_filter", "content_policy_violation")


class EndpointPolicy:
    """Asks a server for chat completions with native tool calls.

        policy = EndpointPolicy("http://localhost:8000/v1", "my-model", api_key="none")
        evaluation = await evaluate(make_env, tasks, policy)
        policy.usage.cost

    Its turns have no token ids: `trainer.batch.rows_of` refuses to train on them. Retries, limits,
    prices and a cache are the endpoint's (see `palestra.endpoint`); each turn's `usage` says what
    it took, and `usage` what all did, retries and failures included.

    Args:
        endpoint: an `Endpoint`, or the base URL of one.
        model: the name under which the endpoint serves it.
        api_key: with a base URL only; OPENAI_API_KEY if None.
        timeout_s: until a reply is complete, the wait for a place and retries included.
        extra: added to every request's body.
        sends_reasoning: give earlier reasoning back with the conversation; most servers refuse it
            or leave it out.

    Raises:
        ValueError: no model, or a URL or key that is none.
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        extra: Mapping[str, Any] | None = None,
        sends_reasoning: bool = False,
    ) -> None:
        if not model:
            raise ValueError("a policy needs the name of a model that its endpoint serves")
        if isinstance(endpoint, Endpoint):
            if api_key is not None:
                raise ValueError("an Endpoint has its own key: pass api_key with a URL only")
            self.endpoint = endpoint
        else:
            self.endpoint = Endpoint(endpoint, api_key)
        self.model = model
        # Why every further request would fail too; then none is sent.
        self.broken: Failure | None = None
        self._timeout_s = timeout_s
        self._extra = dict(extra or {})
        self._sends_reasoning = sends_reasoning
        self._meter = Meter()
        self._has_replied = False

    @property
    def usage(self) -> Usage:
        """Requests, tokens and cost so far."""
        return self._meter.usage

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        """The model's reply.

        A refusal or a filtered reply is the policy's own doing: an answer, with the stop reason
        "refusal" or "content_filter".

        Raises:
            ContextFull: the server says that the conversation fills its model's context.
            Failure: no reply; its cause is "endpoint:" and a kind of `EndpointError`.
        """
        if self.broken is not None:
            raise Failure(self.broken.cause, self.broken.detail)
        request = Request(
            model=self.model,
            messages=[sent_message(m, with_reasoning=self._sends_reasoning) for m in messages],
            tools=tools,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.top_p < 1.0 else None,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            schema=sampling.structure.json_schema if sampling.structure else None,
            extra={**_beyond_openai(sampling), **self._extra},
        )
        meter = Meter()
        try:
            reply = await self._complete(request, meter)
        except EndpointError as error:
            if error.code not in _FILTERED:
                raise self._failure(error) from None
            reply = Reply(text="", finish_reason="content_filter", model=self.model)
        finally:
            self._meter.merge(meter.usage)
        self._has_replied = True
        return Turn(
            message=reply_message(reply),
            sampling=sampling,
            stop_reason=_stop_reason(reply),
            usage=_usage(reply, meter.usage),
        )

    async def _complete(self, request: Request, meter: Meter) -> Reply:
        """The reply; of fewer tokens where the context has no room for all that are asked for."""
        within_s = self._timeout_s
        try:
            return await self.endpoint.complete(request, within_s=within_s, meter=meter)
        except EndpointError as error:
            if not _is_overflow(error):
                raise
            room = _room(error.detail)
            if request.max_tokens is None or not 0 < room < request.max_tokens:
                raise ContextFull(error.detail) from None
        try:
            smaller = replace(request, max_tokens=room)
            return await self.endpoint.complete(smaller, within_s=within_s, meter=meter)
        except EndpointError as error:
            if not _is_overflow(error):
                raise
            raise ContextFull(error.detail) from None

    def _failure(self, error: EndpointError) -> Failure:
        where = f"{self.endpoint.base_url}: {error.detail}"
        remedy = {
            "unauthorized": "check the key",
            "not_found": f"does it serve {self.model!r}, and does its URL end in /v1?",
            "quota": "the account has nothing left to spend",
            "unreachable": "is the server running?",
        }.get(error.kind)
        failure = Failure(f"endpoint:{error.kind}", f"{where}: {remedy}" if remedy else where)
        if error.kind in _FINAL or (error.kind == "unreachable" and not self._has_replied):
            self.broken = failure
        return failure


def _beyond_openai(sampling: Sampling) -> dict[str, Any]:
    """Parameters that OpenAI does not have, in the form that vLLM and others take."""
    extra: dict[str, Any] = {}
    if sampling.top_k:
        extra["top_k"] = sampling.top_k
    structure = sampling.structure
    if structure is not None and structure.choice is not None:
        extra["structured_outputs"] = {"choice": list(structure.choice)}
    elif structure is not None and structure.regex is not None:
        extra["structured_outputs"] = {"regex": structure.regex}
    return extra


def _stop_reason(reply: Reply) -> str:
    if reply.finish_reason in ("length", "content_filter"):
        return reply.finish_reason
    return "stop" if reply.refusal is None else "refusal"


def _usage(reply: Reply, usage: Usage) -> dict[str, float]:
    counts: dict[str, float] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    return counts if reply.cost is None else {**counts, "cost": usage.cost}


def _is_overflow(error: EndpointError) -> bool:
    return error.kind == "rejected" and (
        error.code == "context_length_exceeded" or _OVERFLOW.search(error.detail) is not None
    )


def _room(detail: str) -> int:
    """How many tokens a server's words leave for a reply; 0 if they do not say."""
    context, prompt = _CONTEXT_TOKENS.search(detail), _PROMPT_TOKENS.search(detail)
    return int(context[1]) - int(prompt[1]) if context and prompt else 0
