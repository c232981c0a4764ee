"""Models, health, metrics, and that whatever is sent is answered with a 4xx in JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from palestra.rollout.serving.app import Served, build_app
from palestra.rollout.serving.reply import ReplyDelta, ReplyRequest
from palestra.rollout.serving.text_completer import TextCompleter, TextRequest
from palestra.rollout.serving.traffic import Traffic

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
ANSWER = {"role": "assistant", "content": "Hi."}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error, dict)
    return error


def test_the_models_are_those_that_requests_may_ask_for(serve_app: Any, scripted: Any) -> None:
    replier = scripted([], models=("tiny", "org/tiny"))
    app = build_app(
        Served(
            find_replier=lambda request: replier, models=("tiny", "org/tiny"), context_length=100
        )
    )
    with serve_app(app) as url:
        listed = httpx.get(f"{url}/v1/models").json()
        one = httpx.get(f"{url}/v1/models/org/tiny").json()
        error = error_of(httpx.get(f"{url}/v1/models/org/huge"), 404)
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny", "org/tiny"]
    assert one == listed["data"][1]
    assert (one["object"], one["owned_by"], one["max_model_len"]) == ("model", "palestra", 100)
    assert error["code"] == "model_not_found"


def test_health_is_503_while_the_engine_is_away_or_the_server_goes_down(
    serve_app: Any, scripted: Any
) -> None:
    trouble = ""
    traffic = Traffic()
    app = build_app(
        Served(
            find_replier=lambda request: scripted([]),
            models=("tiny",),
            context_length=100,
            find_trouble=lambda: trouble,
            traffic=traffic,
        )
    )
    with serve_app(app) as url:
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "reason": ""}
        trouble = "the engine is not available"
        away = httpx.get(f"{url}/health")
        assert "palestra_engine_up 0.0" in httpx.get(f"{url}/metrics").text
        trouble = ""
        traffic.is_draining = True
        going = httpx.get(f"{url}/health")
        refused = httpx.post(f"{url}/v1/chat/completions", json=BODY)
    assert (away.status_code, away.json()["reason"]) == (503, "the engine is not available")
    assert going.status_code == 503
    assert error_of(refused, 503)["code"] == "shutting_down"
    assert int(refused.headers["retry-after"]) >= 1


def test_the_metrics_count_requests_and_tokens(serve: Any, scripted: Any) -> None:
    with serve(scripted([ANSWER, ANSWER])) as url:
        httpx.post(f"{url}/v1/chat/completions", json=BODY)
        httpx.post(f"{url}/v1/chat/completions", json={**BODY, "stream": True})
        httpx.post(f"{url}/v1/chat/completions", json={})
        httpx.get(f"{url}/v1/models/tiny")
        httpx.get(f"{url}/some/{'random' * 5}/path")
        text = httpx.get(f"{url}/metrics").text
    for line in (
        'palestra_requests_total{route="/v1/chat/completions",status="200"} 2.0',
        'palestra_requests_total{route="/v1/chat/completions",status="400"} 1.0',
        'palestra_requests_total{route="/v1/models/{model}",status="200"} 1.0',
        'palestra_requests_total{route="none",status="404"} 1.0',
        "palestra_prompt_tokens_total 6.0",
        "palestra_completion_tokens_total 4.0",
        "palestra_first_token_seconds_count 1.0",
        'palestra_request_seconds_count{route="/v1/chat/completions"} 3.0',
        "palestra_requests_in_flight 1.0",
        "palestra_engine_up 1.0",
    ):
        assert f"\n{line}\n" in text, text
    assert "random" not in text


def test_what_is_not_there_is_answered_in_json(serve: Any, scripted: Any) -> None:
    with serve(scripted([])) as url:
        assert error_of(httpx.get(f"{url}/v1/nothing"), 404)["code"] == "unknown_url"
        assert error_of(httpx.get(f"{url}/docs"), 404)["code"] == "unknown_url"
        wrong = httpx.get(f"{url}/v1/chat/completions")
        assert error_of(wrong, 405)["code"] == "method_not_allowed"
        assert wrong.headers["allow"] == "POST"
        assert wrong.headers["x-request-id"].startswith("req_")


CHAT = json.dumps(BODY).encode()
DEEP = b"[" * 500 + b"]" * 500


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"null", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"text"', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (CHAT.replace(b"Hello", b"\xff"), "application/json", 400),
        (CHAT.replace(b"Hello", rb"\ud800"), "application/json", 400),
        (CHAT[:-1] + b', "temperature": NaN}', "application/json", 400),
        (CHAT[:-1] + b', "temperature": 1e999}', "application/json", 400),
        (CHAT[:-1] + b', "seed": 1' + b"0" * 5000 + b"}", "application/json", 400),
        (CHAT[:-1] + b', "seed": 1' + b"0" * 30 + b"}", "application/json", 400),
        (CHAT[:-1] + b', "metadata": ' + DEEP + b"}", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 100_000, "application/json", 400),
        (CHAT, "text/plain", 415),
        (CHAT, "application/x-www-form-urlencoded", 415),
        (CHAT, "multipart/form-data", 415),
        (CHAT, "", 415),
        (CHAT, "application/json; charset=utf-16", 200),
        (CHAT.replace(b"Hello", rb"\u0000<|im_end|>\u202e"), "application/json", 200),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_hostile_bodies_are_answered_with_what_is_wrong(
    serve: Any, scripted: Any, body: bytes, content_type: str, status: int
) -> None:
    with serve(scripted([ANSWER])) as url:
        for path in ("completions", "chat/completions", "responses", "messages"):
            if status == 200 and path != "chat/completions":
                continue
            answer = httpx.post(
                f"{url}/v1/{path}", content=body, headers={"content-type": content_type}
            )
            if path == "completions":  # not served here
                assert answer.status_code == 404
                continue
            assert answer.status_code == status, (path, answer.text)
            assert answer.headers["content-type"] == "application/json"
            if status >= 400:
                assert len(answer.text) < 2000
                assert answer.json()["error"]["message"]


# Fuzzing by the OpenAPI document


class Brief:
    """The tiny model, which says little however much it is asked for."""

    models = ("tiny",)

    def __init__(self, tiny: Any) -> None:
        self.tiny = tiny

    def reply(self, request: ReplyRequest, *, stream: bool) -> AsyncGenerator[ReplyDelta, None]:
        sampling = replace(request.sampling, max_tokens=min(3, request.sampling.max_tokens))
        request = replace(request, sampling=sampling, n=min(2, request.n))
        replies: AsyncGenerator[ReplyDelta, None] = self.tiny.replier.reply(request, stream=stream)
        return replies

    def count_prompt(self, request: ReplyRequest) -> int:
        count: int = self.tiny.replier.count_prompt(request)
        return count


class BriefCompleter(TextCompleter):
    """The same for completions."""

    def __init__(self, completer: TextCompleter) -> None:
        self.completer = completer

    def complete(self, request: TextRequest) -> AsyncGenerator[ReplyDelta, None]:
        sampling = replace(request.sampling, max_tokens=min(3, request.sampling.max_tokens))
        brief = replace(request, sampling=sampling, n=1, prompts=request.prompts[:2])
        return self.completer.complete(brief)


@pytest.fixture(scope="module")
def brief_url(serve_app: Any, tiny: Any) -> Any:
    app = build_app(
        Served(
            find_replier=lambda request: Brief(tiny),
            models=("tiny",),
            context_length=256,
            completer=BriefCompleter(tiny.completer),
        )
    )
    with serve_app(app) as url:
        yield url


APIS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
]
OTHERS = ["/v1/models", "/v1/models/{model}", "/health", "/metrics"]
ALLOWED, FORBIDDEN = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("path", "mode"),
    [(path, ALLOWED) for path in APIS + OTHERS] + [(path, FORBIDDEN) for path in APIS],
)
def test_whatever_the_document_allows_or_forbids_is_no_500(
    brief_url: str, path: str, mode: schemathesis.GenerationMode
) -> None:
    document = httpx.get(f"{brief_url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    method = next(iter(document["paths"][path])).upper()
    operation = schema[path][method]
    statuses: list[int] = []

    @settings(
        max_examples=40,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def fuzz(case: schemathesis.Case[Any]) -> None:
        if isinstance(case.body, dict) and len(statuses) % 2:
            case.body["model"] = "tiny"  # most of what is wrong comes to light behind it
        answer = case.call(base_url=brief_url)
        statuses.append(answer.status_code)
        assert answer.status_code < 500, (case.body, answer.text)
        if answer.status_code >= 400:
            body = answer.json()
            assert set(body["error"]) >= {"message", "type"}, body
            if not path.startswith("/v1/messages"):
                assert set(body["error"]) == {"message", "type", "param", "code"}, body

    fuzz()
    # The document is worth something: some of what it allows is answered.
    assert mode is FORBIDDEN or path == "/v1/models/{model}" or 200 in statuses, statuses
