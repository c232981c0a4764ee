"""Every error as the client's API writes it: OpenAI's JSON, or Anthropic's on its routes."""

from __future__ import annotations

import math

import orjson
from starlette.responses import Response

from palestra.rollout.serving.api_error import ApiError

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_response(path: str, error: ApiError) -> Response:
    """What the client of the route at `path` gets."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = anthropic_error_body(error) if _is_anthropic(path) else error.openai_body()
    return Response(orjson.dumps(body), error.status, headers, media_type="application/json")


def _is_anthropic(path: str) -> bool:
    return path.endswith(("/v1/messages", "/v1/messages/count_tokens"))


def anthropic_error_body(error: ApiError) -> dict[str, object]:
    """As Anthropic's endpoints answer it."""
    kind = _ANTHROPIC_TYPES.get(error.status)
    if kind is None:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
    return {"type": "error", "error": {"type": kind, "message": error.message}}
