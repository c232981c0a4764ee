"""`ScriptedServer`: an OpenAI-compatible server on loopback whose replies a function makes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scripted:
    """What the server answers: a chat completion, or a `status` and what else goes wrong.

    `raw` goes out in place of the JSON, `delay_s` passes before anything does, and of the body only
    the first `cut_after` bytes are sent before the connection breaks; with `drip_s` its bytes come
    one by one, so many seconds apart.
    """

    text: str | None = ""
    finish_reason: str = "stop"
    refusal: str | None = None
    tool_calls: Any = None
    reasoning_content: str | None = None
    prompt_tokens: int | None = 100
    completion_tokens: int = 10
    cached_tokens: int = 0
    status: int = 200
    error: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: str | None = None
    delay_s: float = 0.0
    cut_after: int | None = None
    drip_s: float = 0.0

    def body(self, model: str) -> bytes:
        """The response's body."""
        if self.raw is not None:
            return self.raw.encode()
        if self.status >= 400:
            return json.dumps({"error": {"message": "scripted", **self.error}}).encode()
        message: Body = {"role": "assistant", "content": self.text}
        if self.refusal is not None:
            message["refusal"] = self.refusal
        if self.tool_calls is not None:
            message["tool_calls"] = self.tool_calls
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        completion: Body = {
            "id": "scripted",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
        }
        if self.prompt_tokens is not None:
            completion["usage"] = {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            }
        return json.dumps(completion).encode()


class ScriptedServer:
    """For tests of what asks an endpoint, without a model:

        with ScriptedServer(lambda body: "42") as server:
            reply = await Endpoint(server.base_url, "none").complete(…)
        assert len(server.requests) == 1

    The function gets each request's body, in threads, and returns a text or a `Scripted`.
    `requests` are the bodies so far, `headers` what came with them, `peak` how many there were at
    once at most.
    """

    def __init__(self, answer: Callable[[Body], str | Scripted]) -> None:
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.times_s: list[float] = []
        self.peak = 0
        self._answer = answer
        self._current = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # the name that http.server calls
                outer._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on standard error."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def base_url(self) -> str:
        """Where it listens, for `Endpoint`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.requests.append(body)
            self.headers.append({name.lower(): text for name, text in handler.headers.items()})
            self.times_s.append(time.monotonic())
            self._current += 1
            self.peak = max(self.peak, self._current)
        try:
            answer = self._answer(body)
            answer = Scripted(text=answer) if isinstance(answer, str) else answer
            if self._stopped.wait(answer.delay_s):
                handler.close_connection = True
                return
        finally:
            with self._lock:
                self._current -= 1
        self._write(handler, answer, answer.body(str(body.get("model"))))

    def _write(self, handler: BaseHTTPRequestHandler, answer: Scripted, data: bytes) -> None:
        try:
            handler.send_response(answer.status)
            for name, text in {"content-type": "application/json", **answer.headers}.items():
                handler.send_header(name, text)
            handler.send_header("content-length", str(len(data)))
            handler.end_headers()
            if answer.drip_s:
                for byte in data:
                    handler.wfile.write(bytes([byte]))
                    handler.wfile.flush()
                    if self._stopped.wait(answer.drip_s):
                        break
            elif answer.cut_after is None:
                handler.wfile.write(data)
                return
            else:
                handler.wfile.write(data[: answer.cut_after])
            handler.close_connection = True
        except OSError:  # whoever asked is gone
            handler.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are what it is for."""
