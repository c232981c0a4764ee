import asyncio
import contextlib
import email.utils
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from palestra.endpoint import Endpoint, EndpointError, Reply, Request
from palestra.endpoint.limits import asked_wait_s, backoff_s, quota_wait_s
from palestra.endpoint.scripted import Scripted, ScriptedServer

REQUEST = Request(model="m", messages=[{"role": "user", "content": "hello"}])


def complete(endpoint: Endpoint, request: Request = REQUEST, **options: Any) -> Reply:
    return asyncio.run(endpoint.complete(request, **options))


def in_order(answers: Iterable[str | Scripted]) -> Callable[[Any], str | Scripted]:
    remaining = iter(answers)
    return lambda body: next(remaining)


async def first_request(server: ScriptedServer) -> None:
    for _ in range(1000):
        if server.requests:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no request came")


def test_a_request_that_found_no_place_in_time_says_so() -> None:
    async def crowd(endpoint: Endpoint) -> Sequence[Any]:
        first = asyncio.create_task(endpoint.complete(REQUEST))
        await asyncio.sleep(0.3)
        late = endpoint.complete(REQUEST, within_s=0.3)
        return await asyncio.gather(first, late, return_exceptions=True)

    with ScriptedServer(lambda body: Scripted(text="hi", delay_s=1.5)) as server:
        first, late = asyncio.run(crowd(Endpoint(server.base_url, "key", concurrency=1)))
    assert first.text == "hi"
    assert isinstance(late, EndpointError) and late.kind == "busy"
    assert len(server.requests) == 1


def test_a_pause_that_the_server_asks_for_is_kept_by_all() -> None:
    limited = Scripted(status=429, headers={"retry-after": "1"})

    async def ask(endpoint: Endpoint) -> None:
        first = asyncio.create_task(endpoint.complete(REQUEST))
        await first_request(endpoint_server)
        await asyncio.sleep(0.2)
        await asyncio.gather(first, endpoint.complete(REQUEST))

    with ScriptedServer(in_order([limited, "a", "b"])) as endpoint_server:
        asyncio.run(ask(Endpoint(endpoint_server.base_url, "key")))
    refused, second, third = endpoint_server.times_s
    assert min(second, third) - refused >= 0.99


def test_a_pause_longer_than_there_is_time_ends_the_request_at_once() -> None:
    started = time.monotonic()
    limited = Scripted(status=429, headers={"retry-after": "3600"})
    with ScriptedServer(lambda body: limited) as server, pytest.raises(EndpointError) as caught:
        complete(Endpoint(server.base_url, "key"))
    assert caught.value.kind == "rate_limited"
    assert len(server.requests) == 1
    assert time.monotonic() - started < 10


def test_a_quota_that_a_reply_says_is_used_up_is_waited_for() -> None:
    last = Scripted(
        text="a",
        headers={"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "800ms"},
    )

    async def ask_twice(endpoint: Endpoint) -> None:
        await endpoint.complete(REQUEST)
        await endpoint.complete(REQUEST)

    with ScriptedServer(in_order([last, "b"])) as server:
        asyncio.run(ask_twice(Endpoint(server.base_url, "key")))
    assert server.times_s[1] - server.times_s[0] >= 0.79


def test_requests_per_minute_spaces_requests() -> None:
    async def ask(endpoint: Endpoint) -> None:
        await asyncio.gather(*(endpoint.complete(REQUEST) for _ in range(4)))

    with ScriptedServer(lambda body: "hi") as server:
        asyncio.run(ask(Endpoint(server.base_url, "key", requests_per_minute=300)))
    times = sorted(server.times_s)
    assert times[-1] - times[0] >= 0.55  # three gaps of 0.2 s, whatever the network adds


def test_concurrency_is_kept_across_threads_and_event_loops() -> None:
    with ScriptedServer(lambda body: Scripted(text="hi", delay_s=0.1)) as server:
        endpoint = Endpoint(server.base_url, "key", concurrency=3)

        async def many() -> None:
            await asyncio.gather(*(endpoint.complete(REQUEST) for _ in range(6)))

        threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.requests) == 18
    assert server.peak == 3


def test_a_cancelled_request_gives_its_place_back() -> None:
    async def cancel_one(endpoint: Endpoint) -> str:
        first = asyncio.create_task(endpoint.complete(REQUEST))
        await first_request(server)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        return (await endpoint.complete(REQUEST, within_s=10)).text

    with ScriptedServer(in_order([Scripted(delay_s=60), "hi"])) as server:
        assert asyncio.run(cancel_one(Endpoint(server.base_url, "key", concurrency=1))) == "hi"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": email.utils.formatdate(0)}, 0.0),
    ],
)
def test_retry_after_is_read_in_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait_s(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    wait_s = asked_wait_s({"retry-after": email.utils.formatdate(time.time() + 60)})
    assert wait_s is not None and 50 < wait_s <= 60


@pytest.mark.parametrize(
    ("remaining", "reset", "seconds"),
    [
        ("0", "6m0s", 360.0),
        ("0", "1m2.5s", 62.5),
        ("0", "20ms", 0.02),
        ("0", "3", 3.0),
        ("5", "6m0s", 0.0),
        ("0", "whenever", 0.0),
        ("", "3", 0.0),
    ],
)
def test_quota_headers_are_read_in_their_forms(remaining: str, reset: str, seconds: float) -> None:
    for quota in ("requests", "tokens"):
        headers = {
            f"x-ratelimit-remaining-{quota}": remaining,
            f"x-ratelimit-reset-{quota}": reset,
        }
        assert quota_wait_s(headers) == pytest.approx(seconds)


def test_backoff_grows_varies_and_ends() -> None:
    early, late = [backoff_s(0) for _ in range(50)], [backoff_s(5000) for _ in range(50)]
    assert min(early) >= 0.25 and max(early) <= 0.5 and len(set(early)) > 1
    assert min(late) >= 10 and max(late) <= 20
