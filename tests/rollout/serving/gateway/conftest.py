"""An engine that says what it is told, in ids that re-tokenizing would not give."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from palestra.rollout import ChatFormat, Limits, tool_call
from palestra.rollout.engine import Piece
from palestra.rollout.serving.gateway_session import GatewaySession
from palestra.rollout.serving.reply import ReplyEnd, ReplyRequest
from palestra.tools import Tool, parse_reply, tool
from palestra.trainer.tiny import train_tokenizer
from palestra.types import Completion, Message, Sampling, VersionSpan


@tool(name="add")
async def _add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def _conversation(a: int, b: int) -> list[Message]:
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"What is {a} + {b}?"},
        parse_reply(tool_call("add", a=a, b=b)),
        {"role": "tool", "tool_call_id": "call_0", "name": "add", "content": str(a + b)},
        {"role": "assistant", "content": f"It is {a + b}."},
    ]


class SayingEngine:
    """Says `say(prompt, number)` to request `number`, given the prompt's text.

    Each reply is tokenized in two halves, so that its ids are not those of its text; every sampled
    token has a log-probability of its own. `error` is raised instead; while `gate` is not set,
    nothing ends.
    """

    def __init__(
        self,
        tokenizer: Any,
        say: Callable[[str, int], str],
        *,
        context_length: int = 4096,
    ) -> None:
        self.context_length = context_length
        self.version = 0
        self.running = 0
        self.prompts: list[tuple[int, ...]] = []
        self.samplings: list[Sampling] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._tokenizer = tokenizer
        self._say = say
        self._logprobs = itertools.count(1)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        number = len(self.prompts)
        self.prompts.append(tuple(prompt_ids))
        self.samplings.append(sampling)
        self.running += 1
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            text = self._say(self._tokenizer.decode(prompt_ids), number)
            half = (len(text) + number) // 2
            ids = [*self._encode(text[:half]), *self._encode(text[half:])]
            ids = [*ids, self._tokenizer.eos_token_id][: sampling.max_tokens]
            return Completion(
                ids=tuple(ids),
                logprobs=tuple(-1e-6 * next(self._logprobs) for _ in ids),
                stop_reason="stop" if ids[-1] == self._tokenizer.eos_token_id else "length",
                version_spans=(VersionSpan(version=self.version, start=0, end=len(ids)),),
            )
        finally:
            self.running -= 1

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        whole = await self.generate(prompt_ids, sampling)
        self.running += 1
        try:
            for index in range(len(whole.ids)):
                await asyncio.sleep(0)
                await self.gate.wait()
                is_last = index == len(whole.ids) - 1
                yield Piece(
                    ids=whole.ids[index : index + 1],
                    logprobs=whole.logprobs[index : index + 1],
                    stop_reason=whole.stop_reason if is_last else None,
                    version_spans=whole.version_spans if is_last else (),
                )
        finally:
            self.running -= 1

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        return (0.0,) * (len(token_ids) - 1)

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None:
        self.version = version

    async def aclose(self) -> None:
        pass

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


OpenSession = Callable[..., GatewaySession]
MakeEngine = Callable[..., SayingEngine]


@pytest.fixture(scope="session")
def add() -> Tool:
    """A tool."""
    return _add


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Of the tiny model."""
    conversations = [_conversation(a, 7 * a % 50) for a in range(60)]
    return train_tokenizer(conversations, [_add.schema()])


@pytest.fixture(scope="session")
def chat_format(tokenizer: Any) -> ChatFormat:
    """Of the tiny model."""
    return ChatFormat.from_tokenizer(tokenizer)


@pytest.fixture
def make_engine(tokenizer: Any) -> MakeEngine:
    """Makes an engine that says a text, or what a function of prompt and number gives."""

    def make(say: str | Callable[[str, int], str] = "It is 42.", **options: Any) -> SayingEngine:
        says = (lambda prompt, number: say) if isinstance(say, str) else say
        return SayingEngine(tokenizer, says, **options)

    return make


@pytest.fixture
def open_session(chat_format: ChatFormat) -> OpenSession:
    """Opens a session on an engine."""

    def open(
        engine: SayingEngine, *, sampling: Sampling | None = None, **limits: Any
    ) -> GatewaySession:
        return GatewaySession(
            engine,
            chat_format,
            sampling=sampling or Sampling(max_tokens=200),
            limits=Limits(**limits),
            seed_of=lambda number: 1000 + number,
        )

    return open


Ask = Callable[..., Any]


@pytest.fixture
def ask() -> Ask:
    """Asks a session, whole or streamed, and gives the end of its reply."""

    async def ask(
        session: GatewaySession,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        *,
        stream: bool = False,
        sampling: Sampling | None = None,
        **fields: Any,
    ) -> ReplyEnd:
        request = ReplyRequest(
            messages=tuple(messages),
            tools=tuple(tools),
            sampling=sampling or Sampling(max_tokens=200),
            **fields,
        )
        ends = [delta.end async for delta in session.reply(request, stream=stream) if delta.end]
        (end,) = ends
        return end

    return ask
