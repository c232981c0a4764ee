"""`/v1/responses`: OpenAI's Responses API over a `Replier`, without state.

Nothing is stored: clients send the items of earlier responses back. Text, reasoning and function
calls; hosted tools and conversations kept by the server are refused by name.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from palestra.rollout.serving.event_stream import EventStream
from palestra.rollout.serving.find_replier import FindReplier, require_model
from palestra.rollout.serving.json_route import JsonRoute
from palestra.rollout.serving.openai_answers import RESPONSES, json_answer
from palestra.rollout.serving.responses_request import (
    ResponsesRequest,
    reply_request,
    wants_logprobs,
)
from palestra.rollout.serving.responses_stream import OutputItems, ResponseEvents, ended
from palestra.rollout.serving.whole_reply import end_of, whole_reply


def routes(find_replier: FindReplier) -> APIRouter:
    """The route, to be included under /v1."""
    router = APIRouter(route_class=JsonRoute, tags=["responses"])

    @router.post("/responses", responses=RESPONSES, response_class=Response)
    async def create_response(request: Request, body: ResponsesRequest) -> Response:
        """OpenAI's responses."""
        replier = find_replier(request)
        require_model(replier, body.model)
        wanted = reply_request(body)
        begun, with_logprobs = _begun(body), wants_logprobs(body)
        if body.stream:
            events = ResponseEvents(begun, with_logprobs=with_logprobs)
            deltas = replier.reply(wanted, stream=True)
            return EventStream(events.stream(deltas), error_event=events.failed)
        # In pieces, for it matters which tokens made up the text.
        reply = await whole_reply(replier, wanted, request, in_pieces=with_logprobs)
        output = OutputItems(with_logprobs=with_logprobs)
        for delta in reply:
            output.add(delta)
        return json_answer(ended(begun, output.items, end_of(reply)))

    return router


def _begun(body: ResponsesRequest) -> dict[str, Any]:
    """The response before anything was sampled: what was asked for."""
    asked = body.model_dump(
        include={"text", "tool_choice", "tools"}, by_alias=True, exclude_none=True
    )
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": asked.get("text", {}).get("format", {"type": "text"})},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }
