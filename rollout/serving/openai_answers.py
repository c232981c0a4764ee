"""What OpenAI's completion APIs have in common in their answers: chunks, usage, errors."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.reply import ReplyDelta

DONE = b"data: [DONE]\n\n"
# JSON has no infinities: what was impossible has the log-probability that vLLM writes for it.
IMPOSSIBLE = -9999.0


class ErrorDetail(BaseModel):
    """What went wrong; `param` is the parameter at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


_ERRORS = {
    400: "the request is at fault",
    401: "no API key, or a wrong one",
    404: "unknown model",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "too many requests with this key",
    503: "the server is busy, going down, or without its engine",
}
# For the OpenAPI document.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what} for status, what in _ERRORS.items()
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the completion, or its chunks as server-sent events",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **ERROR_RESPONSES,
}


class UsageCount:
    """Tokens of one request: the prompt's once, those of all replies."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def add(self, delta: ReplyDelta) -> None:
        """Count a reply that has ended."""
        if delta.end is not None:
            self.prompt_tokens = delta.end.prompt_tokens
            self.completion_tokens += delta.end.completion_tokens

    def answer(self) -> dict[str, int]:
        """As the API has it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def json_answer(answer: dict[str, Any]) -> Response:
    """A whole answer."""
    return Response(orjson.dumps(answer), media_type="application/json")


def chunk(common: dict[str, Any], *, wants_usage: bool) -> tuple[bytes, bytes]:
    """What stands before and behind the choice in each event of a stream."""
    head = b"data: " + orjson.dumps(common)[:-1] + b',"choices":['
    return head, b'],"usage":null}\n\n' if wants_usage else b"]}\n\n"


def error_event(error: ApiError) -> bytes:
    """An error in the middle of a stream."""
    return b"data: " + orjson.dumps(error.openai_body()) + b"\n\n"
