import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from palestra.endpoint import Endpoint, Price, Reply, Request
from palestra.endpoint.scripted import Scripted, ScriptedServer

REQUEST = Request(model="m", messages=[{"role": "user", "content": "hello"}])


def complete(endpoint: Endpoint, request: Request = REQUEST, **options: Any) -> Reply:
    return asyncio.run(endpoint.complete(request, **options))


def in_order(answers: Iterable[str | Scripted]) -> Callable[[Any], str | Scripted]:
    remaining = iter(answers)
    return lambda body: next(remaining)


def test_a_second_request_for_the_same_comes_from_the_cache_for_nothing(tmp_path: Path) -> None:
    prices = {"m": Price(prompt=2.0, completion=10.0)}
    with ScriptedServer(lambda body: "hi") as server:
        endpoint = Endpoint(server.base_url, "key", cache=tmp_path, prices=prices)
        first, second = complete(endpoint), complete(endpoint)
        assert (first.text, first.cached) == ("hi", False)
        assert (second.text, second.cached, second.cost) == ("hi", True, 0.0)
        assert endpoint.usage.cost == first.cost
        assert (endpoint.usage.requests, endpoint.usage.cached) == (1, 1)
        complete(endpoint, Request(model="other", messages=REQUEST.messages))
        complete(endpoint, Request(model="m", messages=REQUEST.messages, temperature=1.0))
        complete(endpoint, sample=1)
    assert len(server.requests) == 4


def test_the_cache_holds_neither_the_key_nor_the_request(tmp_path: Path) -> None:
    with ScriptedServer(lambda body: "hi") as server:
        complete(Endpoint(server.base_url, "secret-key-123", cache=tmp_path))
    [file] = tmp_path.rglob("*.json")
    assert "secret-key-123" not in file.read_text() and "hello" not in file.read_text()


@pytest.mark.parametrize(
    "answer",
    [Scripted(text="cut", finish_reason="length"), Scripted(text="no", refusal="I will not")],
)
def test_a_reply_that_is_not_whole_is_not_kept(tmp_path: Path, answer: Scripted) -> None:
    with ScriptedServer(lambda body: answer) as server:
        endpoint = Endpoint(server.base_url, "key", cache=tmp_path)
        complete(endpoint)
        complete(endpoint)
    assert len(server.requests) == 2
    assert list(tmp_path.rglob("*.*")) == []


def test_a_reply_that_the_caller_does_not_accept_is_not_kept(tmp_path: Path) -> None:
    def only_good(reply: Reply) -> None:
        if reply.text != "good":
            raise ValueError(f"{reply.text} is not good")

    with ScriptedServer(in_order(["bad", "good"])) as server:
        endpoint = Endpoint(server.base_url, "key", cache=tmp_path)
        with pytest.raises(ValueError, match="bad is not good"):
            complete(endpoint, accept=only_good)
        assert complete(endpoint, accept=only_good).text == "good"
        assert complete(endpoint, accept=only_good).cached
    assert endpoint.usage.prompt_tokens == 200  # the bad one was paid for


def test_what_varies_is_in_no_key_and_comes_back_as_it_is_now(tmp_path: Path) -> None:
    def asking(nonce: str) -> Request:
        return Request(model="m", messages=[{"role": "user", "content": f"say {nonce} twice"}])

    def repeat(body: dict[str, Any]) -> str:
        nonce = body["messages"][0]["content"].split()[1]
        return f"{nonce} {nonce}"

    with ScriptedServer(repeat) as server:
        endpoint = Endpoint(server.base_url, "key", cache=tmp_path)
        assert complete(endpoint, asking("abc"), varying="abc").text == "abc abc"
        kept = complete(endpoint, asking("xyz"), varying="xyz")
    assert (kept.text, kept.cached) == ("xyz xyz", True)


@pytest.mark.parametrize("damage", ["", "{", '{"format": 1}', "[1]", '{"format": 0, "text": "x"}'])
def test_a_damaged_file_of_the_cache_is_a_miss(tmp_path: Path, damage: str) -> None:
    with ScriptedServer(lambda body: "hi") as server:
        endpoint = Endpoint(server.base_url, "key", cache=tmp_path)
        complete(endpoint)
        [file] = tmp_path.rglob("*.json")
        file.write_text(damage)
        assert not complete(endpoint).cached
        assert complete(endpoint).cached


PROGRAM = """
import asyncio, sys
from palestra.endpoint import Endpoint, Request

async def ask():
    endpoint = Endpoint(sys.argv[1], "key", cache=sys.argv[2])
    requests = [Request(model="m", messages=[{"role": "user", "content": str(i % 20)}])
                for i in range(100)]
    replies = await asyncio.gather(*map(endpoint.complete, requests))
    assert [reply.text for reply in replies] == [str(i % 20) * 1000 for i in range(100)]

asyncio.run(ask())
"""


def test_processes_share_a_cache(tmp_path: Path) -> None:
    def repeat(body: dict[str, Any]) -> str:
        return str(body["messages"][0]["content"]) * 1000

    with ScriptedServer(repeat) as server:
        command = [sys.executable, "-c", PROGRAM, server.base_url, str(tmp_path)]
        running = [subprocess.Popen(command) for _ in range(2)]
        assert [process.wait(120) for process in running] == [0, 0]
        sent = len(server.requests)
        endpoint = Endpoint(server.base_url, "key", cache=tmp_path)
        for i in range(20):
            request = Request(model="m", messages=[{"role": "user", "content": str(i)}])
            assert complete(endpoint, request).cached
    assert len(server.requests) == sent
    assert len(list(tmp_path.rglob("*.json"))) == 20
    assert list(tmp_path.rglob("*.part")) == []


def test_a_reply_that_looks_like_what_the_cache_writes_comes_back_as_it_was(tmp_path: Path) -> None:
    with ScriptedServer(lambda body: "a \0varying\0 b") as server:
        endpoint = Endpoint(server.base_url, "key", cache=tmp_path)
        for nonce in ("abc", "xyz"):
            assert complete(endpoint, varying=nonce).text == "a \0varying\0 b"
