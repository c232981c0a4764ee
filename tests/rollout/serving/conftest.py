"""A replier that says what it is told, and its application on a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import uvicorn
from starlette.types import ASGIApp

from palestra.rollout import ChatFormat
from palestra.rollout.engine_hf import HFEngine
from palestra.rollout.serving.app import Served, build_app
from palestra.rollout.serving.model_replier import ModelReplier
from palestra.rollout.serving.reply import (
    CallDelta,
    ReplyDelta,
    ReplyEnd,
    ReplyRequest,
    TokenLogprob,
)
from palestra.rollout.serving.text_completer import TextCompleter
from palestra.tools import calculator
from palestra.trainer.load import save_policy
from palestra.trainer.tiny import build_policy
from palestra.types import Message, Turn

_PIECE_CHARS = 3


@dataclass(frozen=True, kw_only=True)
class Said:
    """One scripted reply; `error` ends it in the middle, `hangs` leaves it without an end."""

    message: Message
    is_cut: bool = False
    stop_string: str | None = None
    error: Exception | None = None
    hangs: bool = False


@dataclass
class ScriptedReplier:
    """Gives its replies one after the other and notes what it was asked.

    An exception among them is raised before the first delta.
    """

    replies: Sequence[Said | Message | Exception]
    models: tuple[str, ...] | None = ("tiny",)
    requests: list[ReplyRequest] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    async def reply(
        self, request: ReplyRequest, *, stream: bool
    ) -> AsyncGenerator[ReplyDelta, None]:
        said = self.replies[len(self.requests)]
        self.requests.append(request)
        if isinstance(said, Exception):
            raise said
        said = said if isinstance(said, Said) else Said(message=said)
        try:
            for delta in _deltas(said, request, stream=stream):
                await asyncio.sleep(0)
                yield delta
            if said.hangs:
                await asyncio.sleep(3600)
        finally:
            self.closed.set()

    def count_prompt(self, request: ReplyRequest) -> int:
        return len(request.messages)


def _deltas(said: Said, request: ReplyRequest, *, stream: bool) -> Iterator[ReplyDelta]:
    message = said.message
    end = ReplyEnd(
        finish_reason="length"
        if said.is_cut
        else ("tool_calls" if message.get("tool_calls") else "stop"),
        message=message,
        turn=Turn(
            message=message,
            sampling=request.sampling,
            prompt_ids=(1, 2, 3),
            completion_ids=(4, 5),
            logprobs=(-0.5, -0.5),
        ),
        stop_string=said.stop_string,
    )
    calls: list[CallDelta] = []
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        calls.append(CallDelta(index=index, id=call["id"], name=function["name"]))
        calls += [
            CallDelta(index=index, arguments=piece) for piece in _pieces(function["arguments"])
        ]
    reasoning, content = message.get("reasoning_content", ""), message["content"]
    if not stream:
        yield ReplyDelta(
            choice=0, reasoning=reasoning, content=content, calls=tuple(calls), end=end
        )
        return
    for piece in _pieces(reasoning):
        yield ReplyDelta(choice=0, reasoning=piece, tokens=_tokens(piece, request))
    for piece in _pieces(content):
        yield ReplyDelta(choice=0, content=piece, tokens=_tokens(piece, request))
    for delta in calls:
        yield ReplyDelta(choice=0, calls=(delta,), tokens=_tokens(delta.arguments, request))
    if said.error:
        raise said.error
    if not said.hangs:
        yield ReplyDelta(choice=0, end=end)


def _pieces(text: str) -> list[str]:
    return [text[i : i + _PIECE_CHARS] for i in range(0, len(text), _PIECE_CHARS)]


def _tokens(text: str, request: ReplyRequest) -> tuple[TokenLogprob, ...]:
    if request.top_logprobs is None or not text:
        return ()
    top = tuple(
        TokenLogprob(text=letter, bytes=letter.encode(), logprob=-1.0)
        for letter in "xyz"[: request.top_logprobs]
    )
    return (TokenLogprob(text=text, bytes=text.encode(), logprob=-0.5, top=top),)


ServeApp = Callable[[ASGIApp], AbstractContextManager[str]]
Serve = Callable[[ScriptedReplier], AbstractContextManager[str]]


@contextmanager
def _serve_app(app: ASGIApp) -> Iterator[str]:
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


@contextmanager
def _serve(replier: ScriptedReplier) -> Iterator[str]:
    app = build_app(
        Served(find_replier=lambda request: replier, models=("tiny",), context_length=100)
    )
    with _serve_app(app) as url:
        yield url


@pytest.fixture(scope="session")
def serve_app() -> ServeApp:
    """Runs an application on loopback and gives its base URL."""
    return _serve_app


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Runs the APIs over a replier on loopback and gives the base URL."""
    return _serve


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedReplier]:
    """A replier that says what it is told."""
    return ScriptedReplier


@pytest.fixture(scope="session")
def said() -> type[Said]:
    """A scripted reply that ends otherwise than by itself."""
    return Said


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A tiny random model that samples in this process; its context is 256 tokens."""

    replier: ModelReplier
    completer: TextCompleter


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """The tiny model, for one server after another at most."""
    torch.set_num_threads(1)
    conversation = [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "3"}]
    model, tokenizer = build_policy([(conversation, [calculator.schema()])])
    chat_format = ChatFormat.from_tokenizer(tokenizer)
    engine = HFEngine(
        model.eval(),
        stop_ids=chat_format.stop_ids,
        max_slots=8,
        context_length=256,
        tokenizer=tokenizer,
    )
    return Tiny(
        replier=ModelReplier(engine, chat_format, models=("tiny",)),
        completer=TextCompleter(
            engine, encode=tokenizer.encode, token_bytes=chat_format.token_bytes
        ),
    )


@pytest.fixture(scope="module")
def tiny_url(tiny: Tiny) -> Iterator[str]:
    """The base URL of the APIs over the tiny model."""
    app = build_app(
        Served(
            find_replier=lambda request: tiny.replier,
            models=("tiny",),
            context_length=256,
            completer=tiny.completer,
        )
    )
    with _serve_app(app) as url:
        yield url


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    conversation = [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "3"}]
    model, tokenizer = build_policy([(conversation, [calculator.schema()])])
    save_policy(model, tokenizer, ChatFormat.from_tokenizer(tokenizer), folder)
    return folder
