"""`/v1/messages`: Anthropic's Messages API over a `Replier`.

Text, thinking and tools; images, documents and tools that run on the server are refused by name.
"""

from __future__ import annotations

import secrets
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from palestra.rollout.serving.event_stream import EventStream
from palestra.rollout.serving.find_replier import FindReplier, require_model
from palestra.rollout.serving.json_route import JsonRoute
from palestra.rollout.serving.messages_request import (
    CountTokensRequest,
    MessagesRequest,
    prompt_request,
    reply_request,
)
from palestra.rollout.serving.messages_stream import (
    ContentBlocks,
    error_event,
    message_events,
    stop_fields,
    usage_of,
)
from palestra.rollout.serving.openai_answers import RESPONSES, json_answer
from palestra.rollout.serving.whole_reply import end_of, whole_reply


class AnthropicError(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """The body of every answer that is an error."""

    type: Literal["error"]
    error: AnthropicError


# For the OpenAPI document.
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: answer if status == 200 else {**answer, "model": AnthropicErrorBody}
    for status, answer in RESPONSES.items()
}


def routes(find_replier: FindReplier) -> APIRouter:
    """The routes, to be included under /v1."""
    router = APIRouter(route_class=JsonRoute, tags=["messages"])

    @router.post("/messages", responses=_RESPONSES, response_class=Response)
    async def create_message(request: Request, body: MessagesRequest) -> Response:
        """Anthropic's messages."""
        replier = find_replier(request)
        require_model(replier, body.model)
        wanted = reply_request(body)
        begun = _begun(body.model)
        if body.stream:
            deltas = replier.reply(wanted, stream=True)
            return EventStream(message_events(begun, deltas), error_event=error_event)
        reply = await whole_reply(replier, wanted, request)
        content, end = ContentBlocks(), end_of(reply)
        for delta in reply:
            content.add(delta)
        return json_answer(
            {**begun, "content": content.blocks, **stop_fields(end), "usage": usage_of(end)}
        )

    @router.post("/messages/count_tokens", responses=_RESPONSES, response_class=Response)
    async def count_tokens(request: Request, body: CountTokensRequest) -> Response:
        """How many tokens the prompt of such a message has."""
        replier = find_replier(request)
        require_model(replier, body.model)
        return json_answer({"input_tokens": replier.count_prompt(prompt_request(body))})

    return router


def _begun(model: str) -> dict[str, Any]:
    """The message before anything was sampled."""
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        # How long the prompt is, is known at the end.
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
