"""An engine's tokens become replies: as they come, cut where they end, and ended when unwanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import ConnectionLost, ContextOverflow, RequestFailed
from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.conversations import KnownPrompt
from palestra.rollout.serving.model_replier import ModelReplier
from palestra.rollout.serving.reply import ReplyDelta, ReplyEnd, ReplyRequest
from palestra.rollout.serving.sampled_replies import sample_replies
from palestra.trainer.tiny import train_tokenizer
from palestra.types import Completion, Message, Sampling, ToolSchema, VersionSpan

ASKED: Message = {"role": "user", "content": "17 + 25?"}
TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {}},
    },
}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 17}}</tool_call>'
END = "<|im_end|>"


@cache
def chat() -> ChatFormat:
    return ChatFormat.from_tokenizer(train_tokenizer([[ASKED]], []))


def encode(text: str) -> tuple[int, ...]:
    return tuple(chat().encode_written(text))


@dataclass
class TokenEngine:
    """Samples the texts that it is given, a token at a time; `error` instead of the last one.

    Reply number i of a request is text number i: they are told apart by their seeds.
    """

    texts: Sequence[str]
    context_length: int = 1000
    version: int = 3
    error: Exception | None = None
    stop_reason: str | None = None
    spans: bool = True
    asked: list[tuple[tuple[int, ...], Sampling, int | None]] = field(default_factory=list)
    streamed: int = 0
    closed: int = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        ids, reason, spans = self._sample(prompt_ids, sampling, None)
        if self.error:
            raise self.error
        return Completion(
            ids=ids, logprobs=(-0.5,) * len(ids), stop_reason=reason, version_spans=spans
        )

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        ids, reason, spans = self._sample(prompt_ids, sampling, top_logprobs)
        try:
            for token_id in ids:
                await asyncio.sleep(0)
                self.streamed += 1
                top = (((token_id, -0.5), (0, -2.0))[:top_logprobs],) if top_logprobs else ()
                yield Piece(ids=(token_id,), logprobs=(-0.5,), top_logprobs=top)
            if self.error:
                raise self.error
            yield Piece(ids=(), logprobs=(), stop_reason=reason, version_spans=spans)
        finally:
            self.closed += 1

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        raise NotImplementedError

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None:
        self.version = version

    async def aclose(self) -> None:
        pass

    def _sample(
        self, prompt_ids: Sequence[int], sampling: Sampling, top: int | None
    ) -> tuple[tuple[int, ...], str, tuple[VersionSpan, ...]]:
        self.asked.append((tuple(prompt_ids), sampling, top))
        all_ids = encode(self.texts[(sampling.seed or 0) % len(self.texts)])
        ids = all_ids[: sampling.max_tokens]
        reason = self.stop_reason or ("stop" if ids[-1] in chat().stop_ids else "length")
        half = len(ids) // 2
        spans = (
            VersionSpan(version=2, start=0, end=half),
            VersionSpan(version=3, start=half, end=len(ids)),
        )
        return ids, reason, spans if self.spans else ()


def asking(**options: Any) -> ReplyRequest:
    options = {"messages": (ASKED,), "sampling": Sampling(max_tokens=500, seed=0), **options}
    return ReplyRequest(**options)


def prompt_of(request: ReplyRequest) -> KnownPrompt:
    ids = tuple(chat().render(request.messages, request.tools))
    return KnownPrompt(ids=ids, parent=None, messages=request.messages)


def sample(engine: TokenEngine, request: ReplyRequest, *, stream: bool = True) -> list[ReplyDelta]:
    async def read() -> list[ReplyDelta]:
        replies = sample_replies(engine, chat(), request, prompt_of(request), stream=stream)
        return [delta async for delta in replies]

    return asyncio.run(read())


def end_of(deltas: Sequence[ReplyDelta]) -> ReplyEnd:
    [end] = [delta.end for delta in deltas if delta.end is not None]
    return end


def test_a_streamed_reply_comes_token_by_token_and_ends_with_its_turn() -> None:
    engine = TokenEngine(["The answer is 42." + END])
    request = asking()
    deltas = sample(engine, request)
    assert len([delta for delta in deltas if delta.content]) > 3
    assert "".join(delta.content for delta in deltas) == "The answer is 42."
    assert [delta.end is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    end = end_of(deltas)
    turn = end.turn
    assert end.finish_reason == turn.stop_reason == "stop"
    assert end.message == turn.message == {"role": "assistant", "content": "The answer is 42."}
    assert turn.prompt_ids == prompt_of(request).ids == engine.asked[0][0]
    assert turn.completion_ids == encode("The answer is 42." + END)
    assert len(turn.logprobs) == len(turn.completion_ids) == end.completion_tokens
    assert turn.sampling == engine.asked[0][1] and turn.parent is None
    assert [span.version for span in turn.version_spans] == [2, 3]


def test_without_stream_a_reply_is_one_delta_of_one_generation() -> None:
    engine = TokenEngine([f"<think>Hm.</think>Adding. {CALL}{END}"])
    [delta] = sample(engine, asking(tools=(TOOL,)), stream=False)
    assert (delta.reasoning, delta.content) == ("Hm.", "Adding.")
    assert [(call.name, call.arguments) for call in delta.calls] == [
        ("add", ""),
        (None, '{"a": 17}'),
    ]
    assert end_of([delta]).finish_reason == "tool_calls"
    assert engine.streamed == 0


@pytest.mark.parametrize("stream", [True, False])
def test_several_replies_have_their_own_seeds_and_come_side_by_side(stream: bool) -> None:
    texts = [f"{word} and so on{END}" for word in ("one", "two", "three")]
    engine = TokenEngine(texts)
    request = asking(n=3, sampling=Sampling(max_tokens=500, seed=3))
    deltas = sample(engine, request, stream=stream)
    assert [sampling.seed for _, sampling, _ in engine.asked] == [3, 4, 5]
    for choice, text in enumerate(texts):
        own = [delta for delta in deltas if delta.choice == choice]
        assert end_of(own).message["content"] == text.removesuffix(END)
    if stream:
        assert {delta.choice for delta in deltas[:6]} == {0, 1, 2}
    else:
        assert len(deltas) == 3


def test_without_a_seed_none_is_given() -> None:
    engine = TokenEngine(["42" + END])
    sample(engine, asking(n=2, sampling=Sampling(max_tokens=10)))
    assert [sampling.seed for _, sampling, _ in engine.asked] == [None, None]


@pytest.mark.parametrize("n", [1, 3])
def test_closing_the_replies_ends_the_generations(n: int) -> None:
    engine = TokenEngine(["word " * 100])

    async def read_one() -> None:
        request = asking(n=n)
        replies = sample_replies(engine, chat(), request, prompt_of(request), stream=True)
        async with aclosing(replies):
            async for _ in replies:
                break
        assert engine.closed == n
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(read_one())
    assert engine.streamed < 100


def test_cancelling_ends_the_generations() -> None:
    engine = TokenEngine(["word " * 400], context_length=10_000)

    begun = asyncio.Event()

    async def read() -> None:
        request = asking(n=2, sampling=Sampling(max_tokens=5000, seed=0))
        async for _ in sample_replies(engine, chat(), request, prompt_of(request), stream=True):
            begun.set()

    async def cancel() -> None:
        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(cancel())
    assert engine.closed == 2 and engine.streamed < 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_string_ends_the_generation(stream: bool) -> None:
    engine = TokenEngine(["The answer is 42. Or 43?" + END])
    deltas = sample(engine, asking(stop=("2.", "?")), stream=stream)
    assert "".join(delta.content for delta in deltas) == "The answer is 4"
    end = end_of(deltas)
    assert (end.finish_reason, end.turn.stop_reason, end.stop_string) == ("stop", "stop", "2.")
    sampled = encode("The answer is 42. Or 43?")
    count = len(end.turn.completion_ids)
    assert end.turn.completion_ids == sampled[:count] and count < len(sampled)
    assert chat().text(sampled[:count]).endswith("2.")
    assert engine.streamed == count and engine.closed == 1
    # Nobody has told which weights these were: the engine's own when they came.
    assert end.turn.version_spans == (VersionSpan(version=3, start=0, end=count),)


@pytest.mark.parametrize("stream", [True, False])
def test_where_one_call_is_wanted_the_generation_ends_behind_it(stream: bool) -> None:
    engine = TokenEngine([f"{CALL}{CALL}{END}"])
    request = asking(tools=(TOOL,), parallel_tool_calls=False)
    end = end_of(sample(engine, request, stream=stream))
    assert len(end.message["tool_calls"]) == 1 and end.finish_reason == "tool_calls"
    assert end.turn.completion_ids == encode(CALL)


@pytest.mark.parametrize("options", [{}, {"tools": (TOOL,), "tool_choice": "none"}])
def test_without_tools_a_call_is_text(options: dict[str, Any]) -> None:
    engine = TokenEngine([CALL + END])
    end = end_of(sample(engine, asking(**options)))
    assert end.message == {"role": "assistant", "content": CALL} and end.finish_reason == "stop"


def test_a_reply_that_is_cut_says_so_and_is_no_longer_than_the_context() -> None:
    engine = TokenEngine(["The answer is 42."])
    request = asking()
    room = 3
    engine.context_length = len(prompt_of(request).ids) + room
    end = end_of(sample(engine, request))
    assert (end.finish_reason, end.turn.stop_reason) == ("length", "length")
    assert end.turn.sampling is not None and end.turn.sampling.max_tokens == room
    assert end.completion_tokens == room


def test_a_conversation_without_room_is_refused_with_both_numbers() -> None:
    request = asking()
    count = len(prompt_of(request).ids)
    engine = TokenEngine(["42"], context_length=count)
    with pytest.raises(ApiError, match=f"{count} tokens.* context of {count}") as raised:
        sample(engine, request)
    assert (raised.value.status, raised.value.code) == (400, "context_length_exceeded")
    assert engine.asked == []


def test_log_probabilities_are_told_with_the_likeliest_tokens() -> None:
    engine = TokenEngine(["42" + END])
    deltas = sample(engine, asking(top_logprobs=2), stream=False)
    tokens = [token for delta in deltas for token in delta.tokens]
    assert b"".join(token.bytes for token in tokens) == b"42"
    assert all(token.logprob == -0.5 and len(token.top) == 2 for token in tokens)
    assert engine.asked[0][2] == 2
    [delta] = sample(engine, asking(top_logprobs=0), stream=False)
    assert len(delta.tokens) == len(tokens) and delta.tokens[0].top == ()
    [delta] = sample(engine, asking(), stream=False)
    assert delta.tokens == ()


@pytest.mark.parametrize("stream", [True, False])
def test_a_forced_call_begins_in_the_prompt(stream: bool) -> None:
    engine = TokenEngine(['{"name": "add", "arguments": {"a": 1}}' + END])
    request = asking(tools=(TOOL,), tool_choice="required")
    end = end_of(sample(engine, request, stream=stream))
    [(prompt_ids, sampling, _)] = engine.asked
    assert prompt_ids == end.turn.prompt_ids == prompt_of(request).ids + encode("<tool_call>\n")
    assert sampling.structure is not None and sampling.structure.json_schema is not None
    [call] = end.message["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert end.finish_reason == "tool_calls" and end.message["content"] == ""


def test_a_forced_call_that_is_cut_is_none() -> None:
    engine = TokenEngine(['{"name": "add", "argum'])
    request = asking(tools=(TOOL,), tool_choice="function", tool_name="add")
    end = end_of(sample(engine, request))
    assert end.finish_reason == "length" and "tool_calls" not in end.message
    assert end.message["content"] == '<tool_call>\n{"name": "add", "argum'


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ConnectionLost("http://10.0.0.7 went away"), 503, "unavailable"),
        (RequestFailed(500, "boom", "http://10.0.0.7"), 503, "unavailable"),
        (RequestFailed(400, "bad grammar", "http://10.0.0.7"), 400, "invalid_value"),
        (ContextOverflow("too long"), 400, "context_length_exceeded"),
        (ValueError("no grammar here"), 400, "invalid_value"),
        (KeyError("surprise"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_an_engines_trouble_is_told_as_the_api_does(
    error: Exception, status: int, code: str, stream: bool, n: int
) -> None:
    engine = TokenEngine(["42" + END], error=error)
    with pytest.raises(ApiError) as raised:
        sample(engine, asking(n=n), stream=stream)
    assert (raised.value.status, raised.value.code) == (status, code)
    assert raised.value.__cause__ is error
    if status >= 500:
        assert "10.0.0.7" not in raised.value.message


@pytest.mark.parametrize("stream", [True, False])
def test_an_aborted_generation_is_no_reply(stream: bool) -> None:
    engine = TokenEngine(["42"], stop_reason="abort")
    with pytest.raises(ApiError) as raised:
        sample(engine, asking(), stream=stream)
    assert raised.value.status == 503


def ask(replier: ModelReplier, *messages: Message, stream: bool = True) -> list[ReplyDelta]:
    async def read() -> list[ReplyDelta]:
        request = asking(messages=messages, tools=(TOOL,))
        return [delta async for delta in replier.reply(request, stream=stream)]

    return asyncio.run(read())


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_gives_its_calls_unique_ids_and_knows_them_again(stream: bool) -> None:
    engine = TokenEngine([CALL + END])
    replier = ModelReplier(engine, chat(), models=("tiny",))
    assert replier.models == ("tiny",)
    deltas = ask(replier, ASKED, stream=stream)
    [call] = end_of(deltas).message["tool_calls"]
    [told] = [c.id for delta in deltas for c in delta.calls if c.id]
    assert call["id"] == told and told.startswith("call_0-")
    result = {"role": "tool", "tool_call_id": told, "content": "42"}
    first = end_of(deltas).turn
    second = end_of(ask(replier, ASKED, end_of(deltas).message, result)).turn
    known = first.prompt_ids + first.completion_ids
    assert second.prompt_ids[: len(known)] == known
    named = {**result, "tool_call_id": "call_0", "name": "add"}
    assert list(second.prompt_ids) == chat().extend(known, [ASKED], first.message, [named], [TOOL])


def test_what_a_model_cannot_be_sent_is_refused() -> None:
    replier = ModelReplier(TokenEngine(["42" + END]), chat(), models=("tiny",))
    image = {"role": "user", "content": [{"type": "image_url"}]}
    with pytest.raises(ApiError, match="content part 'image_url'") as raised:
        ask(replier, image)
    assert raised.value.status == 400
