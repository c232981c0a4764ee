"""Streams on a real socket: how they begin, break off, and end when the client leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.event_stream import EventStream, event, while_connected

Events = Callable[[], AsyncGenerator[bytes, None]]


def app_of(events: Events) -> FastAPI:
    app = FastAPI()

    @app.get("/stream")
    async def stream() -> Response:
        return EventStream(events(), error_event=lambda error: event(error.openai_body()))

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.openai_body(), error.status)

    return app


def get(serve_app: Any, events: Events) -> httpx.Response:
    with serve_app(app_of(events)) as url:
        return httpx.get(f"{url}/stream")


def test_events_are_sent_as_they_come(serve_app: Any) -> None:
    seen = threading.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        yield event({"n": 1}, name="first")
        # Only a client that has the first one can have set it.
        assert await asyncio.to_thread(seen.wait, 20)
        yield event({"n": 2})

    with serve_app(app_of(events)) as url, httpx.stream("GET", f"{url}/stream") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == ["event: first", 'data: {"n":1}', ""]
        seen.set()
        assert list(lines) == ['data: {"n":2}', ""]


def test_an_error_before_the_first_event_is_left_to_the_application(serve_app: Any) -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        for number in range(2):
            if number == 0:
                raise ApiError(429, "too many", code="busy")
            yield b"never"

    answer = get(serve_app, events)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")


@pytest.mark.parametrize("error", [ApiError(503, "gone"), RuntimeError("secret")])
def test_an_error_in_the_middle_is_the_last_event(serve_app: Any, error: Exception) -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield event({"n": 1})
        raise error

    answer = get(serve_app, events)
    assert answer.status_code == 200
    _, last, rest = answer.text.split("\n\n")
    told = "gone" if isinstance(error, ApiError) else "internal error"
    assert f'"message":"{told}"' in last
    assert rest == ""


def test_no_events_are_an_empty_stream(serve_app: Any) -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        nothing: tuple[bytes, ...] = ()
        for chunk in nothing:
            yield chunk

    answer = get(serve_app, events)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("is_waiting", [True, False])
def test_a_client_that_leaves_closes_the_events(serve_app: Any, is_waiting: bool) -> None:
    ended = threading.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield event({"n": 1})
            if is_waiting:
                await asyncio.sleep(3600)
            while True:  # more than any socket buffers
                await asyncio.sleep(0)
                yield event({"text": "x" * 100_000})
        finally:
            ended.set()

    with serve_app(app_of(events)) as url:
        with httpx.stream("GET", f"{url}/stream") as answer:
            chunks = answer.iter_raw()
            next(chunks)
            assert not ended.is_set()
        assert ended.wait(20)


def test_work_for_a_client_that_leaves_is_cancelled(serve_app: Any) -> None:
    cancelled = threading.Event()
    app = FastAPI()

    async def work() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "done"

    @app.get("/work")
    async def answer(request: Request) -> str:
        return await while_connected(request.receive, work())

    @app.exception_handler(ApiError)
    async def nobody_reads(request: Request, error: ApiError) -> Response:
        return Response(status_code=error.status)

    with serve_app(app) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{url}/work", timeout=0.5)
        assert cancelled.wait(20)


def test_what_work_returns_or_raises_is_passed_on() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def fail() -> int:
        raise KeyError("x")

    async def check() -> None:
        assert await while_connected(receive, double(21)) == 42
        with pytest.raises(KeyError):
            await while_connected(receive, fail())
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(check())
