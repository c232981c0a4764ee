"""POST /chat/completions: OpenAI's chat API over a Replier."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from palestra.rollout.serving.chat_request import ChatRequest
from palestra.rollout.serving.event_stream import EventStream
from palestra.rollout.serving.find_replier import FindReplier, require_model
from palestra.rollout.serving.json_route import JsonRoute
from palestra.rollout.serving.openai_answers import (
    DONE,
    IMPOSSIBLE,
    RESPONSES,
    UsageCount,
    chunk,
    error_event,
    json_answer,
)
from palestra.rollout.serving.ready_together import ready_together
from palestra.rollout.serving.reply import ReplyDelta, TokenLogprob
from palestra.rollout.serving.whole_reply import whole_reply


def routes(find_replier: FindReplier) -> APIRouter:
    """The route, to be included under /v1."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/chat/completions", responses=RESPONSES, response_class=Response)
    async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
        """OpenAI's chat completions."""
        replier = find_replier(request)
        require_model(replier, body.model)
        wants_usage = body.wants_usage
        wanted = body.reply_request()
        if body.stream:
            events = _Events(body.model, wants_usage).of(replier.reply(wanted, stream=True))
            return EventStream(events, error_event=error_event)
        return json_answer(_answer(await whole_reply(replier, wanted, request), body.model))

    return router


def _answer(deltas: Sequence[ReplyDelta], model: str) -> dict[str, Any]:
    """The whole answer."""
    choices: dict[int, _Choice] = {}
    usage = UsageCount()
    for delta in deltas:
        choices.setdefault(delta.choice, _Choice()).add(delta)
        usage.add(delta)
    return {
        "id": _new_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choices[index].answer(index) for index in sorted(choices)],
        "usage": usage.answer(),
    }


class _Choice:
    """One reply, as its deltas add up."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._tokens: list[TokenLogprob] = []
        self._finish_reason: str | None = None

    def add(self, delta: ReplyDelta) -> None:
        self._texts.append(delta.content)
        self._reasoning.append(delta.reasoning)
        self._tokens += delta.tokens
        for call in delta.calls:
            known = self._calls.setdefault(
                call.index,
                {"id": call.id, "type": "function", "function": {"name": "", "arguments": ""}},
            )
            known["function"]["name"] += call.name or ""
            known["function"]["arguments"] += call.arguments
        if delta.end is not None:
            self._finish_reason = delta.end.finish_reason

    def answer(self, index: int) -> dict[str, Any]:
        content, reasoning = "".join(self._texts), "".join(self._reasoning)
        calls = [self._calls[number] for number in sorted(self._calls)]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
        }
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(self._tokens),
            "finish_reason": self._finish_reason,
        }


class _Events:
    """The events of one stream. What every event has in common is written once."""

    def __init__(self, model: str, wants_usage: bool) -> None:
        self._wants_usage = wants_usage
        self._head, self._tail = chunk(
            {
                "id": _new_id(),
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": model,
            },
            wants_usage=wants_usage,
        )
        self._begun: set[int] = set()

    async def of(self, deltas: AsyncGenerator[ReplyDelta, None]) -> AsyncGenerator[bytes, None]:
        """What to send for the deltas: those that are ready together go out together."""
        usage = UsageCount()
        async with aclosing(ready_together(deltas)) as batches:
            async for batch in batches:
                for delta in batch:
                    usage.add(delta)
                yield b"".join([self._event(delta) for delta in batch])
        end = self._head + b'],"usage":' + orjson.dumps(usage.answer()) + b"}\n\n"
        yield end + DONE if self._wants_usage else DONE

    def _event(self, delta: ReplyDelta) -> bytes:
        index = delta.choice
        if (
            delta.content
            and index in self._begun
            and not (delta.end or delta.calls or delta.tokens or delta.reasoning)
        ):  # what most of them are
            return (
                self._head
                + b'{"index":%d,"delta":{"content":' % index
                + orjson.dumps(delta.content)
                + b'},"logprobs":null,"finish_reason":null}'
                + self._tail
            )
        events = b""
        if index not in self._begun:
            self._begun.add(index)
            events += self._choice(index, {"role": "assistant", "content": ""})
        said: dict[str, Any] = {}
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.content:
            said["content"] = delta.content
        if delta.calls:
            said["tool_calls"] = [_call(call) for call in delta.calls]
        if said or delta.tokens:
            events += self._choice(index, said, logprobs=_logprobs(delta.tokens))
        if delta.end is not None:
            events += self._choice(index, {}, finish_reason=delta.end.finish_reason)
        return events

    def _choice(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._head + orjson.dumps(choice) + self._tail


def _call(call: Any) -> dict[str, Any]:
    """More of a call: its id and name where they are told, then arguments alone."""
    function: dict[str, Any] = {"arguments": call.arguments}
    if call.id is None:
        return {"index": call.index, "function": function}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name or "", **function},
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    content = [
        {**_token(token), "top_logprobs": [_token(other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": max(IMPOSSIBLE, token.logprob),
        "bytes": list(token.bytes),
    }


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex[:24]}"
