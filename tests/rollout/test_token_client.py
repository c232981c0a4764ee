"""The HTTP client of model servers: what is tried again, what is not, and what is told."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from palestra.rollout.engine_errors import BadAnswer, ConnectionLost, RequestFailed
from palestra.rollout.token_client import TokenClient

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, port: int = 0) -> AsyncGenerator[str, None]:
    """A server on loopback that answers every request with `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client_of(url: str, **options: float) -> AsyncGenerator[TokenClient, None]:
    client = TokenClient(url, **options)  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.close()


async def echo(request: web.Request) -> web.StreamResponse:
    return web.json_response({"path": request.path, "sent": await request.json()})


def test_a_request_and_its_answer_are_json() -> None:
    async def run() -> object:
        async with serving(echo) as url, client_of(url) as client:
            return await client.post("/g", {"token_ids": (1, 2, 3)}, timeout_s=5)

    assert asyncio.run(run()) == {"path": "/g", "sent": {"token_ids": [1, 2, 3]}}


def test_a_server_that_is_not_there_yet_is_waited_for() -> None:
    async def run() -> object:
        async with serving(echo) as url:
            port = int(url.rpartition(":")[2])
        async with client_of(f"http://127.0.0.1:{port}") as client:
            asked = asyncio.create_task(client.post("/late", {}, timeout_s=10))
            await asyncio.sleep(0.2)
            assert not asked.done()
            async with serving(echo, port):
                return await asked

    assert asyncio.run(run()) == {"path": "/late", "sent": {}}


def test_a_server_that_stays_away_is_a_lost_connection() -> None:
    async def run() -> None:
        async with serving(echo) as url:
            pass
        async with client_of(url, retry_s=0.3) as client:
            await client.post("/g", {}, timeout_s=10)

    with pytest.raises(ConnectionLost, match="cannot be reached"):
        asyncio.run(run())


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    calls: list[int] = []

    async def busy_twice(request: web.Request) -> web.StreamResponse:
        calls.append(1)
        return web.json_response({"ok": True}, status=200 if len(calls) > 2 else status)

    async def run() -> object:
        async with serving(busy_twice) as url, client_of(url) as client:
            return await client.post("/g", {}, timeout_s=10)

    assert asyncio.run(run()) == {"ok": True}
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "too long", "code": 400}}, "too long"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"error": "no tokens"}, "no tokens"),
    ],
)
def test_an_error_is_not_asked_again_and_carries_the_servers_words(
    body: dict[str, object], message: str
) -> None:
    calls: list[int] = []

    async def refuse(request: web.Request) -> web.StreamResponse:
        calls.append(1)
        return web.json_response(body, status=500)

    async def run() -> None:
        async with serving(refuse) as url, client_of(url) as client:
            await client.post("/g", {}, timeout_s=10)

    with pytest.raises(RequestFailed, match=f"answered 500: {message}") as raised:
        asyncio.run(run())
    assert (raised.value.status, raised.value.message, len(calls)) == (500, message, 1)


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_lost_connection_is_made_again_only_for_idempotent_requests(idempotent: bool) -> None:
    calls: list[int] = []

    async def hang_up_once(request: web.Request) -> web.StreamResponse:
        calls.append(1)
        if len(calls) == 1:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"ok": True})

    async def run() -> object:
        async with serving(hang_up_once) as url, client_of(url) as client:
            return await client.post("/g", {}, timeout_s=10, idempotent=idempotent)

    if idempotent:
        assert asyncio.run(run()) == {"ok": True}
        assert len(calls) == 2
    else:
        with pytest.raises(ConnectionLost, match="went away before it had answered"):
            asyncio.run(run())
        assert len(calls) == 1


def test_a_deadline_ends_a_request_and_its_connection() -> None:
    left: list[str] = []

    async def slow(request: web.Request) -> web.StreamResponse:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            left.append("client")
            raise
        return web.Response()

    async def run() -> None:
        async with serving(slow) as url, client_of(url) as client:
            with pytest.raises(TimeoutError, match=r"gave no answer in 0\.2 s"):
                await client.post("/g", {}, timeout_s=0.2)
            await asyncio.sleep(0.2)

    asyncio.run(run())
    assert left == ["client"]


def test_cancelling_closes_the_connection() -> None:
    seen: list[str] = []

    async def slow(request: web.Request) -> web.StreamResponse:
        seen.append("request")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("gone")
            raise
        return web.Response()

    async def run() -> None:
        async with serving(slow) as url, client_of(url) as client:
            request = asyncio.create_task(client.post("/g", {}, timeout_s=60))
            async with asyncio.timeout(5):
                while not seen:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            request.cancel()
            await asyncio.sleep(0.2)

    asyncio.run(run())
    assert seen == ["request", "gone"]


def test_an_answer_that_is_not_json_is_told() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b'{"choices": [', content_type="application/json")

    async def run() -> None:
        async with serving(half) as url, client_of(url) as client:
            await client.post("/g", {}, timeout_s=5)

    with pytest.raises(BadAnswer, match="not JSON"):
        asyncio.run(run())


def test_connections_are_reused_and_no_more_than_allowed() -> None:
    ports: set[object] = set()

    async def note(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername"))
        await asyncio.sleep(0.01)
        return web.json_response({})

    async def run() -> None:
        async with serving(note) as url, client_of(url, max_connections=3) as client:
            await asyncio.gather(*(client.post("/g", {}, timeout_s=10) for _ in range(30)))

    asyncio.run(run())
    assert len(ports) == 3


# --- streamed answers


Send = Callable[[bytes], Awaitable[None]]


def streaming(tell: Callable[[Send], Awaitable[None]]) -> Handler:
    """A handler that streams what `tell` sends."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await tell(response.write)
        await response.write_eof()
        return response

    return handler


async def collect(client: TokenClient, timeout_s: float = 5) -> list[list[object]]:
    return [events async for events in client.post_stream("/g", {}, timeout_s=timeout_s)]


def stream(tell: Callable[[Send], Awaitable[None]], **options: float) -> list[list[object]]:
    """What a client makes of such an answer."""

    async def run() -> list[list[object]]:
        async with serving(streaming(tell)) as url, client_of(url) as client:
            return await collect(client, **options)

    return asyncio.run(run())


def test_events_that_arrived_together_are_told_together() -> None:
    async def tell(send: Send) -> None:
        await send(b'data: {"n": 1}\n\ndata: {"n": 2}\n\n')
        await asyncio.sleep(0.05)
        await send(b': ping\n\ndata: {"n"')
        await asyncio.sleep(0.05)
        await send(b": 3}\r\n\r\ndata: [DONE]\n\n")

    assert stream(tell) == [[{"n": 1}, {"n": 2}], [{"n": 3}]]


def test_events_come_before_the_answer_is_complete() -> None:
    async def run() -> None:
        read = asyncio.Event()

        async def tell(send: Send) -> None:
            await send(b"data: 1\n\n")
            await read.wait()
            await send(b"data: 2\n\n")

        async with serving(streaming(tell)) as url, client_of(url) as client:
            events = client.post_stream("/g", {}, timeout_s=5)
            assert await anext(events) == [1]
            read.set()
            assert await anext(events) == [2]
            await events.aclose()

    asyncio.run(run())


def test_an_answer_that_falls_silent_is_a_timeout() -> None:
    async def tell(send: Send) -> None:
        for _ in range(3):  # each of them later than the one before, but not by too much
            await send(b"data: 1\n\n")
            await asyncio.sleep(0.2)
        await asyncio.sleep(30)

    with pytest.raises(TimeoutError, match=r"was silent for 0\.4 s"):
        stream(tell, timeout_s=0.4)


def test_an_answer_that_never_begins_is_a_timeout() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async def run() -> None:
        async with serving(never) as url, client_of(url) as client:
            await collect(client, timeout_s=0.3)

    with pytest.raises(TimeoutError, match=r"gave no answer in 0\.3 s"):
        asyncio.run(run())


def test_a_connection_lost_in_the_middle_of_an_answer_is_told() -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        assert request.transport is not None
        await asyncio.sleep(0.05)
        request.transport.abort()
        return response

    async def run() -> None:
        async with serving(hang_up) as url, client_of(url) as client:
            events = client.post_stream("/g", {}, timeout_s=5)
            assert await anext(events) == [1]
            with pytest.raises(ConnectionLost, match="went away before it had answered"):
                await anext(events)

    asyncio.run(run())


@pytest.mark.parametrize(("closing", "seen"), [(True, ["gone"]), (False, [])])
def test_closing_a_stream_closes_its_connection(closing: bool, seen: list[str]) -> None:
    async def run() -> list[str]:
        left = []

        async def tell(send: Send) -> None:
            await send(b"data: 1\n\n")
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                left.append("gone")
                raise

        async with serving(streaming(tell)) as url, client_of(url) as client:
            events = client.post_stream("/g", {}, timeout_s=5)
            assert await anext(events) == [1]
            if closing:
                await events.aclose()
            await asyncio.sleep(0.2)
            return list(left)

    assert asyncio.run(run()) == seen


def test_a_stream_is_asked_for_again_only_before_it_begins() -> None:
    calls: list[int] = []

    async def tell(send: Send) -> None:
        await send(b"data: 1\n\n")

    async def busy_once(request: web.Request) -> web.StreamResponse:
        calls.append(1)
        if len(calls) == 1:
            return web.json_response({"detail": "later"}, status=503)
        return await streaming(tell)(request)

    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "too long"}}, status=400)

    async def run() -> None:
        async with serving(busy_once) as url, client_of(url) as client:
            assert await collect(client) == [[1]]
        async with serving(refuse) as url, client_of(url) as client:
            with pytest.raises(RequestFailed, match="answered 400: too long"):
                await collect(client)

    asyncio.run(run())
    assert len(calls) == 2


def test_a_stream_of_something_else_is_told() -> None:
    async def tell(send: Send) -> None:
        await send(b"data: {\n\n")

    with pytest.raises(BadAnswer, match="not JSON"):
        stream(tell)

    async def run() -> None:
        async with serving(echo) as url, client_of(url) as client:
            await collect(client)

    with pytest.raises(BadAnswer, match="application/json instead of a stream"):
        asyncio.run(run())


def test_connections_of_streams_that_were_read_to_their_end_are_reused() -> None:
    ports: set[object] = set()

    async def tell(send: Send) -> None:
        await send(b"data: 1\n\ndata: [DONE]\n\n")

    async def note(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername"))
        return await streaming(tell)(request)

    async def run() -> None:
        async with serving(note) as url, client_of(url) as client:
            for _ in range(5):
                assert await collect(client) == [[1]]

    asyncio.run(run())
    assert len(ports) == 1
