"""`ModelReplier`: a served model's answers, with the prompts that its training rollouts had."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from palestra.rollout.serving.call_ids import IssuedIds
from palestra.rollout.serving.conversations import Conversations
from palestra.rollout.serving.reply import ReplyDelta, ReplyRequest
from palestra.rollout.serving.sampled_replies import count_prompt, find_prompt, sample_replies

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat
    from palestra.rollout.engine import Engine

_MAX_REMEMBERED_TURNS = 4096


class ModelReplier:
    """Answers requests with an engine; see `Replier`.

    Of the last `max_remembered_turns` replies the exact ids are kept: a conversation that goes on
    from one of them has the prompt that a training rollout would have.
    """

    def __init__(
        self,
        engine: Engine,
        chat_format: ChatFormat,
        *,
        models: tuple[str, ...],
        max_remembered_turns: int = _MAX_REMEMBERED_TURNS,
    ) -> None:
        self.models = models
        self._engine = engine
        self._chat_format = chat_format
        self._conversations = Conversations(chat_format, max_turns=max_remembered_turns)

    async def reply(
        self, request: ReplyRequest, *, stream: bool
    ) -> AsyncGenerator[ReplyDelta, None]:
        """The replies, as they are sampled; without `stream` one delta for each.

        Raises:
            ApiError: the request is at fault or the engine cannot answer it.
        """
        known = find_prompt(self._conversations, request)
        issued = IssuedIds()
        replies = sample_replies(self._engine, self._chat_format, request, known, stream=stream)
        async with aclosing(replies):
            async for delta in replies:
                if delta.end is not None:
                    self._conversations.remember(known, request.tools, delta.end.turn)
                yield issued.rename(delta)

    def count_prompt(self, request: ReplyRequest) -> int:
        """See `Replier`."""
        return count_prompt(self._conversations, self._chat_format, request)
