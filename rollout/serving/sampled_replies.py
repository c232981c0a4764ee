"""`sample_replies`: an engine's tokens become the replies to one request."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from palestra.rollout.engine import Engine, Piece
from palestra.rollout.engine_errors import BadAnswer
from palestra.rollout.serving.api_error import ApiError, of_engine
from palestra.rollout.serving.call_ids import restore
from palestra.rollout.serving.conversations import Conversations, KnownPrompt
from palestra.rollout.serving.merged import merged
from palestra.rollout.serving.reply import ReplyDelta, ReplyEnd, ReplyRequest
from palestra.rollout.serving.reply_shape import ReplyShape, shape_reply
from palestra.rollout.serving.sampled_text import SampledText
from palestra.types import Sampling, Turn, VersionSpan

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat

_log = logging.getLogger(__name__)


async def sample_replies(
    engine: Engine,
    chat_format: ChatFormat,
    request: ReplyRequest,
    prompt: KnownPrompt,
    *,
    stream: bool,
) -> AsyncGenerator[ReplyDelta, None]:
    """The `n` replies to a request, as they are sampled; without `stream` one delta for each.

    Reply number i is sampled with the seed + i. The turns have no parent: who recorded the prompt's
    sets it. Closing the generator ends the generations; so does the failure of one of them.

    Raises:
        ApiError: 400 if the prompt leaves no room for a reply or the engine cannot do what is
            asked, 503 if the engine fails.
    """
    try:
        replies = [
            _Reply(engine, chat_format, request, prompt, choice).deltas(stream=stream)
            for choice in range(request.n)
        ]
        async with aclosing(replies[0] if request.n == 1 else merged(replies)) as deltas:
            async for delta in deltas:
                yield delta
    except ApiError:
        raise
    except Exception as error:
        told = of_engine(error)
        if told.status >= 500:
            _log.warning(
                "a reply failed: %s: %s",
                type(error).__name__,
                error,
                exc_info=told.status == 500,
            )
        raise told from error


def find_prompt(conversations: Conversations, request: ReplyRequest) -> KnownPrompt:
    """The prompt that the request's replies go on from. Raises ApiError (400)."""
    try:
        return conversations.find(restore(request.messages), request.tools)
    except ValueError as error:  # messages that cannot be rendered
        raise of_engine(error) from error


def count_prompt(
    conversations: Conversations, chat_format: ChatFormat, request: ReplyRequest
) -> int:
    """The tokens of the prompt that its replies would have. Raises ApiError (400)."""
    shape = shape_reply(chat_format, request)
    return len(find_prompt(conversations, request).ids) + len(shape.prefix_ids if shape else ())


