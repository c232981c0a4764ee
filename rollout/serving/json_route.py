"""`JsonRoute`: routes whose body is strict JSON: no NaN, no half characters, not too deep."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from palestra.rollout.serving.api_error import ApiError

# Deeper than any schema or conversation; what walks a value by recursion stays far from its limit.
MAX_NESTING = 64


class JsonRoute(APIRoute):
    """Pass it as `route_class` to a router; its endpoints take pydantic models as usual.

    Raises ApiError: 415 for another content type, 400 for what is not JSON.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What reads the body before the endpoint is called."""
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.method != "POST":
                return await answer(request)
            _require_json(request.headers.get("content-type", ""))
            value = parse_json(await request.body())
            return await answer(_ParsedRequest(request.scope, request.receive, value))

        return handle


class _ParsedRequest(Request):
    """A request whose body was read and parsed already."""

    def __init__(self, scope: Any, receive: Any, value: Any) -> None:
        super().__init__(scope, receive)
        self._value = value

    async def body(self) -> bytes:
        return b"parsed already"

    async def json(self) -> Any:
        return self._value


def parse_json(body: bytes) -> Any:
    """A request's body. Raises ApiError (400) unless it is JSON of sane depth."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    # Most requests have fewer brackets than levels are allowed.
    if body.count(b"[") + body.count(b"{") > MAX_NESTING:
        _require_flat(value)
    return value


def _require_json(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    raise ApiError(
        415,
        f"the body must be JSON, sent with the header Content-Type: application/json, got "
        f"{kind[:100] or 'none'}",
        code="unsupported_media_type",
    )


def _require_flat(value: Any) -> None:
    layer = [value]
    for _ in range(MAX_NESTING):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not layer:
            return
    raise ApiError(
        400, f"the body is nested more than {MAX_NESTING} levels deep", code="invalid_json"
    )
