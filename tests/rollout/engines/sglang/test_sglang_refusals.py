"""What the SGLang engine refuses before it has a server: requests, impostors, models."""

import asyncio
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from palestra.rollout.engine_errors import (
    ConnectionLost,
    RawLogprobs,
    ServerNotStarted,
    UnsupportedServer,
)
from palestra.rollout.engine_sglang import SGLangEngine
from palestra.rollout.sglang_launch import sglang_command
from palestra.rollout.sglang_traits import read_traits
from palestra.rollout.sglang_wire import generate_body
from palestra.rollout.token_client import TokenClient
from palestra.types import Sampling


def test_a_cut_whose_logprobs_are_not_told_is_refused() -> None:
    options: dict[str, Any] = {"max_tokens": 1, "stop_ids": (), "request_id": "r"}
    for sampling in (Sampling(top_p=0.9), Sampling(top_k=5000)):
        with pytest.raises(RawLogprobs, match="set top_k to 1 to 4096"):
            generate_body((1,), sampling, max_support=4096, vocab_size=150_000, **options)
    body = generate_body((1,), Sampling(), max_support=4096, vocab_size=150_000, **options)
    assert "return_sampling_mask" not in body


@pytest.fixture
def impostor() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server that answers each path with what the dictionary has for it."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(answers.get(self.path)).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, "is no SGLang server"),
        ({"/server_info": {"version": "nightly"}}, "is no SGLang server"),
        ({"/server_info": {"version": "0.4.9"}}, r"is SGLang 0\.4\.9, 0\.5\.23 or newer"),
        ({"/server_info": {"version": "0.5.23"}}, "does not say what it serves"),
        (
            {
                "/server_info": {"version": "0.5.23", "max_req_input_len": 100},
                "/model_info": {"model_path": "/not/here", "weight_version": "default"},
            },
            "pass vocab_size",
        ),
    ],
)
def test_a_server_of_another_kind_or_age_is_refused(
    impostor: tuple[str, dict[str, Any]], answers: dict[str, Any], message: str
) -> None:
    impostor[1].update(answers)
    with pytest.raises(UnsupportedServer, match=message):
        asyncio.run(SGLangEngine.attach(impostor[0], stop_ids=frozenset()))


def test_a_server_that_is_not_there_is_named() -> None:
    async def attach() -> None:
        client = TokenClient("http://127.0.0.1:9", retry_s=0)
        try:
            await read_traits(client)
        finally:
            await client.close()

    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:9"):
        asyncio.run(attach())


def test_a_model_or_context_that_is_not_there_is_refused(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    options: dict[str, Any] = {"python": "python", "dtype": "float32", "max_concurrent": 1}
    with pytest.raises(ServerNotStarted, match="has no config"):
        sglang_command(tmp_path, context_length=8, on_gpu=False, **options)
    with pytest.raises(ServerNotStarted, match="context_length 5000 is longer than the 1024"):
        sglang_command(tiny_model_folder, context_length=5000, on_gpu=False, **options)
