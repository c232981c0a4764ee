import asyncio
import json
import multiprocessing
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from palestra.endpoint import Endpoint, EndpointError, Meter, Price, Reply, Request
from palestra.endpoint.scripted import Scripted, ScriptedServer

REQUEST = Request(model="m", messages=[{"role": "user", "content": "hello"}])
BROKEN = Scripted(status=500)


def complete(endpoint: Endpoint, request: Request = REQUEST, **options: Any) -> Reply:
    return asyncio.run(endpoint.complete(request, **options))


def in_order(answers: Iterable[str | Scripted]) -> Callable[[Any], str | Scripted]:
    remaining = iter(answers)
    return lambda body: next(remaining)


def failure(answer: Scripted, **options: Any) -> tuple[EndpointError, ScriptedServer]:
    """What a server that always answers this comes to."""
    with ScriptedServer(lambda body: answer) as server:
        endpoint = Endpoint(server.base_url, "secret-key-123", **{"attempts": 2, **options})
        with pytest.raises(EndpointError) as caught:
            complete(endpoint)
        assert endpoint.usage.failures == {caught.value.kind: 1}
    return caught.value, server


def test_a_request_arrives_as_it_was_made_and_its_reply_comes_back() -> None:
    request = Request(
        model="m",
        messages=REQUEST.messages,
        temperature=0.5,
        max_tokens=7,
        schema={"type": "object"},
        extra={"top_k": 3},
    )
    with ScriptedServer(lambda body: "hi") as server:
        reply = complete(Endpoint(server.base_url, "key"), request)
    assert reply.text == "hi" and reply.is_whole and not reply.cached
    [body] = server.requests
    assert server.headers[0]["authorization"] == "Bearer key"
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["model"], body["temperature"], body["max_tokens"], body["top_k"]) == (
        "m",
        0.5,
        7,
        3,
    )
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_what_is_not_asked_for_is_not_sent() -> None:
    with ScriptedServer(lambda body: "hi") as server:
        complete(Endpoint(server.base_url, "key"))
    assert server.requests[0].keys() == {"model", "messages"}


@pytest.mark.parametrize(
    "trouble",
    [
        Scripted(status=500),
        Scripted(status=503, raw="<html>"),
        Scripted(status=429),
        Scripted(status=408),
        Scripted(raw="not JSON"),
        Scripted(raw="[" * 100_000),
        Scripted(raw="{}"),
        Scripted(raw='{"choices": []}'),
        Scripted(raw='{"choices": [{"message": {"content": 7}}]}'),
        Scripted(raw="not JSON", headers={"content-type": "text/html"}),
        Scripted(text=None),
        Scripted(text="a reply that breaks off", cut_after=60),
        Scripted(text="", cut_after=0),
    ],
)
def test_what_may_pass_is_tried_again(trouble: Scripted) -> None:
    with ScriptedServer(in_order([trouble, "at last"])) as server:
        endpoint = Endpoint(server.base_url, "key", attempts=2)
        assert complete(endpoint).text == "at last"
    usage = endpoint.usage
    assert (usage.requests, usage.retries, usage.failures) == (2, 1, {})


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (Scripted(status=401, error={"message": "bad key secret-key-123"}), "unauthorized"),
        (Scripted(status=403), "unauthorized"),
        (Scripted(status=404, error={"message": "no model m"}), "not_found"),
        (Scripted(status=400, error={"message": "too long"}), "rejected"),
        (Scripted(status=422), "rejected"),
        (Scripted(status=429, error={"code": "insufficient_quota"}), "quota"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(trouble: Scripted, kind: str) -> None:
    error, server = failure(trouble)
    assert error.kind == kind
    assert len(server.requests) == 1


def test_a_key_that_the_server_repeats_is_not_shown() -> None:
    error, _ = failure(Scripted(status=401, error={"message": "bad key secret-key-123"}))
    assert "bad key" in str(error) and "secret-key-123" not in str(error)


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (BROKEN, "server"),
        (Scripted(status=429), "rate_limited"),
        (Scripted(raw="nonsense"), "malformed"),
        (Scripted(cut_after=10), "unreachable"),
    ],
)
def test_attempts_are_bounded_and_the_last_trouble_is_told(trouble: Scripted, kind: str) -> None:
    error, server = failure(trouble, attempts=3)
    assert error.kind == kind
    assert len(server.requests) == 3


def test_an_endpoint_that_is_not_there_is_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(EndpointError) as caught:
            complete(Endpoint(url, "key", attempts=2))
    assert caught.value.kind == "unreachable"
    assert url in str(caught.value)


@pytest.mark.parametrize("slow", [Scripted(delay_s=30), Scripted(text="drip", drip_s=0.1)])
def test_a_slow_reply_is_given_up_even_where_some_of_it_comes(slow: Scripted) -> None:
    started = time.monotonic()
    error, server = failure(slow, timeout_s=0.4, attempts=2)
    assert error.kind == "timeout"
    assert len(server.requests) == 2
    assert time.monotonic() - started < 10


