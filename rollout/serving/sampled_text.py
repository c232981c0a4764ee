"""`SampledText`: one reply, from its tokens as they come to what clients are told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from palestra.rollout.engine import Piece
from palestra.rollout.serving.reply import FinishReason, ReplyDelta
from palestra.rollout.serving.reply_shape import ReplyShape
from palestra.rollout.serving.reply_text import ReplyText
from palestra.rollout.serving.token_text import TokenText
from palestra.types import Message

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """The end of a reply: the last that is told of it, and all of it."""

    delta: ReplyDelta
    message: Message
    finish_reason: FinishReason
    stop_string: str | None


class SampledText:
    """Tells what each piece of a completion adds to reply number `choice`.

    The deltas add up to the message of `ChatFormat.parse`, with malformed calls as content (see
    `call_readers`). Without `has_tools` nothing is read as a call. The reply ends before the first
    of the `stop` strings, wherever it stands, and with `single_call` behind its first call:
    `has_ended` then, and only `count` tokens belong to it. The prefix and suffix of its `shape`
    were not sampled. With `wants_logprobs` the tokens are told too (see `TokenText`).
    """

    def __init__(
        self,
        chat_format: ChatFormat,
        *,
        choice: int = 0,
        stop: Sequence[str] = (),
        wants_logprobs: bool = False,
        has_tools: bool = True,
        single_call: bool = False,
        shape: ReplyShape | None = None,
    ) -> None:
        self._choice = choice
        self._single_call = single_call
        self._shape = shape
        self._tokens = TokenText(
            chat_format.token_bytes,
            stop_ids=chat_format.stop_ids,
            stop=stop,
            wants_logprobs=wants_logprobs,
        )
        form = chat_format.call_format if has_tools else None
        self._reply = ReplyText(form, single_call=single_call)
        self._reply.push(chat_format.opening + (shape.prefix if shape else ""))

    @property
    def has_ended(self) -> bool:
        """Whether no further token belongs to the reply."""
        return self._tokens.stop_string is not None or self._reply.is_complete

    @property
    def count(self) -> int:
        """How many tokens belong to the reply so far."""
        return self._tokens.count

    def push(self, piece: Piece) -> ReplyDelta:
        """What a piece adds.

        Raises:
            BadAnswer, BadLogprobs: the piece is inconsistent.
        """
        if not self._single_call:
            self._reply.push(self._tokens.push(piece))
            return self._take()
        for place in range(len(piece.ids)):
            if self.has_ended:
                break
            self._reply.push(self._tokens.push(_token_of(piece, place)))
        return self._take()

    def finish(self, stop_reason: str) -> Ending:
        """The end, for the engine's `stop_reason`."""
        if not self._reply.is_complete:
            self._reply.push(self._tokens.finish())
            if self._shape is not None and stop_reason == "stop" and not self.has_ended:
                self._reply.push(self._shape.suffix)
            self._reply.finish()
        message = self._reply.message
        return Ending(
            delta=self._take(),
            message=message,
            finish_reason=_finish_reason(message, "stop" if self.has_ended else stop_reason),
            stop_string=self._tokens.stop_string,
        )

    def _take(self) -> ReplyDelta:
        delta, tokens = self._reply.take(self._choice), self._tokens.take_tokens()
        return replace(delta, tokens=tokens) if tokens else delta


def _token_of(piece: Piece, place: int) -> Piece:
    here = slice(place, place + 1)
    return Piece(
        ids=piece.ids[here], logprobs=piece.logprobs[here], top_logprobs=piece.top_logprobs[here]
    )


def _finish_reason(message: Message, stop_reason: str) -> FinishReason:
    if stop_reason == "length":
        return "length"
    return "tool_calls" if "tool_calls" in message else "stop"
