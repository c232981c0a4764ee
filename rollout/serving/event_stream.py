"""`EventStream`: server-sent events as an ASGI response, and what ends when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from palestra.rollout.serving.api_error import ApiError, of_engine

T = TypeVar("T")

_log = logging.getLogger(__name__)

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx would collect the events
)


def event(data: Mapping[str, Any], *, name: str | None = None) -> bytes:
    """One server-sent event with JSON data, e.g. b'event: ping\\ndata: {"type":"ping"}\\n\\n'."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"


class EventStream(Response):
    """Sends what `events` yields, as it comes.

    The status line waits for the first event, so that an error before it is raised, for the
    application's handlers. One in the middle becomes the event that `error_event` makes of it, and
    the stream ends. When the client leaves, `events` is cancelled and closed: close what it reads
    from with `aclosing`.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        error_event: Callable[[ApiError], bytes],
    ) -> None:
        super().__init__()
        self._events = events
        self._error_event = error_event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        try:
            await while_connected(receive, self._send_all(send))
        except ClientLeft:
            _log.debug("the client left a stream of %s", scope.get("path"))

    async def _send_all(self, send: Send) -> None:
        has_started = False
        async with aclosing(self._events) as events:
            try:
                async for chunk in events:
                    if not has_started:
                        has_started = True
                        await _start(send)
                    await _send(send, chunk)
            except ClientLeft:
                raise
            except Exception as error:
                if not has_started:
                    raise
                if not isinstance(error, ApiError):
                    _log.exception("a stream broke off")
                    error = of_engine(error)
                await _send(send, self._error_event(error))
        if not has_started:
            await _start(send)
        await _send(send, b"", more=False)


class ClientLeft(ApiError):
    """The client closed the connection; nobody reads the answer (nginx's status 499)."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection", code="client_closed_request")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; it is cancelled as soon as the client leaves.

    The request's body must have been read. Raises ClientLeft.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})


async def _send(send: Send, chunk: bytes, *, more: bool = True) -> None:
    try:
        await send({"type": "http.response.body", "body": chunk, "more_body": more})
    except OSError:  # how servers may say it, by ASGI 2.4
        raise ClientLeft from None
