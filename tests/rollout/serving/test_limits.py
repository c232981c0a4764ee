"""Keys, rates, sizes: who may ask, how often, how much."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from palestra.rollout.serving.api_keys import ApiKeys
from palestra.rollout.serving.app import Served, build_app
from palestra.rollout.serving.limits import RateLimit, ServerLimits

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
ANSWER = {"role": "assistant", "content": "Hi."}


@pytest.fixture
def served(serve_app: Any, scripted: Any) -> Any:
    """Runs an application with keys and limits over many equal replies."""

    def run(replies: Any = None, **options: Any) -> Any:
        replier = scripted([ANSWER] * 50 if replies is None else replies)
        return serve_app(
            build_app(
                Served(
                    find_replier=lambda request: replier,
                    models=("tiny",),
                    context_length=100,
                    **options,
                )
            )
        )

    return run


def ask(url: str, key: str | None = None, **given: str) -> httpx.Response:
    if key is not None:
        given["authorization"] = f"Bearer {key}"
    headers = httpx.Headers(given, encoding="latin-1")
    return httpx.post(f"{url}/v1/chat/completions", json=BODY, headers=headers, timeout=30)


# Keys


def test_only_who_has_a_key_is_answered(served: Any) -> None:
    with served(keys=ApiKeys(["first-key", "second-key"])) as url:
        assert ask(url, "second-key").status_code == 200
        assert ask(url, **{"x-api-key": "first-key"}).status_code == 200
        for key in (None, "second-ke", "second-keyy", "\xe9\xe9\xe9\xe9"):
            answer = ask(url, key)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/metrics").status_code == 401
        assert httpx.get(f"{url}/nowhere").status_code == 401
        assert httpx.get(f"{url}/health").status_code == 200


def test_anthropics_clients_are_told_in_their_own_shape(served: Any) -> None:
    with served(keys=ApiKeys(["first-key"])) as url:
        answer = httpx.post(f"{url}/v1/messages", json={}, headers={"x-api-key": "wrong-key"})
    assert answer.status_code == 401
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "authentication_error"


def test_keys_come_from_a_file_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# Bob\nkey-of-bob\n\n  key-of-eve  \n")
    keys = ApiKeys.read(path)
    assert keys.identify([(b"authorization", b"Bearer key-of-eve")]) == "1"
    path.write_text("# nobody\n")
    with pytest.raises(ValueError, match="holds no API key"):
        ApiKeys.read(path)
    path.write_text("short\n")
    with pytest.raises(ValueError, match="at least 8 characters"):
        ApiKeys.read(path)


# Rates


def test_a_minutes_requests_may_come_at_once_and_then_one_by_one() -> None:
    now = 0.0
    limit = RateLimit(6, clock=lambda: now)
    assert [limit.take("a")[0] for _ in range(7)] == [0.0] * 6 + [10.0]
    assert limit.take("b")[0] == 0.0
    now = 4.0
    assert limit.take("a")[0] == pytest.approx(6.0)
    now = 10.0
    wait_s, headers = limit.take("a")
    assert wait_s == 0.0
    assert dict(headers) == {
        b"x-ratelimit-limit-requests": b"6",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"60.000s",
    }
    assert limit.take("a")[0] == pytest.approx(10.0)


def test_who_asks_too_often_is_told_when_to_come_back(served: Any) -> None:
    keys = ApiKeys(["first-key", "second-key"])
    with served(keys=keys, limits=ServerLimits(requests_per_minute=2)) as url:
        assert ask(url, "first-key").headers["x-ratelimit-remaining-requests"] == "1"
        assert ask(url, "first-key").status_code == 200
        refused = ask(url, "first-key")
        assert ask(url, "second-key").status_code == 200
        metrics = httpx.get(f"{url}/metrics", headers={"x-api-key": "first-key"}).text
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert "palestra_rate_limited_total 1.0" in metrics


def test_beyond_the_most_concurrent_requests_clients_are_told_to_come_later(
    served: Any, said: Any
) -> None:
    replies = [said(message=ANSWER, hangs=True), ANSWER]
    with (
        served(replies, limits=ServerLimits(max_concurrent=1)) as url,
        httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "stream": True}),
    ):
        refused = ask(url)
        assert httpx.get(f"{url}/v1/models").status_code == 200
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"


@pytest.mark.parametrize("name", ["max_body_bytes", "requests_per_minute", "max_concurrent"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ServerLimits(**{name: 0})


# Bodies


def test_a_large_body_is_refused_by_its_length_alone(served: Any) -> None:
    with served(limits=ServerLimits(max_body_bytes=1000)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\n"
                b"Content-Type: application/json\r\nContent-Length: 1001\r\n\r\n"
            )
            assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
        text = "x" * (1000 - len('{"model":"tiny","messages":[{"role":"user","content":""}]}'))
        fits = httpx.post(
            f"{url}/v1/chat/completions",
            content=b'{"model":"tiny","messages":[{"role":"user","content":"%b"}]}' % text.encode(),
            headers={"content-type": "application/json"},
        )
    assert fits.status_code == 200


def test_a_large_body_without_a_length_is_refused_while_it_comes(served: Any) -> None:
    with served(limits=ServerLimits(max_body_bytes=1000)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\n"
                b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(3):  # and no end
                with contextlib.suppress(ConnectionError):
                    client.sendall(b"190\r\n" + b"x" * 400 + b"\r\n")
            answer = client.recv(1000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answer


def test_a_body_that_breaks_off_asks_nothing(served: Any) -> None:
    async def go(url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    with served() as url:
        asyncio.run(go(url))
        assert ask(url).status_code == 200