class _Reply:
    """Reply number `choice` to a request."""

    def __init__(
        self,
        engine: Engine,
        chat_format: ChatFormat,
        request: ReplyRequest,
        prompt: KnownPrompt,
        choice: int,
    ) -> None:
        shape = shape_reply(chat_format, request)
        self._engine = engine
        self._prompt_ids = prompt.ids if shape is None else prompt.ids + shape.prefix_ids
        self._sampling = _sampling(engine, request, self._prompt_ids, shape, choice)
        self._top_logprobs = request.top_logprobs or 0
        has_tools = bool(request.tools) and request.tool_choice != "none"
        single_call = has_tools and not request.parallel_tool_calls
        # What must be looked at token by token, or ended early.
        self._needs_stream = bool(request.stop or self._top_logprobs or single_call)
        self._choice = choice
        self._text = SampledText(
            chat_format,
            choice=choice,
            stop=request.stop,
            wants_logprobs=request.top_logprobs is not None,
            has_tools=has_tools,
            single_call=single_call,
            shape=shape,
        )
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._versions: list[tuple[int, int]] = []  # with the token from which on

    async def deltas(self, *, stream: bool) -> AsyncGenerator[ReplyDelta, None]:
        if not stream:
            whole = [delta async for delta in self._deltas(stream=self._needs_stream)]
            yield _joined(whole)
            return
        async with aclosing(self._deltas(stream=True)) as deltas:
            async for delta in deltas:
                yield delta

    async def _deltas(self, *, stream: bool) -> AsyncGenerator[ReplyDelta, None]:
        piece: Piece | None = None
        pieces = (
            self._engine.stream(self._prompt_ids, self._sampling, top_logprobs=self._top_logprobs)
            if stream
            else self._whole()
        )
        nothing = ReplyDelta(choice=self._choice)
        async with aclosing(pieces):
            async for piece in pieces:
                delta = self._push(piece)
                if delta != nothing:
                    yield delta
                if self._text.has_ended or piece.stop_reason is not None:
                    break
        yield self._end(piece)

    async def _whole(self) -> AsyncGenerator[Piece, None]:
        """The completion in one piece."""
        completion = await self._engine.generate(self._prompt_ids, self._sampling)
        yield Piece.whole(completion)

    def _push(self, piece: Piece) -> ReplyDelta:
        if not self._versions or self._versions[-1][0] != self._engine.version:
            self._versions.append((self._engine.version, len(self._ids)))
        delta = self._text.push(piece)
        taken = self._text.count - len(self._ids)
        self._ids += piece.ids[:taken]
        self._logprobs += piece.logprobs[:taken]
        return delta

    def _end(self, last: Piece | None) -> ReplyDelta:
        stop_reason = "stop" if self._text.has_ended else last and last.stop_reason
        if stop_reason not in ("stop", "length"):
            raise BadAnswer(f"the generation ended with {stop_reason!r}")
        if not 0 < len(self._ids) <= self._sampling.max_tokens:
            raise BadAnswer(
                f"{len(self._ids)} tokens came back, 1 to {self._sampling.max_tokens} asked"
            )
        ending = self._text.finish(stop_reason)
        spans = last.version_spans if last is not None else ()
        turn = Turn(
            message=ending.message,
            prompt_ids=self._prompt_ids,
            completion_ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            sampling=self._sampling,
            version_spans=_cut(spans, len(self._ids)) or self._seen_spans(),
            stop_reason=stop_reason,
        )
        end = ReplyEnd(
            finish_reason=ending.finish_reason,
            message=ending.message,
            turn=turn,
            stop_string=ending.stop_string,
        )
        return replace(ending.delta, end=end)

    def _seen_spans(self) -> tuple[VersionSpan, ...]:
        """The engine's versions when the tokens came: only a completion's last piece has better."""
        ends = [*(start for _, start in self._versions[1:]), len(self._ids)]
        return tuple(
            VersionSpan(version=version, start=start, end=end)
            for (version, start), end in zip(self._versions, ends, strict=True)
            if start < end
        )


def _sampling(
    engine: Engine,
    request: ReplyRequest,
    prompt_ids: Sequence[int],
    shape: ReplyShape | None,
    choice: int,
) -> Sampling:
    """The request's sampling for one of its replies, cut to the room in the context."""
    room = engine.context_length - len(prompt_ids)
    if room < 1:
        raise ApiError(
            400,
            f"this conversation has {len(prompt_ids)} tokens, which leaves no room for a reply in "
            f"the model's context of {engine.context_length}: shorten the messages",
            code="context_length_exceeded",
            param="messages",
        )
    sampling = request.sampling
    return replace(
        sampling,
        max_tokens=min(sampling.max_tokens, room),
        seed=None if sampling.seed is None else sampling.seed + choice,
        structure=None if shape is None else shape.structure,
    )


def _cut(spans: Sequence[VersionSpan], end: int) -> tuple[VersionSpan, ...]:
    """The spans of the first `end` tokens."""
    return tuple(replace(span, end=min(span.end, end)) for span in spans if span.start < end)


def _joined(deltas: Sequence[ReplyDelta]) -> ReplyDelta:
    """One delta that adds what all of these do."""
    return ReplyDelta(
        choice=deltas[-1].choice,
        content="".join(delta.content for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        calls=tuple(call for delta in deltas for call in delta.calls),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        end=deltas[-1].end,
    )
