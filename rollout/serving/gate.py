"""`Gate`: what every request passes first, in pure ASGI: going down, keys, limits, its body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.api_keys import ApiKeys
from palestra.rollout.serving.error_response import error_response
from palestra.rollout.serving.limits import RateLimit, ServerLimits, read_body
from palestra.rollout.serving.traffic import Traffic, going_down

# Load balancers ask without a key. An episode's address is its key.
_NEEDS_NO_KEY = ("/health", "/episodes/")


class Gate:
    """Lets requests through to `app`, or answers them with an error.

    Only requests that generate something (POST) count against the rate limit and the most that may
    run at once. Without `keys` everybody may ask.
    """

    def __init__(
        self, app: ASGIApp, *, traffic: Traffic, limits: ServerLimits, keys: ApiKeys | None
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._limits = limits
        self._keys = keys
        rate = limits.requests_per_minute
        self._rate = None if rate is None else RateLimit(rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            client = self._identify(scope)
            if scope["method"] != "POST":
                await self._app(scope, receive, send)
                return
            self._require_room()
            if self._rate is not None:
                wait_s, headers = self._rate.take(client)
                send = _with_headers(send, headers)
                if wait_s:
                    raise _too_many(self._limits.requests_per_minute, wait_s)
            receive = await read_body(scope["headers"], receive, self._limits.max_body_bytes)
            self._require_room()
        except ApiError as error:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        with self._traffic.request():
            await self._app(scope, receive, send)

    def _identify(self, scope: Scope) -> str:
        if self._keys is None or scope["path"].startswith(_NEEDS_NO_KEY):
            return ""
        return self._keys.identify(scope["headers"])

    def _require_room(self) -> None:
        if self._traffic.is_draining:
            raise going_down()
        if self._traffic.in_flight >= self._limits.max_concurrent:
            raise ApiError(
                503,
                f"{self._limits.max_concurrent} requests are being answered, the most that this "
                "server takes at once; try again",
                code="overloaded",
                retry_after_s=1.0,
            )


def _too_many(requests_per_minute: int | None, wait_s: float) -> ApiError:
    return ApiError(
        429,
        f"the limit is {requests_per_minute} requests a minute; try again in {wait_s:.1f} s",
        code="rate_limit_exceeded",
        retry_after_s=wait_s,
    )


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return send_more