def test_all_attempts_share_the_callers_time() -> None:
    with ScriptedServer(lambda body: Scripted(delay_s=30)) as server:
        endpoint = Endpoint(server.base_url, "key")
        with pytest.raises(EndpointError) as caught:
            complete(endpoint, within_s=0.4)
    assert caught.value.kind == "timeout"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("error", "parameter"),
    [
        ({"param": "response_format"}, "response_format"),
        ({"message": "unsupported"}, "response_format"),
        ({"param": "temperature", "code": "unsupported_value"}, "temperature"),
    ],
)
def test_a_parameter_that_the_model_refuses_is_left_out_and_remembered(
    error: dict[str, str], parameter: str
) -> None:
    def picky(body: dict[str, Any]) -> str | Scripted:
        return Scripted(status=400, error=error) if parameter in body else "hi"

    request = Request(
        model="m", messages=REQUEST.messages, temperature=0.0, schema={"type": "object"}
    )
    with ScriptedServer(picky) as server:
        endpoint = Endpoint(server.base_url, "key")
        assert complete(endpoint, request).text == complete(endpoint, request).text == "hi"
    assert [parameter in body for body in server.requests] == [True, False, False]


def test_models_that_want_max_completion_tokens_get_it() -> None:
    def reasoning_model(body: dict[str, Any]) -> str | Scripted:
        if "max_tokens" in body:
            return Scripted(status=400, error={"param": "max_tokens"})
        return str(body["max_completion_tokens"])

    request = Request(model="m", messages=REQUEST.messages, max_tokens=99)
    with ScriptedServer(reasoning_model) as server:
        assert complete(Endpoint(server.base_url, "key"), request).text == "99"


def test_usage_is_counted_with_what_it_costs() -> None:
    prices = {"m": Price(prompt=2.0, completion=10.0, cached_prompt=1.0)}
    answer = Scripted(text="hi", prompt_tokens=1000, completion_tokens=100, cached_tokens=400)
    with ScriptedServer(in_order([BROKEN, answer, answer, Scripted(prompt_tokens=None)])) as server:
        endpoint = Endpoint(server.base_url, "key", prices=prices)
        mine = Meter()
        reply = complete(endpoint, meter=mine)
        complete(endpoint, Request(model="unpriced", messages=REQUEST.messages))
        complete(endpoint)
    # 600 at 2 per million, 400 at 1, 100 at 10
    assert reply.cost == pytest.approx(0.0026)
    assert mine.usage.cost == pytest.approx(0.0026)
    assert (mine.usage.requests, mine.usage.retries) == (2, 1)
    usage = endpoint.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (2000, 200)
    assert (usage.unpriced, usage.uncounted) == (1, 1)
    assert usage.metrics("judge/")["judge/cost"] == pytest.approx(0.0026)


def _ask_in_child(endpoint: Endpoint) -> None:
    assert complete(endpoint).text == "hi"


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_asks_on_a_connection_of_its_own() -> None:
    with ScriptedServer(lambda body: "hi") as server:
        endpoint = Endpoint(server.base_url, "key")
        complete(endpoint)
        child = multiprocessing.get_context("fork").Process(target=_ask_in_child, args=(endpoint,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert complete(endpoint).text == "hi"


def test_an_endpoint_goes_to_another_process_without_its_connection() -> None:
    with ScriptedServer(lambda body: "hi") as server:
        endpoint = Endpoint(server.base_url, "key", concurrency=2)
        complete(endpoint)
        copy = pickle.loads(pickle.dumps(endpoint))
        assert copy.usage.requests == 0 and copy.concurrency == 2
        assert complete(copy).text == "hi"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key": "k"}, "OPENAI_BASE_URL"),
        ({"base_url": "http://localhost/v1"}, "OPENAI_API_KEY"),
        ({"base_url": "localhost/v1", "api_key": "k"}, "http://"),
        ({"base_url": "http://localhost/v1", "api_key": "k\n"}, "copy it again"),
        ({"base_url": "http://localhost/v1", "api_key": "k", "concurrency": 0}, "concurrency"),
        ({"base_url": "http://localhost/v1", "api_key": "k", "timeout_s": float("inf")}, "timeout"),
        ({"base_url": "http://localhost/v1", "api_key": "k", "cache": "/dev/null/x"}, "cache"),
    ],
)
def test_what_is_missing_or_wrong_is_said_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match=message):
        Endpoint(**options)


def test_where_and_with_what_key_to_ask_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedServer(lambda body: "hi") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "from-outside")
        assert complete(Endpoint()).text == "hi"
    assert server.headers[0]["authorization"] == "Bearer from-outside"


def test_importing_an_endpoint_does_not_import_the_client() -> None:
    program = "import sys, palestra.endpoint; print('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_scripted_bodies_are_what_the_client_reads() -> None:
    assert json.loads(Scripted(text="x").body("m"))["choices"][0]["message"]["content"] == "x"
